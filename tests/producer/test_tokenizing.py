"""The tokenizing processes, and what becomes of them."""

import multiprocessing
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from queue import Empty

import psutil
import pytest
import redis

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import JobKey
from contract.jobs import latest_job
from contract.redis.keys import JOBS, queue_of
from contract.settings import settings
from producer.batches import open_tokenizer
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from producer.tokenizing import Task, Tasks, Work, processes_for, tokenizing, tokenizing_apart, without_interrupts
from tests.commands import called
from tests.contract.samples import a_job

ROWS = 40


@pytest.fixture
def work(tiny: EngineSpec, tmp_path: Path) -> Work:
    """Ten batches of four rows."""
    file = tmp_path / "mills.csv"
    file.write_text("text\n" + "".join(f"the mill number {row} {'grinds ' * row}\n" for row in range(ROWS)))
    return Work(a_job(tmp_path, rows=ROWS, batch_rows=4), open_dataset(DatasetSource(str(file))), open_tokenizer(tiny))


def test_processes_make_the_bytes_that_the_producer_itself_makes(work: Work) -> None:
    with tokenizing(work, 1) as here:
        expected = [here.begin(number).result() for number in range(10)]
    assert not multiprocessing.active_children()
    with tokenizing(work, 2) as source:
        assert source.ahead == 4
        assert [made.result() for made in [source.begin(number) for number in range(10)]] == expected
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert [Batch.from_bytes(payload).number for payload in expected] == list(range(10))


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_cannot_be_read_are_named(processes: int, work: Work) -> None:
    unreadable = work._replace(job=work.job.model_copy(update={"rows": ROWS + 8}))  # more than the dataset has
    with tokenizing(unreadable, processes) as source, pytest.raises(UserError) as raised:
        source.begin(11).result()
    assert raised.value.found.startswith("rows 44 to 47 of ")
    assert "--limit" in raised.value.hint


def test_a_process_that_dies_ends_it_with_a_clear_line(work: Work) -> None:
    def begin_until_it_raises() -> None:
        with tokenizing_apart(work, 2) as source:
            source.begin(0).result()
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            while True:
                source.begin(1).result()

    with pytest.raises(UserError, match="a tokenizing process was killed; most often the machine is out of memory"):
        begin_until_it_raises()
    assert not multiprocessing.active_children()


class DiesHalfWay(Work):
    """In a tokenizing process: begins to answer with a megabyte and is killed."""

    def payload(self, batch: int) -> bytes:
        if batch == 4:
            sockets = [int(fd) for fd in os.listdir("/proc/self/fd") if stat.S_ISSOCK(mode_of(int(fd)))]
            assert sockets
            for fd in sockets:
                os.write(fd, struct.pack("!i", 1 << 20) + b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().payload(batch)


def mode_of(fd: int) -> int:
    try:
        return os.fstat(fd).st_mode
    except OSError:  # of the listing itself, which is closed by now
        return 0


def test_a_process_that_dies_in_the_middle_of_a_batch_ends_it_too(work: Work) -> None:
    def one_dies() -> None:
        with tokenizing_apart(DiesHalfWay(*work), 2) as source:
            for made in [source.begin(number) for number in range(4)]:
                made.result()
            assert len(multiprocessing.active_children()) == 2  # the other one lives on
            source.begin(4).result(timeout=30)

    with pytest.raises(UserError, match="a tokenizing process was killed; most often the machine is out of memory"):
        one_dies()
    assert not multiprocessing.active_children()


class Panic(BaseException):
    """As a panic of the Rust tokenizer is: no ``Exception``, and it cannot be pickled."""

    def __init__(self, where: str, lock: object) -> None:
        super().__init__(where)
        self.lock = lock


class Panics(Work):
    def payload(self, batch: int) -> bytes:
        if batch == 1:
            raise Panic("at tokenizer.rs:7", threading.Lock())
        return super().payload(batch)


def test_what_is_no_exception_names_its_rows_and_the_process_goes_on(work: Work) -> None:
    with tokenizing_apart(Panics(*work), 2) as source:
        made = [source.begin(number) for number in range(6)]
        with pytest.raises(UserError, match=r"rows 4 to 7 of .* cannot be tokenized \(Panic: at tokenizer\.rs:7"):
            made[1].result(timeout=30)
        assert [bool(one.result(timeout=30)) for one in (made[0], *made[2:])] == [True] * 5


def test_a_process_gets_a_second_batch_only_when_every_process_has_one() -> None:
    tasks = Tasks()
    taken: list[Task | None] = []
    idle = threading.Thread(target=lambda: taken.append(tasks.first()))
    idle.start()
    until = time.monotonic() + 30
    while not tasks.idle:
        assert time.monotonic() < until
    with pytest.raises(Empty):
        tasks.another()
    first = tasks.add(7)
    idle.join(30)
    assert [task.batch for task in taken if task] == [7]
    tasks.add(8)
    second = tasks.another()
    assert second
    assert (second.batch, first.done()) == (8, False)
    with pytest.raises(Empty):
        tasks.another()


def test_nothing_is_waited_for_when_it_ends_early(work: Work) -> None:
    begun: list[Future[bytes]] = []

    def interrupted() -> None:
        with tokenizing_apart(work, 2) as source:
            begun.extend(source.begin(number % 10) for number in range(200))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not multiprocessing.active_children()
    assert not all(made.done() and not made.cancelled() and not made.exception() for made in begun)


def test_ctrl_c_comes_when_a_process_is_started_and_not_before() -> None:
    """Also where another thread takes the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    reached = []

    def start() -> None:
        with without_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            reached.append("started")

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        end.set()
        other.join()
        signal.signal(signal.SIGINT, before)
    assert reached == ["started"]


def blocks(number: int, process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = dict(line.split(":\t") for line in status.splitlines())
    return bool(int(masks["SigBlk"], 16) & 1 << (number - 1))


def published(client: redis.Redis) -> int:
    return sum([int(client.llen(queue_of(JobKey(os.fsdecode(key))))) for key in client.smembers(JOBS)])


@pytest.mark.parametrize(
    ("command", "number"),
    [("embed", signal.SIGKILL), ("embed", signal.SIGTERM), ("embed", signal.SIGINT), ("retry", signal.SIGINT)],
)
def test_no_process_outlives_a_producer(
    command: str, number: int, redis_url: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer has published everything and waits for a worker that never comes."""
    python = [sys.executable, "-m", "producer"]
    options = ["--dataset", work.texts.dataset, "--batch-rows", "4"]
    if command == "retry":
        called("producer", *options, "--detach")
        options = ["retry", latest_job().id]
        called("producer", "cancel", latest_job().id)
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", "2")
    with (tmp_path / "told").open("w+") as told:
        producer = subprocess.Popen(
            [*python, *options],
            stderr=told,
            start_new_session=True,
        )
        until = time.monotonic() + 60
        while published(redis.Redis.from_url(redis_url)) < 10:
            assert producer.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        children = psutil.Process(producer.pid).children(recursive=True)
        forked = [child for child in children if "forkserver" in " ".join(child.cmdline())]
        assert len(forked) == 3  # two, and what forks them
        assert all(blocks(signal.SIGINT, child) for child in forked)
        os.killpg(producer.pid, number) if number == signal.SIGINT else os.kill(producer.pid, number)
        producer.wait(30)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        told.seek(0)
        lines = told.read()
    assert "Traceback" not in lines
    if number == signal.SIGINT:  # which a terminal sends to every process
        assert "interrupted; 0 of 10 shards there" in lines


def test_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert [processes_for(batches) for batches in (0, 1, 15, 16, 40, 1000)] == [1, 1, 1, 2, 5, 8]
    cores = 2
    assert processes_for(1000) == 1  # the other core is the worker's
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", "3")
    settings.cache_clear()
    assert [processes_for(batches) for batches in (0, 2, 1000)] == [1, 2, 3]
