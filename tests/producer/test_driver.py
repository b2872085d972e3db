"""The driver against a real Redis. The tests play the worker: they take messages and commit shards."""

import base64
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from contract.errors import UserError
from contract.job import Job
from contract.redis import connection, heartbeat
from contract.redis.heartbeat import WORKERS, Heartbeat
from contract.redis.keys import KEPT_FOR, key_of, queue_of
from contract.redis.ledger import DeadBatch
from contract.redis.messages import TASK
from contract.settings import settings
from embedmill.processes import redis_server
from producer import making
from producer.batches import Work
from producer.driver import Times
from producer.outbox import Outbox, byte_budget
from producer.progress import Progress
from producer.shards import ShardWatch
from producer.tokenizing import BatchSource, Made, tokenizing_apart
from tests.contract.samples import WholeLedger, a_job, commit_by_hand, packed
from tests.producer.by_hand import OF_NO_DATASET, SOON, ByHand, ByHandMade, batch, drive, source

NO_VECTOR = DeadBatch(error="ValueError: no vector", where="", attempts=4)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """18 rows in 5 batches; row 5 has no text, row 6 has more tokens than fit."""
    job = a_job(tmp_path / "output", rows=18, batch_rows=4)
    job.save()
    return job


@pytest.fixture
def worker(redis_url: str, job: Job) -> ByHand:
    worker = ByHand(job)
    worker.ledger.announce(job)
    return worker


def run(job: Job, worker: ByHand, *, times: Times = SOON) -> Progress:
    """To the end, with a worker that makes a shard each time the driver reports."""
    return drive(job, lambda progress: worker.embed(), times=times)


def publish(job: Job) -> Progress:
    """Everything, and leave."""
    return drive(job, detach=True)


def test_every_batch_becomes_a_shard_and_is_counted(job: Job, worker: ByHand) -> None:
    progress = run(job, worker)
    assert worker.taken == [0, 1, 2, 3, 4]
    assert job.committed() == set(range(5))
    assert (progress.before.rows, progress.totals.rows, progress.totals.shards, progress.dead) == (0, 18, 5, {})
    assert (progress.new.tokens, progress.totals.truncated, progress.totals.without_text) == (16 * 3 + 8, 1, 1)
    assert worker.outstanding == worker.messages == 0
    assert not [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")]


def test_a_snapshot_stays_as_it_was(job: Job, worker: ByHand) -> None:
    reported: list[tuple[Progress, int]] = []

    def report(progress: Progress) -> None:
        worker.embed()
        reported.append((progress, progress.totals.shards))

    drive(job, report)
    assert [progress.totals.shards for progress, _ in reported] == [shards for _, shards in reported]
    assert {shards for _, shards in reported} >= {0, 5}


def test_a_message_is_json_with_the_job_and_the_batch_and_nothing_else(job: Job, worker: ByHand) -> None:
    publish(job)
    message = worker.redis.lindex(queue_of(job.key), -1)
    assert isinstance(message, bytes)
    assert len(message) < 2_000
    envelope = json.loads(message)
    assert (envelope["content-type"], envelope["headers"]["task"]) == ("application/json", TASK)
    arguments, named, _ = json.loads(base64.b64decode(envelope["body"]))
    assert (arguments, named) == ([job.key, 0], {})
    assert worker.ledger.fetch(job.key, 0) == packed(batch(job, 0))


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_bytes_wait_in_redis_than_are_allowed(
    at_once: int, job: Job, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(packed(batch(job, 0)))
    monkeypatch.setenv("EMBEDMILL_OUTSTANDING_BYTES", str(int(size * (at_once + 0.5))))
    settings.cache_clear()
    waiting: list[int] = []

    def report(progress: Progress) -> None:
        waiting.append(worker.messages)
        assert worker.outstanding <= at_once * size * 1.1
        if len(waiting) % 3 == 0:
            worker.embed()

    drive(job, report)
    assert max(waiting) == at_once
    assert job.committed() == set(range(5))


def test_between_two_listings_the_shards_of_settled_batches_are_looked_for(job: Job) -> None:
    shards = ShardWatch(job, listing_share=1e-12)  # any listing takes too long for another one
    assert shards.refresh().shards == 0
    for number in (0, 1, 3):
        commit_by_hand(job, batch(job, number))
    assert shards.refresh({1, 2}).rows == 4
    assert shards.batches == {1}
    assert shards.refresh(set()).shards == 0
    assert shards.refresh().rows == 8
    assert shards.batches == {0, 1, 3}


def test_a_folder_that_is_listed_in_no_time_is_listed_each_time(job: Job) -> None:
    shards = ShardWatch(job, listing_share=1e12)
    shards.refresh()
    commit_by_hand(job, batch(job, 3))
    shards.refresh(set())
    assert shards.batches == {3}


def test_what_has_a_shard_is_not_published_again(job: Job, worker: ByHand) -> None:
    for number in (0, 1, 3):
        commit_by_hand(job, batch(job, number))
    progress = run(job, worker)
    assert worker.taken == [2, 4]
    assert (progress.before.rows, progress.totals.rows) == (12, 18)
    assert progress.new.tokens == 6 * 3
    assert (progress.totals.truncated, progress.totals.without_text) == (1, 1)


def test_what_a_killed_worker_left_is_gone_at_the_end(job: Job, worker: ByHand) -> None:
    (job.staging / "train-00001-of-00005.0123").write_bytes(b"PAR1 and no more")
    run(job, worker)
    assert list(job.staging.iterdir()) == []


def test_a_finished_job_publishes_nothing(job: Job, worker: ByHand) -> None:
    for number in range(5):
        commit_by_hand(job, batch(job, number))
    progress = drive(job)
    assert (progress.before.rows, progress.totals.rows, progress.new.tokens) == (18, 18, 0)
    assert worker.messages == 0


def test_what_redis_loses_is_published_again(job: Job, worker: ByHand) -> None:
    gone = False

    def report(progress: Progress) -> None:
        nonlocal gone
        if gone or worker.messages == job.batches:
            worker.embed()
        if not gone and worker.taken:
            worker.redis.flushall()
            gone = True

    drive(job, report, times=replace(SOON, missing_after=0.4))
    assert worker.taken == [0, 1, 2, 3, 4]
    assert job.committed() == set(range(5))


def test_a_message_that_a_worker_drops_is_published_again(job: Job, worker: ByHand) -> None:
    def report(progress: Progress) -> None:
        if worker.taken:
            worker.embed()
        else:
            worker.take()

    drive(job, report, times=replace(SOON, missing_after=0.4))
    assert sorted(worker.taken) == [0, 0, 1, 2, 3, 4]
    assert job.committed() == set(range(5))


def beat(worker: ByHand, batch: int, *, silent: float = 0.0) -> None:
    """The heartbeat of a worker of its own for this batch, which was last heard of so many seconds ago."""
    now = worker.ledger.now() - silent
    one = Heartbeat(worker=f"host:1:{batch}/0", state="computing", beat=now, since=now, job=worker.job.key, batch=batch)
    worker.redis.set(heartbeat.key_of(one.worker), one.model_dump_json())
    worker.redis.sadd(WORKERS, one.worker)


def hold(worker: ByHand, batch: int) -> None:
    """As Kombu notes a message that was taken."""
    body = base64.b64encode(json.dumps([[worker.job.key, batch], {}, {}]).encode()).decode()
    worker.redis.hset("unacked", f"tag {batch}", json.dumps([{"body": body}, "", "queue"]))
    worker.redis.zadd("unacked_index", {f"tag {batch}": 1.0})


def test_a_batch_that_a_living_worker_computes_is_not_lost(job: Job, worker: ByHand) -> None:
    steps = 0

    def report(progress: Progress) -> None:
        nonlocal steps
        while (number := worker.take()) is not None:
            beat(worker, number)
        if len(worker.taken) == job.batches:
            steps += 1
        if steps == 50:
            for number in range(5):
                commit_by_hand(job, batch(job, number))

    drive(job, report, times=replace(SOON, missing_after=0.1))
    assert sorted(worker.taken) == [0, 1, 2, 3, 4]


def test_a_batch_whose_worker_is_silent_is_published_again_soon_and_its_old_message_is_gone(
    job: Job, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_HEARTBEAT_TIMEOUT", "30")
    settings.cache_clear()

    def report(progress: Progress) -> None:
        if worker.taken:
            worker.embed()
        elif (number := worker.take()) is not None:
            hold(worker, number)
            beat(worker, number, silent=settings().heartbeat_timeout + 1)

    began = time.monotonic()
    drive(job, report)
    assert worker.taken.count(worker.taken[0]) == 2
    assert job.committed() == set(range(5))
    assert time.monotonic() - began < settings().heartbeat_timeout
    assert (worker.redis.hlen("unacked"), worker.redis.zcard("unacked_index")) == (0, 0)


def test_a_batch_that_was_taken_and_never_begun_is_published_again_after_the_timeout(
    job: Job, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_HEARTBEAT_TIMEOUT", "3")
    settings.cache_clear()
    taken = 0.0

    def report(progress: Progress) -> None:
        nonlocal taken
        if worker.taken:
            worker.embed()
        elif (number := worker.take()) is not None:
            hold(worker, number)
            taken = time.monotonic()

    drive(job, report)
    assert worker.taken.count(worker.taken[0]) == 2
    assert time.monotonic() - taken >= 3


def test_a_cancelled_job_ends_its_producer_and_the_next_one_goes_on(job: Job, worker: ByHand) -> None:
    def report(progress: Progress) -> None:
        if worker.messages == job.batches:
            worker.embed()
            assert worker.ledger.cancel(job) == 4

    with pytest.raises(UserError, match="was cancelled; 1 of 5 shards there; run the same command again"):
        drive(job, report)
    assert worker.messages == 0
    worker.ledger.announce(job)
    assert run(job, worker).totals.rows == 18


def test_what_is_published_before_a_producer_hears_that_its_job_is_cancelled_is_taken_back(
    job: Job, worker: ByHand
) -> None:
    published: list[int] = []

    def report(progress: Progress) -> None:
        if worker.messages and not published:  # by a cancellation that had read the ledger before
            published.append(worker.messages)
            worker.redis.set(key_of(job.key, "cancelled"), "1", ex=KEPT_FOR)
            worker.redis.delete(f"embedmill:{job.key}:out")

    with pytest.raises(UserError, match="was cancelled; 0 of 5 shards there"):
        drive(job, report, times=Times(look=0.5))
    assert published
    assert worker.redis.keys(f"embedmill:{job.key}:*") == [f"embedmill:{job.key}:cancelled".encode()]
    assert worker.messages == 0


def test_dead_batches_end_the_run_until_they_are_revived(job: Job, worker: ByHand) -> None:
    def report(progress: Progress) -> None:
        if (number := worker.take()) is not None:
            worker.ledger.begin_attempt(job.key, number)
            if number == 2:
                worker.ledger.bury(job.key, number, NO_VECTOR)
            else:
                commit_by_hand(job, batch(job, number))
                worker.ledger.settle(job.key, number)

    assert drive(job, report).dead == {2: NO_VECTOR}
    assert job.committed() == {0, 1, 3, 4}

    worker.taken.clear()
    assert run(job, worker).dead == {2: NO_VECTOR}
    assert worker.taken == []
    worker.ledger.revive(job)
    progress = run(job, worker)
    assert worker.taken == [2]
    assert (progress.dead, progress.before.rows, progress.totals.rows) == ({}, 14, 18)
    assert worker.ledger.begin_attempt(job.key, 2) == 1


def test_a_batch_that_one_worker_gave_up_and_another_made_is_done(job: Job, worker: ByHand) -> None:
    def report(progress: Progress) -> None:
        if (number := worker.take()) is not None:
            worker.ledger.bury(job.key, number, NO_VECTOR)
            commit_by_hand(job, batch(job, number))
            worker.ledger.settle(job.key, number)

    progress = drive(job, report)
    assert (progress.dead, progress.totals.rows) == ({}, 18)


def test_a_batch_that_is_settled_while_the_driver_looks_for_lost_ones_is_counted(job: Job, worker: ByHand) -> None:
    class Slow(WholeLedger):
        def vanished(self, job: Job, batches: Iterable[int]) -> list[int]:
            worker.embed()  # since the driver read which batches are out
            return super().vanished(job, batches)

    for number in range(4):
        commit_by_hand(job, batch(job, number))
    worker.ledger.publish(job, 4, packed(batch(job, 4)))
    Outbox(job, worker.ledger, "").send(4)
    progress = drive(job, ledger=Slow(patience=5))
    assert progress.totals.rows == 18


def test_detaching_publishes_and_leaves_and_the_next_run_goes_on(job: Job, worker: ByHand) -> None:
    publish(job)
    assert job.committed() == set()
    assert worker.messages == job.batches
    progress = run(job, worker)
    assert worker.taken == [0, 1, 2, 3, 4]  # none of them twice
    assert progress.totals.rows == 18


def test_a_redis_that_goes_away_ends_the_run_with_a_clear_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as server:
        url = server.enter_context(redis_server())
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        with pytest.raises(UserError, match=f"Redis at {url}"):
            drive(job, lambda progress: server.close(), ledger=WholeLedger(patience=0.5))


def test_a_redis_that_is_full_is_waited_for(job: Job, worker: ByHand) -> None:
    worker.redis.config_set("maxmemory", 1)
    freed = threading.Timer(2, lambda: worker.redis.config_set("maxmemory", 0))
    freed.start()
    assert run(job, worker).totals.rows == 18
    assert not freed.is_alive()


def test_a_redis_that_is_full_when_a_message_is_sent_is_waited_for_longer_than_one_that_does_not_answer(
    job: Job, worker: ByHand, caplog: pytest.LogCaptureFixture
) -> None:
    send = Outbox(job, WholeLedger(patience=0.1), "").send
    worker.redis.config_set("maxmemory", 1)
    threading.Timer(2, lambda: worker.redis.config_set("maxmemory", 0)).start()
    send(3)
    assert worker.take() == 3
    assert "is full; waiting for workers to make room (command not allowed" in caplog.text


def test_a_redis_that_hangs_when_a_message_is_sent_ends_the_run(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(connection.SOCKET, "socket_timeout", 0.5)
    with redis_server() as url:
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        ledger = WholeLedger(patience=0.5)
        send = Outbox(job, ledger, "").send
        send(1)
        server = psutil.Process(ledger.connection.ask(lambda redis: redis.info("server"))["process_id"])
        server.suspend()
        with pytest.raises(UserError, match="took no message"):
            send(2)
        server.resume()


def test_half_of_a_limited_redis_is_left_free(worker: ByHand) -> None:
    assert byte_budget(worker.ledger) == settings().outstanding_bytes
    worker.redis.config_set("maxmemory", 10_000_000)
    assert byte_budget(worker.ledger) == 5_000_000


def test_two_producers_of_one_job_make_each_shard_once(job: Job, worker: ByHand) -> None:
    with ThreadPoolExecutor(2) as pool:
        producers = [pool.submit(drive, job) for _ in range(2)]
        while not all(producer.done() for producer in producers):
            if worker.messages >= job.batches or worker.taken:
                worker.embed()
            time.sleep(0.01)
    assert [producer.result().totals.rows for producer in producers] == [18, 18]
    assert sorted(worker.taken) == [0, 1, 2, 3, 4]
    assert job.committed() == set(range(5))


def test_batches_are_published_as_they_are_ready(job: Job, worker: ByHand) -> None:
    begun: dict[int, Future[Made]] = {}
    here = source(job)

    def make(number: int) -> "Future[Made]":
        assert sum(not made.done() for made in begun.values()) < 2
        return begun.setdefault(number, Future())

    def report(progress: Progress) -> None:
        for number in [number for number, made in begun.items() if not made.done()]:
            if number > 0 or len(worker.taken) == 4:  # the first one takes longer than all others together
                begun[number].set_result(here.make(number).result())
        worker.embed()

    drive(job, report, made_by=BatchSource(make, ahead=2))
    assert worker.taken == [1, 2, 3, 4, 0]
    assert job.committed() == set(range(5))


def test_what_is_wrong_with_a_batch_ends_the_run_and_the_next_one_goes_on(job: Job, worker: ByHand) -> None:
    here = source(job)

    def make(number: int) -> "Future[Made]":
        made = here.make(number)
        if number == 2:
            made = Future()
            made.set_exception(UserError("rows 8 to 11 cannot be tokenized"))
        return made

    with pytest.raises(UserError, match="rows 8 to 11"):
        drive(job, made_by=BatchSource(make, ahead=1), detach=True)
    assert worker.messages == 2
    assert run(job, worker).totals.rows == 18
    assert worker.taken == [0, 1, 2, 3, 4]


def test_a_batch_whose_producer_died_between_its_claim_and_its_message_is_published(job: Job, worker: ByHand) -> None:
    assert worker.ledger.publish(job, 3, packed(batch(job, 3)))  # no message follows
    worker.ledger.publish(job, 4, packed(batch(job, 4)))
    worker.redis.delete(f"embedmill:{job.key}:batch:4")  # nor bytes
    progress = run(job, worker, times=replace(SOON, missing_after=0.3))
    assert progress.totals.shards == 5


def test_a_shard_that_is_none_is_named_with_what_removes_it(job: Job, worker: ByHand) -> None:
    job.shard(1).write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"00001-of-00005\.parquet is no shard.*python -m verify .*, then python -m producer retry "
    ):
        drive(job)


def test_it_does_not_end_while_a_shard_is_missing_whatever_redis_lost(job: Job, worker: ByHand) -> None:
    """Another producer has published batch 3. While this one makes batch 2, another makes shard 4, and Redis loses
    everything: what is left to do is there by then, and batch 3 is in nobody's list."""
    worker.ledger.publish(job, 3, packed(batch(job, 3)))
    begun: list[int] = []
    here = source(job)

    def make(number: int) -> "Future[Made]":
        begun.append(number)
        if begun == [0, 1, 2]:
            commit_by_hand(job, batch(job, 4))
            worker.redis.flushall()
        return here.make(number)

    times = Times(look=0, inspect=1000)
    progress = drive(job, lambda progress: worker.embed(), made_by=BatchSource(make, ahead=1), times=times)
    assert job.committed() == set(range(5))
    assert progress.totals.shards == 5
    assert begun == [0, 1, 2, 3]


def test_no_batch_is_made_twice_after_redis_lost_bytes_that_another_producer_published(
    job: Job, worker: ByHand
) -> None:
    for number in range(5):
        worker.ledger.publish(job, number, packed(batch(job, number)))
        worker.redis.delete(f"embedmill:{job.key}:batch:{number}")
    begun: list[int] = []
    here = source(job)

    def make(number: int) -> "Future[Made]":
        begun.append(number)
        return here.make(number)

    drive(job, lambda progress: worker.embed(), made_by=BatchSource(make, ahead=8))
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert job.committed() == set(range(5))


def test_a_batch_that_is_on_its_way_into_redis_when_the_job_is_cancelled_leaves_nothing(
    job: Job, worker: ByHand
) -> None:
    """Cancelled between the order to put a batch and its end: by then the others are gone."""
    here = source(job)
    cancelled = threading.Event()

    def put_once_cancelled(made: Made, producer: str, late: "Future[bool]") -> None:
        cancelled.wait(30)
        late.set_result(made.put(producer).result())

    def make(number: int) -> "Future[Made]":
        made = here.make(number)
        if number < 2:
            return made

        def put(producer: str) -> "Future[bool]":
            late: Future[bool] = Future()
            threading.Thread(target=put_once_cancelled, args=(made.result(), producer, late)).start()
            return late

        held: Future[Made] = Future()
        held.set_result(Made(made.result().size, put))
        return held

    def report(progress: Progress) -> None:
        if worker.messages == 2 and not cancelled.is_set():
            worker.ledger.cancel(job)
            cancelled.set()

    with pytest.raises(UserError, match="was cancelled"):
        drive(job, report, made_by=BatchSource(make, ahead=2))
    assert [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")] == [
        f"embedmill:{job.key}:cancelled".encode()
    ]


def test_bytes_that_are_on_their_way_count_and_are_not_taken_for_lost(
    job: Job, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is claimed long before its bytes are there: room is kept for it, and it is not made again."""
    size = len(packed(batch(job, 0)))
    monkeypatch.setenv("EMBEDMILL_OUTSTANDING_BYTES", str(int(size * 1.5)))
    settings.cache_clear()
    here, begun = source(job), list[int]()
    puts: list[tuple[float, Callable[[], bool], Future[bool]]] = []

    def make(number: int) -> "Future[Made]":
        begun.append(number)
        made: Future[Made] = Future()
        real = here.make(number).result()
        made.set_result(Made(real.size, lambda producer: slowly(producer, real)))
        return made

    def slowly(producer: str, real: Made) -> "Future[bool]":
        assert worker.outstanding == 0
        put: Future[bool] = Future()
        puts.append((time.monotonic() + 0.3, lambda: real.put(producer).result(), put))
        return put

    def report(progress: Progress) -> None:
        for due, really, put in [*puts]:
            if time.monotonic() > due:
                put.set_result(really())
                puts.clear()
        worker.embed()

    assert drive(job, report, made_by=BatchSource(make, ahead=3)).totals.rows == 18
    assert (begun, worker.taken) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def in_two_processes(job: Job, work: Work) -> Progress:
    with tokenizing_apart(work, 2) as made_there:
        return drive(job, made_by=made_there)


class DiesOnceRedisHasIt(ByHandMade):
    """In a tokenizing process: it is killed after Redis has taken batch 2, and before it can say so."""

    def payload(self, number: int) -> bytes:
        put = making.Maker.put

        def put_and_die(maker: making.Maker, batch: int, producer: str) -> bool:
            own = put(maker, batch, producer)
            if batch == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return own

        if number == 2:
            setattr(making.Maker, "put", put_and_die)  # noqa: B010 - in that process alone
        return super().payload(number)


def test_a_tokenizing_process_that_dies_once_redis_has_its_bytes_ends_the_run_and_the_next_one_goes_on(
    job: Job, worker: ByHand
) -> None:
    with pytest.raises(UserError, match="a tokenizing process was killed"):
        in_two_processes(job, DiesOnceRedisHasIt(job, *OF_NO_DATASET))
    assert worker.ledger.fetch(job.key, 2) == packed(batch(job, 2))
    assert 2 not in worker.ledger.waiting(job)
    assert run(job, worker, times=replace(SOON, missing_after=0.3)).totals.rows == 18
    assert sorted(worker.taken) == [0, 1, 2, 3, 4]
    assert not [key for key in worker.redis.scan_iter() if not key.startswith(b"_kombu")]


def test_a_redis_that_is_full_is_waited_for_and_one_line_says_so_however_many_processes_there_are(
    job: Job, worker: ByHand, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    freed = threading.Timer(3, lambda: worker.redis.config_set("maxmemory", 0))

    def report(progress: Progress) -> None:
        if not freed.ident:
            worker.redis.config_set("maxmemory", 1)
            freed.start()
        worker.embed()

    with tokenizing_apart(ByHandMade(job, *OF_NO_DATASET), 2) as made_there:
        progress = drive(job, report, made_by=made_there)
    assert progress.totals.rows == 18
    assert not freed.is_alive()
    assert caplog.text.count("is full; waiting for workers to make room (command not allowed") == 1
    assert len(caplog.records) == 1
    assert capfd.readouterr().err == ""


def test_a_redis_that_goes_away_while_processes_put_batches_is_said_as_by_the_producer_alone(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as server:
        url = server.enter_context(redis_server())
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        with tokenizing_apart(ByHandMade(job, *OF_NO_DATASET), 2) as made_there:
            doomed = WholeLedger(patience=0.5)
            with pytest.raises(UserError, match=rf"no answer from Redis at {url} for 0 s .*must run there; start one"):
                drive(job, lambda progress: server.close(), made_by=made_there, ledger=doomed)
