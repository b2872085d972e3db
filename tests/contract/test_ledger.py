import base64
import json
from pathlib import Path

import pytest
import redis

from contract.errors import UserError
from contract.job import Job, JobKey
from contract.redis.heartbeat import WORKERS, Heartbeat, key_of
from contract.redis.keys import JOBS, KEPT_FOR, key_of as key_for, queue_of
from contract.redis.ledger import DeadBatch
from contract.redis.messages import Held
from contract.redis.producing import Publication
from contract.redis.working import AlteredBatch
from contract.settings import settings
from tests.contract.samples import WholeLedger, a_job

J, K = JobKey("j"), JobKey("k")


def test_a_job_is_known_once_it_is_announced(ledger: WholeLedger, tmp_path: Path) -> None:
    job = a_job(tmp_path, prefix="ü: ")
    assert ledger.job(job.key) is None
    ledger.announce(job)
    assert ledger.job(job.key) == job
    assert ledger.job("another") is None


@pytest.mark.parametrize("record", [b"", b"{", b"null", b'{"folder": "/x"}', b"\xff\xfe"])
def test_a_record_that_is_no_jobs_is_no_job(record: bytes, ledger: WholeLedger, client: redis.Redis) -> None:
    client.set("embedmill:j:job", record)
    assert ledger.job("j") is None


def test_a_batch_is_there_until_it_is_settled(ledger: WholeLedger, client: redis.Redis, tmp_path: Path) -> None:
    payload, job = bytes(range(256)) * 10, a_job(tmp_path, rows=40)
    assert ledger.fetch(job.key, 7) is None
    assert ledger.publish(job, 7, payload)
    assert ledger.fetch(job.key, 7) == payload
    assert ledger.outstanding(job)[7].size == 2560
    assert (ledger.fetch(job.key, 8), ledger.fetch(K, 7)) == (None, None)
    ledger.begin_attempt(job.key, 7)
    ledger.save_search(job.key, 7, "{}")
    ledger.settle(job.key, 7)
    assert (ledger.fetch(job.key, 7), ledger.outstanding(job)) == (None, {})
    assert set(client.keys()) == {f"embedmill:{job.key}:job".encode(), b"embedmill:jobs"}
    ledger.settle(job.key, 7)


def test_of_several_producers_one_publishes_a_batch_and_one_takes_it_back(ledger: WholeLedger, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    assert [ledger.publish(job, 1, b"first"), ledger.publish(job, 1, b"second")] == [True, False]
    assert ledger.fetch(job.key, 1) == b"first"
    assert [ledger.withdraw(job.key, 1), ledger.withdraw(job.key, 1)] == [True, False]
    assert ledger.fetch(job.key, 1) is None


def test_a_publication_goes_on_where_redis_stopped_it(
    ledger: WholeLedger, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    """It is refused once it has put the bytes: there is no entry without them."""
    job = a_job(tmp_path)
    rights = ("~*", "+time", "+hget", "+zadd", "+set")
    client.execute_command("ACL", "SETUSER", "half", "on", "nopass", *rights)  # type: ignore[no-untyped-call]
    half = redis.Redis.from_url(redis_url, username="half", password="any")
    publication = Publication(job, 1, b"first")
    for _ in range(2):
        with pytest.raises(redis.exceptions.NoPermissionError):
            publication(half, "me")
    assert (ledger.outstanding(job), ledger.fetch(job.key, 1)) == ({}, None)
    assert [publication(client, "me"), publication(client, "me")] == [True, True]
    assert not ledger.publish(job, 1, b"second")
    assert ledger.fetch(job.key, 1) == b"first"


def test_what_another_producer_has_claimed_or_made_is_not_published_and_leaves_no_bytes(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    client.hset(key_for(job.key, "claims"), "1", "another")
    client.set(key_for(job.key, "next"), "1")
    assert [Publication(job, batch, b"first")(client, "me") for batch in (1, 0)] == [False, False]
    assert not client.keys("*:batch:*")
    assert ledger.outstanding(job) == {}


@pytest.mark.parametrize("other", [b"first!", b"fIrst", b"x" * 10_000])
def test_bytes_that_nobody_published_are_refused(
    other: bytes, ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 1, b"first")
    client.set(f"embedmill:{job.key}:batch:1", other)
    with pytest.raises(AlteredBatch):
        ledger.fetch(job.key, 1)


def test_a_batch_over_the_limit_is_refused(
    ledger: WholeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 1, b"x" * 1000)
    monkeypatch.setenv("EMBEDMILL_BATCH_BYTES", "999")
    settings.cache_clear()
    with pytest.raises(AlteredBatch, match="EMBEDMILL_BATCH_BYTES"):
        ledger.fetch(job.key, 1)


def test_a_batch_that_no_worker_would_take_is_not_published(
    ledger: WholeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_BATCH_BYTES", "999")
    settings.cache_clear()
    job = a_job(tmp_path)
    with pytest.raises(UserError, match=r"has 1,000 bytes.*smaller --batch-rows"):
        ledger.publish(job, 1, b"x" * 1000)
    assert not ledger.outstanding(job)


def test_the_bytes_of_each_batch_that_is_out_are_known(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path, rows=40)
    assert ledger.sizes(job) == {}
    ledger.publish(job, 1, b"x" * 7)
    ledger.publish(job, 9, b"x" * 1000)
    client.hset(key_for(job.key, "out"), mapping={"3": "garbage", "10": "{}", "a,b:1": "{}", b"\xff": b"\xff"})
    assert ledger.sizes(job) == {1: 7, 9: 1000, 3: 0}
    assert ledger.sizes(job).keys() == ledger.outstanding(job).keys()


def test_batches_whose_bytes_are_gone_are_known(ledger: WholeLedger, client: redis.Redis, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    for number in range(3):
        ledger.publish(job, number, b"x")
    client.delete(f"embedmill:{job.key}:batch:1")
    assert ledger.vanished(job, [0, 1, 2]) == [1]
    assert ledger.vanished(job, []) == []


def test_attempts_are_counted_for_each_batch_until_it_is_settled(ledger: WholeLedger) -> None:
    assert [ledger.begin_attempt(J, 1) for _ in range(3)] == [1, 2, 3]
    assert (ledger.begin_attempt(J, 2), ledger.begin_attempt(K, 1)) == (1, 1)
    ledger.settle(J, 1)
    assert ledger.begin_attempt(J, 1) == 1


def test_a_full_redis_does_not_keep_a_worker_from_a_batch(ledger: WholeLedger, client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)
    assert ledger.begin_attempt(J, 1) == 1
    ledger.settle(J, 1)


WHY = DeadBatch(error="ValueError: nicht möglich", where="a.py:3 in f", attempts=4)


def test_a_dead_batch_has_its_reason_until_it_is_revived(ledger: WholeLedger, tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=40)
    assert ledger.dead(job) == {}
    ledger.bury(job.key, 3, WHY)
    ledger.begin_attempt(job.key, 3)
    assert ledger.dead(job) == {3: WHY}
    ledger.revive(job)
    assert ledger.dead(job) == {}
    assert ledger.begin_attempt(job.key, 3) == 1
    ledger.revive(job)


def test_what_is_noted_of_batches_that_the_job_has_not_is_not_seen(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    for name in (str(job.batches), "999999", "-1", "x", "", "²"):
        client.hset(f"embedmill:{job.key}:out", name, "{}")
        client.hset(f"embedmill:{job.key}:dead", name, WHY.model_dump_json())
    assert (ledger.outstanding(job), ledger.dead(job)) == ({}, {})


def test_a_job_in_another_folder_is_another_job(ledger: WholeLedger, tmp_path: Path) -> None:
    first, second = a_job(tmp_path / "first", rows=40), a_job(tmp_path / "second", rows=40)
    assert first.id == second.id
    ledger.announce(first)
    ledger.begin_attempt(first.key, 1)
    ledger.bury(first.key, 3, WHY)
    ledger.announce(second)
    assert (ledger.dead(first), ledger.dead(second)) == ({3: WHY}, {})
    assert ledger.begin_attempt(second.key, 1) == 1
    assert (ledger.job(first.key), ledger.job(second.key)) == (first, second)
    assert ledger.jobs() == {first.key, second.key}


def test_the_producer_that_began_last_says_the_priority(ledger: WholeLedger, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    urgent = job.model_copy(update={"priority": 7})
    ledger.announce(job)
    ledger.announce(urgent)
    ledger.publish(job, 1, b"of the producer that began first")
    assert ledger.priorities() == {job.key: 7}
    ledger.forget(job)
    assert ledger.priorities() == {}
    ledger.publish(urgent, 2, b"after Redis lost everything")
    assert ledger.priorities() == {job.key: 7}


def message(job: Job, batch: int) -> str:
    """As Celery writes it."""
    return json.dumps({"body": base64.b64encode(json.dumps([[job.key, batch], {}, {}]).encode()).decode()})


GARBAGE = ("", "{", "[]", "{}", '{"body": 1}', '{"body": "eA=="}', '{"body": "W1swXSwge30sIHt9XQ=="}')


def test_messages_wait_or_are_held_and_garbage_is_neither(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job, other = a_job(tmp_path / "first"), a_job(tmp_path / "second")
    assert (ledger.queued(job.key), ledger.waiting(job), ledger.held()) == (0, set(), [])
    client.rpush(queue_of(job.key), message(job, 3), message(job, 4), message(other, 5), *GARBAGE)
    assert (ledger.queued(job.key), ledger.queued(other.key), ledger.waiting(job)) == (3 + len(GARBAGE), 0, {3, 4})
    client.hset("unacked", "tag", json.dumps([json.loads(message(job, 7)), "", "queue"]))
    for number, garbage in enumerate(GARBAGE):
        client.hset("unacked", f"garbage {number}", garbage)
    client.zadd("unacked_index", {"tag": 1.0})
    (held,) = ledger.held()
    assert held == Held("tag", job.key, 7, message(job, 7))
    assert [ledger.take_back(held), ledger.take_back(held)] == [True, False]
    ledger.put_first(held)
    assert client.rpop(queue_of(job.key)) == message(job, 7).encode()
    assert (ledger.held(), client.zcard("unacked_index"), client.hlen("unacked")) == ([], 0, len(GARBAGE))


def test_a_cancelled_or_ended_job_leaves_nothing_and_another_keeps_all(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job, other = a_job(tmp_path / "first"), a_job(tmp_path / "second")
    for one in (job, other):
        ledger.announce(one)
        ledger.publish(one, 1, b"x")
        ledger.begin_attempt(one.key, 1)
        ledger.set_rows(one, 7)
        client.rpush(queue_of(one.key), message(one, 1))
        client.hset("unacked", f"tag of {one.folder}", json.dumps([json.loads(message(one, 1)), "", "queue"]))
    before = {key for key in client.scan_iter() if job.key.encode() not in key}
    assert ledger.cancel(job) == 1
    assert {key for key in client.scan_iter() if job.key.encode() in key} == {f"embedmill:{job.key}:cancelled".encode()}
    assert before <= set(client.keys())
    assert (ledger.jobs(), [held.job for held in ledger.held()]) == ({other.key}, [other.key])
    assert (ledger.cancelled(job), ledger.cancelled(other)) == (True, False)
    ledger.announce(job)
    assert not ledger.cancelled(job)
    ledger.forget(job)
    ledger.forget(other)
    assert client.keys() == []


def test_a_workers_fault_is_no_attempt_and_new_rows_are_counted(ledger: WholeLedger) -> None:
    ledger.begin_attempt(J, 1)
    ledger.end_attempt(J, 1)
    assert ledger.begin_attempt(J, 1) == 1
    ledger.settle(J, 1, rows=5)
    ledger.settle(J, 1)
    assert (ledger.rows(J), ledger.rows(K)) == (5, 0)


def test_a_last_word_about_a_batch_after_the_jobs_end_leaves_nothing_that_stays(
    ledger: WholeLedger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 1, b"x")
    ledger.forget(job)
    ledger.settle(job.key, 1, rows=5)
    assert client.keys() == [f"embedmill:{job.key}:rows".encode()]
    assert 0 < client.ttl(f"embedmill:{job.key}:rows") <= KEPT_FOR


def test_heartbeats_are_read_and_those_that_redis_forgot_are_too(ledger: WholeLedger, client: redis.Redis) -> None:
    one = Heartbeat(worker="host:1:2/0", state="computing", beat=5.0, since=1.0, job="j", batch=3)
    client.set(key_of(one.worker), one.model_dump_json())
    client.set(key_of("garbage"), "no heartbeat")
    client.sadd(WORKERS, one.worker, "garbage", "forgotten")
    assert ledger.heartbeats() == [one]
    assert client.smembers(WORKERS) == {one.worker.encode(), b"garbage"}


def test_the_keys_are_the_documented_ones(ledger: WholeLedger, client: redis.Redis, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 3, b"x")
    ledger.begin_attempt(job.key, 3)
    ledger.save_search(job.key, 3, "{}")
    ledger.bury(job.key, 4, DeadBatch(error="why", where="", attempts=1))
    ledger.settle(job.key, 5, rows=2)
    client.set(f"embedmill:{job.key}:cancelled", "1")
    client.rpush(queue_of(job.key), "a message")
    keys = ("job", "out", "batch:3", "attempts", "search", "dead", "rows", "cancelled", "queue")
    assert set(client.keys()) == {f"embedmill:{job.key}:{key}".encode() for key in keys} | {JOBS.encode()}
