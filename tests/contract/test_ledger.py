import logging
import threading
import time
from pathlib import Path

import pytest
import redis

from contract.errors import UserError
from contract.ledger import QUEUE, Ledger, redis_address
from contract.settings import settings
from examples.local import free_port, redis_server
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


def test_a_batch_is_there_until_it_is_settled(ledger: Ledger, client: redis.Redis) -> None:
    payload = bytes(range(256)) * 10
    assert (ledger.fetch("j", 7), ledger.size("j", 7)) == (None, 0)
    ledger.put("j", 7, payload)
    assert (ledger.fetch("j", 7), ledger.size("j", 7)) == (payload, 2560)
    assert (ledger.fetch("j", 8), ledger.fetch("i", 7)) == (None, None)
    ledger.begin_attempt("j", 7)
    ledger.settle("j", 7)
    assert (ledger.fetch("j", 7), ledger.size("j", 7)) == (None, 0)
    assert client.keys() == []
    ledger.settle("j", 7)


def test_attempts_are_counted_for_each_batch_until_it_is_settled(ledger: Ledger) -> None:
    assert [ledger.begin_attempt("j", 1) for _ in range(3)] == [1, 2, 3]
    assert (ledger.begin_attempt("j", 2), ledger.begin_attempt("i", 1)) == (1, 1)
    ledger.settle("j", 1)
    assert ledger.begin_attempt("j", 1) == 1


def test_a_dead_batch_has_its_reason_until_it_is_revived(ledger: Ledger) -> None:
    assert ledger.dead("j") == {}
    ledger.bury("j", 3, "nicht möglich")
    ledger.bury("j", 12, "no vector")
    ledger.begin_attempt("j", 3)
    assert ledger.dead("j") == {3: "nicht möglich", 12: "no vector"}
    ledger.revive("j", [3])
    assert ledger.dead("j") == {12: "no vector"}
    assert ledger.begin_attempt("j", 3) == 1
    ledger.revive("j", [])
    assert ledger.dead("j") == {12: "no vector"}


def test_messages_are_those_that_wait_and_those_that_a_worker_holds(ledger: Ledger, client: redis.Redis) -> None:
    assert ledger.messages() == 0
    client.rpush(QUEUE, "a", "b")
    client.hset("unacked", "tag", "c")
    assert ledger.messages() == 3


def test_the_keys_are_the_documented_ones(ledger: Ledger, client: redis.Redis, tmp_path: Path) -> None:
    job = a_job(tmp_path)
    ledger.announce(job)
    ledger.put(job.id, 3, b"x")
    ledger.begin_attempt(job.id, 3)
    ledger.bury(job.id, 4, "why")
    start = f"embedmill:{job.id}"
    assert set(client.keys()) == {
        key.encode() for key in (f"{start}:job", f"{start}:batch:3", f"{start}:attempts", f"{start}:dead")
    }


def test_an_unreachable_redis_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://miller:grain@127.0.0.1:{(port := free_port())}/2")
    settings.cache_clear()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as caught:
        Ledger(patience=0.6).put("j", 0, b"x")
    assert 0.5 < time.monotonic() - began < 10
    message = caught.value.format_message()
    assert f"no answer from Redis at redis://127.0.0.1:{port}/2" in message
    assert "EMBEDMILL_REDIS_URL" in message
    assert "does not answer" in caplog.text
    assert "grain" not in message + caplog.text
    assert "miller" not in message + caplog.text


def test_a_wrong_password_is_no_answer_and_is_not_shown(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.config_set("requirepass", "right")
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", redis_url.replace("//", "//:grain@"))
    settings.cache_clear()
    with pytest.raises(UserError, match="no answer from Redis") as caught:
        Ledger(patience=0).messages()
    assert "grain" not in str(caught.value)


def test_a_redis_that_comes_back_within_the_patience_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    settings.cache_clear()
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(Ledger(patience=None).begin_attempt("j", 0)))
    waiting.start()
    time.sleep(0.2)
    with redis_server(port=port):
        waiting.join(20)
    assert answers == [1]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "redis://localhost:6379"),
        ("redis://user:pw@10.0.0.1:7000/1", "redis://10.0.0.1:7000/1"),
        ("rediss://:p%40w@example.org/0", "rediss://example.org:6379/0"),
    ],
)
def test_the_address_in_messages_has_no_secret(url: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
    settings.cache_clear()
    assert redis_address() == address
