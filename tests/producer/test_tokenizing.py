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

import psutil
import pytest
import redis

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.jobs import latest_job
from contract.redis.claims import Claims
from contract.redis.keys import queue_of
from contract.redis.messages import batch_of
from contract.settings import settings
from producer.batches import Work
from producer.dataset import open_dataset
from producer.driver import Driver, Times
from producer.progress import Progress
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer
from producer.tokenizing import BatchSource, Made, processes_for, tokenizing, tokenizing_apart
from tests.commands import called
from tests.contract.samples import WholeLedger, a_job, commit_by_hand

ROWS = 40


@pytest.fixture
def ledger(redis_url: str) -> WholeLedger:
    return WholeLedger(patience=5)


@pytest.fixture
def work(tiny: EngineSpec, tmp_path: Path) -> Work:
    """Ten batches of four rows."""
    file = tmp_path / "mills.csv"
    file.write_text("text\n" + "".join(f"the mill number {row} {'grinds ' * row}\n" for row in range(ROWS)))
    return Work(a_job(tmp_path, rows=ROWS, batch_rows=4), open_dataset(DatasetSource(str(file))), open_tokenizer(tiny))


def all_made(source: BatchSource, batches: range) -> list[Made]:
    return [made.result(60) for made in [source.make(number) for number in batches]]


def test_processes_put_the_bytes_into_redis_that_the_producer_itself_puts(work: Work, ledger: WholeLedger) -> None:
    found: list[list[bytes | None]] = []
    for processes in (1, 2):
        with tokenizing(work, processes) as source:
            assert source.ahead == (1 if processes == 1 else 4)
            made = all_made(source, range(10))
            assert len(multiprocessing.active_children()) == (0 if processes == 1 else 2)
            assert not ledger.outstanding(work.job)  # they are made, and nobody has asked for more
            assert [put.result(60) for put in [one.put("a producer") for one in made]] == [True] * 10
        assert not multiprocessing.active_children()
        assert [entry.size for _, entry in sorted(ledger.outstanding(work.job).items())] == [one.size for one in made]
        found.append([ledger.fetch(work.job.key, number) for number in range(10)])
        ledger.forget(work.job)
    assert found[0] == found[1]
    assert [Batch.from_bytes(payload or b"").number for payload in found[0]] == list(range(10))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_another_producer_has_published_is_not_published_again(
    processes: int, work: Work, ledger: WholeLedger
) -> None:
    ledger.publish(work.job, 3, b"another's")
    with tokenizing(work, processes) as source:
        assert [made.put("a producer").result(60) for made in all_made(source, range(2, 5))] == [True, False, True]
    assert ledger.fetch(work.job.key, 3) == b"another's"


@pytest.mark.parametrize("processes", [1, 2])
def test_what_redis_did_not_take_may_be_put_again(
    processes: int, work: Work, ledger: WholeLedger, redis_url: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    with tokenizing(work, processes) as source:
        made = source.make(7).result(60)
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            made.put("a producer").result(60)
        client.config_set("maxmemory", 0)
        assert made.put("a producer").result(60)
    assert len(ledger.fetch(work.job.key, 7) or b"") == ledger.outstanding(work.job)[7].size


@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_that_no_worker_would_take_is_refused_where_it_is_made(
    processes: int, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_BATCH_BYTES", "999")
    settings.cache_clear()
    with tokenizing(work, processes) as source, pytest.raises(UserError, match=r"bytes; a worker takes 999.*--batch-"):
        source.make(0).result(60)


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_cannot_be_read_are_named(processes: int, work: Work) -> None:
    unreadable = work._replace(job=work.job.model_copy(update={"rows": ROWS + 8}))  # more than the dataset has
    with tokenizing(unreadable, processes) as source, pytest.raises(UserError) as raised:
        source.make(11).result(60)
    assert raised.value.found.startswith("rows 44 to 47 of ")
    assert "--limit" in raised.value.hint


def test_a_process_that_dies_ends_it_with_a_clear_line(work: Work) -> None:
    def begin_until_it_raises() -> None:
        with tokenizing_apart(work, 2) as source:
            source.make(0).result(60)
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            while True:  # one for each process
                for made in [source.make(1), source.make(2)]:
                    made.result(60)

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
            all_made(source, range(4))
            assert len(multiprocessing.active_children()) == 2  # the other one lives on
            source.make(4).result(timeout=30)

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
        made = [source.make(number) for number in range(6)]
        with pytest.raises(UserError, match=r"rows 4 to 7 of .* cannot be tokenized \(Panic: at tokenizer\.rs:7"):
            made[1].result(timeout=30)
        assert [bool(one.result(timeout=30)) for one in (made[0], *made[2:])] == [True] * 5


class Waits(Work):
    """In a tokenizing process: says which process makes a batch, and waits for the word to go on."""

    def payload(self, batch: int) -> bytes:
        folder = Path(self.texts.dataset).parent
        (folder / f"{batch}.begun").write_text(str(os.getpid()))
        while not (folder / "go").exists():
            time.sleep(0.01)
        return super().payload(batch)


def test_a_process_gets_a_second_batch_only_when_every_process_has_one(work: Work) -> None:
    folder = Path(work.texts.dataset).parent
    with tokenizing_apart(Waits(*work), 2) as source:
        made = [source.make(number) for number in range(3)]
        until = time.monotonic() + 60
        while len(list(folder.glob("*.begun"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert {file.name for file in folder.glob("*.begun")} == {"0.begun", "1.begun"}
        (folder / "go").touch()
        assert all(one.result(60).size for one in made)
    makers = [(folder / f"{number}.begun").read_text() for number in range(3)]
    assert makers[0] != makers[1]
    assert makers[2] in makers[:2]


def test_nothing_is_waited_for_when_it_ends_early(work: Work) -> None:
    begun: list[Future[Made]] = []

    def interrupted() -> None:
        with tokenizing_apart(work, 2) as source:
            begun.extend(source.make(number % 10) for number in range(200))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not multiprocessing.active_children()
    assert not all(made.done() and not made.cancelled() and not made.exception() for made in begun)


def blocks(number: int, process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = dict(line.split(":\t") for line in status.splitlines())
    return bool(int(masks["SigBlk"], 16) & 1 << (number - 1))


def published(client: redis.Redis) -> int:
    return sum(int(client.llen(queue_of(job))) for job in WholeLedger(patience=5).jobs())


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


def test_a_job_whose_producer_is_killed_while_processes_publish_is_done_by_the_next_one_and_leaves_nothing(
    redis_url: str, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: WholeLedger
) -> None:
    """Killed twice, each time as soon as one more batch is on Redis, whatever the others are at."""
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", "2")
    client = redis.Redis.from_url(redis_url)
    command = [sys.executable, "-m", "producer", "--dataset", work.texts.dataset, "--batch-rows", "1"]
    for more in (1, 9):
        producer = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 60
        while len(list(client.scan_iter("embedmill:*:batch:*"))) < more:
            assert producer.poll() is None
            assert time.monotonic() < until
        children = psutil.Process(producer.pid).children(recursive=True)
        producer.kill()
        producer.wait(30)
        assert not psutil.wait_procs(children, timeout=20)[1]
    job = latest_job()
    assert job.batches == ROWS

    def embed(progress: Progress) -> None:
        while named := batch_of(client.rpop(queue_of(job.key)) or b""):  # type: ignore[arg-type]
            commit_by_hand(job, Batch.from_bytes(ledger.fetch(job.key, named[1]) or b""))
            ledger.settle(job.key, named[1])

    claims = Claims(job, ledger.connection)
    with claims.joined(), tokenizing(work._replace(job=job), 2) as source:
        Driver(claims, source, ledger, times=Times(look=0.05, inspect=0.1, missing_after=1)).run(embed)
    assert job.committed() == set(range(ROWS))
    assert not [key for key in client.scan_iter() if not key.startswith(b"_kombu")]


def test_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert [processes_for(batches) for batches in (0, 1, 15, 16, 40, 1000)] == [1, 1, 1, 2, 5, 8]
    cores = 2
    assert processes_for(1000) == 1  # the other core is the worker's
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", "3")
    settings.cache_clear()
    assert [processes_for(batches) for batches in (0, 2, 1000)] == [1, 2, 3]
