"""How several producers divide a job: the decisions, and processes that are killed or stand still."""

import contextlib
import io
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from contract.job import Job
from contract.redis.claims import Division
from contract.settings import settings
from producer.display import progress_display
from producer.outbox import share_of_bytes
from producer.progress import Progress, ShardTotals
from producer.tables import summary
from producer.tokenizing import BatchSource, Made, processes_for, tokenizing_here
from producer.view import View
from tests.commands import wait_until
from tests.contract.samples import a_job, engine_spec
from tests.producer.by_hand import OF_NO_DATASET, ByHand, ByHandMade, drive

ROOT = Path(__file__).parent.parent.parent
"""Where ``tests`` can be imported from."""

NOW = Division(next=6, claims={2: "me", 3: "dead", 4: "you", 5: ""}, alive=("me", "you"))


def test_what_nobody_makes_is_claimed_before_what_was_never_handed_out() -> None:
    assert NOW.next_claims(20, 1) == ([3], 6)
    assert NOW.next_claims(20, 4) == ([3, 5, 6, 7], 8)


def test_what_has_its_shard_is_handed_out_without_being_claimed() -> None:
    assert NOW._replace(claims={}).next_claims(20, 2, {6, 7}, {9}) == ([8, 10], 11)
    assert NOW._replace(claims={}).next_claims(8, 2, {6, 7}) == ([], 8)
    assert Division(next=30).next_claims(20, 2) == ([], 30)


def test_a_batch_that_was_handed_out_and_is_nowhere_is_missing() -> None:
    assert NOW.missing(20, {0}) == [1]
    assert NOW.missing(20, {0}, {1}) == []
    assert Division(next=99).missing(3, {1}) == [0, 2]


def test_a_claim_that_its_producer_knows_nothing_of_is_found() -> None:
    assert NOW.unknown_to("me", [7], [8]) == [2]
    assert NOW.unknown_to("me", [7], [2]) == []


@pytest.mark.parametrize(
    ("out", "producers", "limit"), [(0, 1, 100), (60, 1, 100), (0, 4, 25), (60, 4, 70), (100, 4, 100), (130, 4, 100)]
)
def test_each_producer_takes_its_share_of_the_room_that_all_see(out: int, producers: int, limit: int) -> None:
    assert share_of_bytes(100, out, producers) == limit


def no_batch(batch: int) -> "Future[Made]":
    raise AssertionError


def test_few_batches_are_claimed_at_once() -> None:
    sources = (BatchSource(no_batch, ahead) for ahead in (1, 4, 32))
    assert [source.claims_at_once for source in sources] == [1, 2, 16]


def test_producers_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    assert [processes_for(1000, here, here) for here in (1, 2, 3, 4, 99)] == [8, 4, 2, 2, 1]
    assert processes_for(64, producers=4, here=1) == 2
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", "6")
    settings.cache_clear()
    assert processes_for(1000, 4, 4) == 6


def test_each_producer_says_how_many_share_the_job(tmp_path: Path) -> None:
    job, out = a_job(tmp_path), io.StringIO()
    console = Console(file=out, width=100)
    with progress_display(console) as show:
        for many in (1, 3, 3, 1):
            view = View(job=job.key, now=0.0, timeout=30.0, producers=many)
            show(Progress(job, ShardTotals(), ShardTotals(), time.monotonic(), view=view))
    assert out.getvalue() == "3 producers share this job\nNo other producer shares this job any more\n"
    ended = Progress(job, ShardTotals(), ShardTotals(rows=10), 0.0, producers=3, made=1)
    console.print(summary(ended, engine_spec(), 2.0))
    assert "3 at once; this one made 1 of 3 batches" in out.getvalue()


ROWS, BATCHES = 160, 40


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = a_job(tmp_path / "output", rows=ROWS, batch_rows=4)
    job.save()
    return job


@pytest.fixture
def worker(redis_url: str, job: Job, monkeypatch: pytest.MonkeyPatch) -> ByHand:
    monkeypatch.setenv("EMBEDMILL_HEARTBEAT_TIMEOUT", "3")
    settings.cache_clear()
    worker = ByHand(job)
    worker.ledger.announce(job)
    return worker


class Producer:
    """A process, and what it began to make."""

    def __init__(self, job: Job, log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "tests.producer.one_producer", str(job.folder), str(log), "0.1"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    @property
    def made(self) -> list[int]:
        return [int(line) for line in self._log.read_text(encoding="utf-8").split()] if self._log.exists() else []

    def said(self) -> str:
        return self.process.communicate(timeout=60)[0].strip()


@contextlib.contextmanager
def two_producers(job: Job, tmp_path: Path) -> Iterator[tuple[Producer, Producer]]:
    one, other = (Producer(job, tmp_path / name) for name in ("one", "other"))
    try:
        wait_until(lambda: len(one.made) > 3 and len(other.made) > 3)
        yield one, other
    finally:
        for producer in (one, other):
            producer.process.kill()
            producer.process.wait()


def embedding(worker: ByHand, until: Callable[[], object]) -> None:
    def ended() -> object:
        worker.embed()
        return until()

    wait_until(ended, 120)


def test_one_of_two_producers_is_killed(job: Job, worker: ByHand, tmp_path: Path) -> None:
    with two_producers(job, tmp_path) as (one, other):
        embedding(worker, lambda: len(worker.taken) > 10)
        one.process.kill()
        one.process.wait()
        embedding(worker, lambda: other.process.poll() is not None)
        assert (other.process.returncode, other.said()) == (0, f"{BATCHES} {ROWS}")
        assert set(one.made + other.made) == set(range(BATCHES))
        twice = [batch for batch, times in Counter(one.made + other.made).items() if times > 1]
        assert twice in ([], one.made[-1:])  # what it was at when it died
    assert job.committed() == set(range(BATCHES))
    assert not [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")]


def test_one_of_two_producers_stands_still_for_longer_than_its_claims_live(
    job: Job, worker: ByHand, tmp_path: Path
) -> None:
    with two_producers(job, tmp_path) as (one, other):
        one.process.send_signal(signal.SIGSTOP)
        embedding(worker, lambda: len(job.committed()) == BATCHES)  # that which it had claimed too
        one.process.send_signal(signal.SIGCONT)
        embedding(worker, lambda: one.process.poll() is not None and other.process.poll() is not None)
        assert [(p.process.returncode, p.said()) for p in (one, other)] == [(0, f"{BATCHES} {ROWS}")] * 2
        twice = [batch for batch, times in Counter(one.made + other.made).items() if times > 1]
        assert set(twice) <= set(one.made[-1:])
    assert not [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")]


class Counted(ByHandMade):
    """Of which each batch that is made is noted in ``made``, which all producers share."""

    made: ClassVar[list[int]] = []

    def payload(self, number: int) -> bytes:
        self.made.append(number)
        return super().payload(number)


def test_three_producers_make_each_batch_once_whatever_redis_loses(job: Job, worker: ByHand) -> None:
    Counted.made.clear()
    lost: set[int] = set()
    with ThreadPoolExecutor(3) as pool:
        sources = [tokenizing_here(Counted(job, *OF_NO_DATASET)) for _ in range(3)]
        producers = [pool.submit(drive, job, made_by=source) for source in sources]

        def ended() -> bool:
            if len(worker.taken) == 15 and not lost:
                lost.update(worker.ledger.outstanding(job), [-1])
                worker.redis.flushall()
            return all(producer.done() for producer in producers)

        embedding(worker, ended)
    assert [producer.result().totals.rows for producer in producers] == [ROWS] * 3
    assert {producer.result().producers for producer in producers} == {3}
    twice = {batch for batch, times in Counter(Counted.made).items() if times > 1}
    assert sum(producer.result().made for producer in producers) == len(Counted.made)
    # What was on its way into Redis just then may be lost too.
    assert len(twice - lost) <= 3
    assert job.committed() == set(range(BATCHES))
    assert not [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")]
