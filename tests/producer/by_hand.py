"""A job whose workers and batches are a test's own, and its producers."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import redis

from contract.batch import Batch
from contract.job import Job
from contract.redis.claims import Claims
from contract.redis.keys import queue_of
from contract.settings import settings
from contract.tokens import TokenRows
from producer.batches import Work
from producer.driver import Driver, Times
from producer.progress import Progress
from producer.tokenizing import BatchSource, tokenizing_here
from tests.contract.samples import WholeLedger, a_job, commit_by_hand, packed

SOON = Times(look=0.02, inspect=0.05)


class ByHand:
    """A worker, one message at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ledger = WholeLedger(patience=5)
        self.redis = redis.Redis.from_url(settings().redis_url)
        self.taken: list[int] = []
        """Batches whose message was taken, in this order."""

    def take(self) -> int | None:
        message = self.redis.rpop(queue_of(self.job.key))
        if message is None:
            return None
        assert isinstance(message, bytes)
        (key, number), *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
        assert key == self.job.key
        self.taken.append(number)
        return int(number)

    def embed(self) -> None:
        """Take a message, if there is one, and make its batch's shard."""
        if (number := self.take()) is not None:
            payload = self.ledger.fetch(self.job.key, number)
            if payload is not None:
                commit_by_hand(self.job, Batch.from_bytes(payload))
                self.ledger.settle(self.job.key, number)

    @property
    def outstanding(self) -> int:
        return sum(entry.size for entry in self.ledger.outstanding(self.job).values())

    @property
    def messages(self) -> int:
        return self.ledger.queued(self.job.key)


def batch(job: Job, number: int) -> Batch:
    row_id = np.array(job.row_range(number))
    n_tokens = np.where(row_id == 5, 0, np.where(row_id == 6, 9, 3)).astype(np.int32)
    lengths = np.minimum(n_tokens, 8)
    tokens = TokenRows(np.ones(lengths.sum(), np.int32), lengths)
    return Batch(job.id, number, job.fingerprint, row_id, tokens, n_tokens)


def committed_job(folder: Path) -> Job:
    """18 rows in 5 batches, each with its shard: vectors of the row's number and 1; row 5 has none."""
    job = a_job(folder, rows=18, batch_rows=4)
    job.save()
    for number in range(job.batches):
        commit_by_hand(job, batch(job, number))
    return job


class ByHandMade(Work):
    """Of no dataset."""

    def payload(self, number: int) -> bytes:
        return packed(batch(self.job, number))


OF_NO_DATASET: Any = (None, None)


def source(job: Job) -> BatchSource:
    return tokenizing_here(ByHandMade(job, *OF_NO_DATASET))


def drive(
    job: Job,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    made_by: BatchSource | None = None,
    detach: bool = False,
    times: Times = SOON,
    ledger: WholeLedger | None = None,
) -> Progress:
    """As a producer does."""
    ledger = ledger or WholeLedger(patience=5)
    claims = Claims(job, ledger.connection)
    with claims.joined():
        return Driver(claims, made_by or source(job), ledger, detach=detach, times=times).run(report)
