"""Claims in a real Redis."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from contract.job import Job
from contract.redis.claims import Claimed, Claims, division_of
from contract.redis.connection import Connection, Script
from contract.redis.keys import key_of, producer_key
from contract.settings import settings
from tests.commands import wait_until
from tests.contract.samples import WholeLedger, a_job

ROOT = Path(__file__).parent.parent.parent
"""Where ``tests`` can be imported from."""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return a_job(tmp_path, rows=80)


def claims_of(job: Job) -> Claims:
    claims = Claims(job, Connection(patience=5))
    claims.join()
    return claims


def test_a_batch_is_handed_out_once(job: Job, ledger: WholeLedger) -> None:
    one, other = claims_of(job), claims_of(job)
    assert one.claim([0, 1], 2) == Claimed(2, [0, 1])
    assert other.claim([0, 1, 2, 3], 4) == Claimed(4, [2, 3])
    assert one.claim([0], 0) == Claimed(4, [0])  # asked again
    ledger.publish(job, 5, b"x")
    assert one.claim([4, 5, 6], 7) == Claimed(7, [4, 6])
    ledger.settle(job.key, 5)
    other.release(3)
    assert one.claim([3, 5], 0) == Claimed(7, [])  # made, or nobody's: not for want of a claim
    assert one.division().alive == (one.producer, other.producer)
    assert one.division().of(one.producer) == [0, 1, 4, 6]


def test_what_is_lost_is_claimed_by_whoever_comes_first(job: Job, ledger: WholeLedger) -> None:
    one, other = claims_of(job), claims_of(job)
    one.claim([0, 1], 9)
    ledger.publish(job, 2, b"x")
    one.free([0, 2, 3])
    assert one.division().orphans == [3]
    assert other.claim([0, 2, 3]) == Claimed(9, [3])
    assert one.claim([3]) == Claimed(9, [])


def test_the_claims_of_a_producer_that_ends_are_anybodys(job: Job, ledger: WholeLedger) -> None:
    one, other = Claims(job, ledger.connection), claims_of(job)
    with one.joined():
        one.claim([0, 1], 2)
        assert other.claim([0]) == Claimed(2, [])
    assert other.division().orphans == [0, 1]
    assert other.claim([0]) == Claimed(2, [0])


def test_a_producer_elsewhere_is_gone_once_its_key_is(job: Job, client: redis.Redis) -> None:
    one = claims_of(job)
    strange = "1000.000000 host elsewhere 1 1"
    client.sadd(key_of(job.key, "producers"), strange)
    client.set(producer_key(job.key, strange), "1")
    client.hset(key_of(job.key, "claims"), "3", strange)
    assert (one.claim([3]), one.division().alive) == (Claimed(0, []), (strange, one.producer))
    assert one.division().here == 1
    client.delete(producer_key(job.key, strange))
    assert one.division().orphans == [3]
    assert (one.claim([3]), one.division().alive) == (Claimed(0, [3]), (one.producer,))
    assert client.smembers(key_of(job.key, "producers")) == {one.producer.encode()}


def test_a_producer_that_died_on_this_machine_is_gone_at_once(job: Job, ledger: WholeLedger) -> None:
    program = f"""
from tests.contract.test_claims import *
claims = claims_of(Job.model_validate_json({job.model_dump_json()!r}))
claims.claim([0, 1], 2)
print(claims.producer)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    one = claims_of(job)
    assert f" {os.getpid()} " in one.producer
    assert done.stdout.strip() not in one.division().alive
    assert one.claim([0, 1, 2], 3) == Claimed(3, [0, 1, 2])


def test_a_producer_is_alive_while_its_process_is(
    job: Job, ledger: WholeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_HEARTBEAT_TIMEOUT", "3")
    settings.cache_clear()
    one = Claims(job, ledger.connection)
    with one.joined():
        ledger.connection.ask(lambda redis: redis.pexpire(producer_key(job.key, one.producer), 700))
        wait_until(lambda: ledger.connection.ask(lambda redis: redis.pttl(producer_key(job.key, one.producer))) > 2000)
    assert division_of(job, ledger.connection).alive == ()


def test_a_producer_that_redis_knows_no_more_gets_nothing_until_it_joins_again(
    job: Job, ledger: WholeLedger, client: redis.Redis
) -> None:
    one = claims_of(job)
    one.claim([0, 1], 2)
    client.flushall()
    assert one.claim([5]) is None
    one.join()
    assert one.claim([0, 1]) == Claimed(0, [0, 1])
    ledger.forget(job)
    assert one.claim([5]) is None


def test_a_full_redis_lets_no_claim_end(job: Job, client: redis.Redis) -> None:
    one = claims_of(job)
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        Script("redis.call('set', KEYS[1], ARGV[1])")(client, ["x"], ["1"])
    assert client.pexpire(producer_key(job.key, one.producer), 1000)


def test_what_somebody_else_put_there_stops_no_producer(job: Job, client: redis.Redis) -> None:
    one = claims_of(job)
    client.set(key_of(job.key, "next"), "many")
    client.hset(key_of(job.key, "claims"), "all of them", "mine")
    client.sadd(key_of(job.key, "producers"), b"\xff", "a b c d e f")
    assert one.division() == (0, {}, (one.producer,))
    assert one.claim([0], 1) == Claimed(1, [0])
