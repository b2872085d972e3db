"""What Redis knows of jobs, batches and workers, as both the producer and the workers ask it."""

from typing import TypeVar, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.client import Pipeline

from contract.job import Job, JobKey
from contract.redis import heartbeat
from contract.redis.connection import Connection, text
from contract.redis.heartbeat import Heartbeat
from contract.redis.keys import JOBS, KEPT_FOR, OF_A_BATCH, batch_key, key_of, queue_of


class Outstanding(BaseModel):
    """A batch that was published and has no shard yet."""

    model_config = ConfigDict(frozen=True)

    size: int
    """Bytes."""
    sha256: str
    """Of the bytes: a worker decodes no others."""
    published: float
    """Seconds since the epoch, by Redis's clock."""


class DeadBatch(BaseModel):
    """A batch that was given up."""

    model_config = ConfigDict(frozen=True)

    error: str
    """The exception's type and message, the last line of its traceback."""
    where: str
    """The innermost frame of the traceback, file and line; empty where the process died."""
    attempts: int


NOTHING = Outstanding(size=0, sha256="", published=0)
"""Stands for an ``Outstanding`` that cannot be read: somebody put something else there. No bytes have its hash."""

_Record = TypeVar("_Record", Outstanding, DeadBatch)


def parsed(kind: type[_Record], value: bytes | str) -> _Record | None:
    """A hash's value; None for what is none of ours. Garbage in Redis must not stop a producer or a worker."""
    try:
        return kind.model_validate_json(value)
    except ValidationError:
        return None


def clock(redis: redis.Redis) -> float:
    """Redis's clock, the one that all share. Seconds since the epoch."""
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


class Ledger:
    """What both sides ask. Every method raises ``UserError`` if Redis does not answer within the patience.

    Args:
        patience: seconds that a question waits for a Redis that does not answer; None: for ever.
    """

    def __init__(self, patience: float | None) -> None:
        self.connection = Connection(patience)

    def jobs(self) -> set[JobKey]:
        """Keys of the jobs that are under way, and of such as were left behind."""
        return set(self.priorities())

    def priorities(self) -> dict[JobKey, float]:
        """The same jobs → their priorities: batches of a higher one are taken first."""
        found = self.connection.ask(lambda redis: redis.zrange(JOBS, 0, -1, withscores=True))
        return {JobKey(text(key)): priority for key, priority in cast("list[tuple[bytes, float]]", found)}

    def job(self, key: str) -> Job | None:
        """The job of this key; None if nobody announced it or its record is not a job's."""
        found = self.connection.ask(lambda redis: redis.get(key_of(JobKey(key), "job")))
        try:
            job = Job.model_validate_json(found) if found else None
        except ValidationError:
            return None
        return job if job and job.id == job.due_id and job.key == key else None

    def rows(self, key: JobKey) -> int:
        """Rows of a job that have a shard, as far as Redis knows."""
        found = self.connection.ask(lambda redis: redis.get(key_of(key, "rows")))
        return int(found) if found and found.isdigit() else 0

    def queued(self, key: JobKey) -> int:
        """Messages of a job that wait for a worker."""
        return int(self.connection.ask(lambda redis: redis.llen(queue_of(key))))

    def heartbeats(self) -> list[Heartbeat]:
        """What every worker last said, of the last hour."""
        workers = sorted(self.connection.ask(lambda redis: redis.smembers(heartbeat.WORKERS)))
        records = self.connection.pipeline(
            lambda pipeline: [pipeline.get(heartbeat.key_of(text(name))) for name in workers]
        )
        if gone := [name for name, record in zip(workers, records, strict=True) if record is None]:
            self.connection.ask(lambda redis: redis.srem(heartbeat.WORKERS, *gone))
        return [found for record in records if record and (found := heartbeat.read(record))]

    def now(self) -> float:
        """Redis's clock, the one that all share. Seconds since the epoch."""
        return self.connection.ask(clock)

    def withdraw(self, key: JobKey, batch: int) -> bool:
        """Take back a batch that was published.

        Returns:
            Whether it was still out, so that of several callers one publishes it again.
        """
        answers = self.connection.pipeline(
            lambda pipeline: (
                pipeline.hdel(key_of(key, "out"), str(batch)),
                pipeline.delete(batch_key(key, batch)),
            )
        )
        return bool(answers[0])

    def settle(self, key: JobKey, batch: int, rows: int = 0) -> None:
        """Forget a batch that has its shard, of which ``rows`` rows are new."""

        def fill(pipeline: Pipeline) -> None:
            if rows:
                pipeline.incrby(key_of(key, "rows"), rows)
                pipeline.expire(key_of(key, "rows"), KEPT_FOR)
            pipeline.delete(batch_key(key, batch))
            for what in OF_A_BATCH:
                pipeline.hdel(key_of(key, what), str(batch))

        self.connection.pipeline(fill)
