"""Fixtures of the tests of what lies in Redis."""

import pytest
import redis

from tests.contract.samples import WholeLedger


@pytest.fixture
def ledger(redis_url: str) -> WholeLedger:
    return WholeLedger(patience=5)


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)
