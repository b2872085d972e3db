from pathlib import Path

import pytest
import redis

from contract.errors import UserError
from contract.ledger import QUEUE, AlteredBatch, DeadBatch, Ledger
from contract.settings import settings
from tests.contract.samples import a_job


@pytest.fixture
def ledger(redis_url: str) -> Ledger:
    return Ledger(patience=5)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def test_a_job_is_known_once_it_is_announced(ledger: Ledger, tmp_path: Path) -> None:
    job = a_job(tmp_path, prefix="ü: ")
    assert ledger.job(job.id) is None
    ledger.announce(job)
    assert ledger.job(job.id) == job
    assert ledger.job("another") is None


@pytest.mark.parametrize("record", [b"", b"{", b"null", b'{"folder": "/x"}', b"\xff\xfe"])
def test_a_record_that_is_no_jobs_is_no_job(record: bytes, ledger: Ledger, client: redis.Redis) -> None:
    client.set("embedmill:j:job", record)
    assert ledger.job("j") is None


def test_a_batch_is_there_until_it_is_settled(ledger: Ledger, client: redis.Redis, tmp_path: Path) -> None:
    payload, job = bytes(range(256)) * 10, a_job(tmp_path, rows=40)
    assert ledger.fetch(job.id, 7) is None
    assert ledger.publish(job, 7, payload)
    assert ledger.fetch(job.id, 7) == payload
    assert ledger.outstanding(job)[7].size == 2560
    assert (ledger.fetch(job.id, 8), ledger.fetch("i", 7)) == (None, None)
    ledger.begin_attempt(job.id, 7)
    ledger.save_search(job.id, 7, "{}")
    ledger.settle(job.id, 7)
    assert (ledger.fetch(job.id, 7), ledger.outstanding(job)) == (None, {})
    assert client.keys() == [f"embedmill:{job.id}:job".encode()]
    ledger.settle(job.id, 7)


def test_of_several_producers_one_publishes_a_batch_and_one_takes_it_back(ledger: Ledger, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    assert [ledger.publish(job, 1, b"first"), ledger.publish(job, 1, b"second")] == [True, False]
    assert ledger.fetch(job.id, 1) == b"first"
    assert [ledger.withdraw(job.id, 1), ledger.withdraw(job.id, 1)] == [True, False]
    assert ledger.fetch(job.id, 1) is None


@pytest.mark.parametrize("other", [b"first!", b"fIrst", b"x" * 10_000])
def test_bytes_that_nobody_published_are_refused(
    other: bytes, ledger: Ledger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 1, b"first")
    client.set(f"embedmill:{job.id}:batch:1", other)
    with pytest.raises(AlteredBatch):
        ledger.fetch(job.id, 1)


def test_a_batch_over_the_limit_is_refused(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 1, b"x" * 1000)
    monkeypatch.setenv("EMBEDMILL_BATCH_BYTES", "999")
    settings.cache_clear()
    with pytest.raises(AlteredBatch, match="EMBEDMILL_BATCH_BYTES"):
        ledger.fetch(job.id, 1)


def test_a_batch_that_no_worker_would_take_is_not_published(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_BATCH_BYTES", "999")
    settings.cache_clear()
    job = a_job(tmp_path)
    with pytest.raises(UserError, match=r"has 1,000 bytes.*smaller --batch-rows"):
        ledger.publish(job, 1, b"x" * 1000)
    assert not ledger.outstanding(job)


def test_batches_whose_bytes_are_gone_are_known(ledger: Ledger, client: redis.Redis, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    for number in range(3):
        ledger.publish(job, number, b"x")
    client.delete(f"embedmill:{job.id}:batch:1")
    assert ledger.vanished(job.id, [0, 1, 2]) == [1]
    assert ledger.vanished(job.id, []) == []


def test_attempts_are_counted_for_each_batch_until_it_is_settled(ledger: Ledger) -> None:
    assert [ledger.begin_attempt("j", 1) for _ in range(3)] == [1, 2, 3]
    assert (ledger.begin_attempt("j", 2), ledger.begin_attempt("i", 1)) == (1, 1)
    ledger.settle("j", 1)
    assert ledger.begin_attempt("j", 1) == 1


def test_a_full_redis_does_not_keep_a_worker_from_a_batch(ledger: Ledger, client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)
    assert ledger.begin_attempt("j", 1) == 1
    ledger.settle("j", 1)


WHY = DeadBatch(error="ValueError: nicht möglich", where="a.py:3 in f", attempts=4)


def test_a_dead_batch_has_its_reason_until_it_is_revived(ledger: Ledger, tmp_path: Path) -> None:
    job = a_job(tmp_path, rows=40)
    assert ledger.dead(job) == {}
    ledger.bury(job.id, 3, WHY)
    ledger.begin_attempt(job.id, 3)
    assert ledger.dead(job) == {3: WHY}
    ledger.revive(job)
    assert ledger.dead(job) == {}
    assert ledger.begin_attempt(job.id, 3) == 1
    ledger.revive(job)


def test_what_is_noted_of_batches_that_the_job_has_not_is_not_seen(
    ledger: Ledger, client: redis.Redis, tmp_path: Path
) -> None:
    job = a_job(tmp_path)
    for name in (str(job.batches), "999999", "-1", "x", "", "²"):
        client.hset(f"embedmill:{job.id}:out", name, "{}")
        client.hset(f"embedmill:{job.id}:dead", name, WHY.model_dump_json())
    assert (ledger.outstanding(job), ledger.dead(job)) == ({}, {})


def test_a_job_in_another_folder_is_tried_anew(ledger: Ledger, tmp_path: Path) -> None:
    first, second = a_job(tmp_path / "first", rows=40), a_job(tmp_path / "second", rows=40)
    assert first.id == second.id
    ledger.announce(first)
    ledger.begin_attempt(first.id, 1)
    ledger.bury(first.id, 3, WHY)
    ledger.announce(first)
    assert ledger.dead(first) == {3: WHY}
    ledger.announce(second)
    assert ledger.dead(second) == {}
    assert ledger.begin_attempt(second.id, 1) == 1


def test_messages_wait_or_are_held(ledger: Ledger, client: redis.Redis) -> None:
    assert (ledger.queued(), ledger.held()) == (0, 0)
    client.rpush(QUEUE, "a", "b")
    client.hset("unacked", "tag", "c")
    assert (ledger.queued(), ledger.held()) == (2, 1)


def test_the_keys_are_the_documented_ones(ledger: Ledger, client: redis.Redis, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    ledger.publish(job, 3, b"x")
    ledger.begin_attempt(job.id, 3)
    ledger.save_search(job.id, 3, "{}")
    ledger.bury(job.id, 4, DeadBatch(error="why", where="", attempts=1))
    keys = ("job", "out", "batch:3", "attempts", "search", "dead")
    assert set(client.keys()) == {f"embedmill:{job.id}:{key}".encode() for key in keys}
