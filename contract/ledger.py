"""What Redis holds of a job: only the way to the shards, never the truth about them.

::

    embedmill:<job>:job          the Job, JSON
    embedmill:<job>:out          hash: batch -> Outstanding, JSON     claimed by the producer that publishes the batch
    embedmill:<job>:batch:<n>    the Batch, bytes
    embedmill:<job>:attempts     hash: batch -> times begun           counted by the workers
    embedmill:<job>:search       hash: batch -> how far the search for its bad row is, JSON
    embedmill:<job>:dead         hash: batch -> DeadBatch, JSON       set by the worker that gave the batch up
    embedmill                    Celery's queue; a message is a job's id and a batch's number

A batch's ``out``, bytes, attempts and search go when its shard is there. Any of it may be lost at any time: the
producer looks at the shards and publishes again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import OutOfMemoryError, ResponseError

from contract.connection import UNREACHABLE, Connection
from contract.errors import UserError
from contract.job import Job
from contract.settings import settings
from contract.words import count

QUEUE = "embedmill"
"""The Celery queue, which is a Redis list of this name."""

TASK = "worker.embed_batch"
"""The Celery task's name; its arguments are the job's id and the batch's number."""


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
    """What it says: the exception's type and message, the last line of its traceback."""
    where: str
    """The innermost place of the traceback, file and line; empty where the process died."""
    attempts: int


_Record = TypeVar("_Record", Outstanding, DeadBatch)

_NOBODYS = Outstanding(size=0, sha256="", published=0)
"""What is read where somebody's garbage is in the place of an ``Outstanding``: no bytes are those that it describes."""


class AlteredBatch(Exception):
    """A batch's bytes are not those that its producer published."""


class Ledger(Connection):
    """A job's keys."""

    # The producer's side

    def announce(self, job: Job) -> None:
        """Let workers know the job. What was noted of its batches for another folder says nothing of this one."""
        before = self.job(job.id)
        if before and before.folder != job.folder:
            self.together(*(("delete", _key(job.id, what)) for what in ("dead", "attempts", "search")))
        self.call("set", _key(job.id, "job"), job.model_dump_json())

    def publish(self, job: Job, batch: int, payload: bytes) -> bool:
        """Put a batch's bytes where workers find them.

        Returns:
            Whether it was this call that published it, and not another producer of the same job.

        Raises:
            UserError: it is larger than a worker takes, as batches of long texts in windows or kept columns may be.
        """
        if len(payload) > settings().batch_bytes:
            raise UserError(
                f"batch {batch} of job {job.id} has {count(len(payload), 'byte')}",
                f"a worker takes {settings().batch_bytes:,} (EMBEDMILL_BATCH_BYTES)",
                "run the same command with a smaller --batch-rows, or raise that everywhere",
            )
        entry = Outstanding(size=len(payload), sha256=hashlib.sha256(payload).hexdigest(), published=self.now())
        if not self.call("hsetnx", _key(job.id, "out"), str(batch), entry.model_dump_json()):
            return False
        self.together(("set", _key(job.id, "job"), job.model_dump_json()), ("set", _batch_key(job.id, batch), payload))
        return True

    def outstanding(self, job: Job) -> dict[int, Outstanding]:
        """The batches that were published and not settled."""
        return {batch: _read(Outstanding, entry) or _NOBODYS for batch, entry in self._of_batches(job, "out")}

    def republished(self, job_id: str, batch: int, entry: Outstanding) -> None:
        """Note that a batch's message was sent again."""
        again = entry.model_copy(update={"published": self.now()})
        self.call("hset", _key(job_id, "out"), str(batch), again.model_dump_json())

    def withdraw(self, job_id: str, batch: int) -> bool:
        """Take back a batch that was published.

        Returns:
            Whether it was still out, so that of several callers one publishes it again.
        """
        return bool(self.together(("hdel", _key(job_id, "out"), str(batch)), ("delete", _batch_key(job_id, batch)))[0])

    def vanished(self, job_id: str, batches: Iterable[int]) -> list[int]:
        """Those of these batches whose bytes are gone."""
        numbers = list(batches)
        there = self.together(*(("exists", _batch_key(job_id, batch)) for batch in numbers)) if numbers else []
        return [batch for batch, found in zip(numbers, there, strict=True) if not found]

    def dead(self, job: Job) -> dict[int, DeadBatch]:
        """The batches that were given up."""
        records = {batch: _read(DeadBatch, record) for batch, record in self._of_batches(job, "dead")}
        return {batch: record for batch, record in records.items() if record}

    def _of_batches(self, job: Job, what: str) -> Iterator[tuple[int, bytes]]:
        """A hash's values of the job's batches, without what somebody put there under other names."""
        for name, value in self.call("hgetall", _key(job.id, what)).items():
            if name.isdigit() and int(name) < job.batches:
                yield int(name), value

    def revive(self, job: Job) -> None:
        """Let dead batches be tried again from the first attempt."""
        for batch in self.dead(job):
            self.together(
                *(("hdel", _key(job.id, what), str(batch)) for what in ("dead", "attempts", "search", "out")),
                ("delete", _batch_key(job.id, batch)),
            )

    def queued(self) -> int:
        """Messages of every job that wait for a worker."""
        return int(self.call("llen", QUEUE))

    def held(self) -> int:
        """Messages of every job that a worker has taken and not acknowledged. The key is Kombu's."""
        return int(self.call("hlen", "unacked"))

    def now(self) -> float:
        """Redis's clock, the one that all producers share. Seconds since the epoch."""
        seconds, microseconds = self.call("time")
        return float(seconds) + microseconds / 1e6

    # The worker's side

    def job(self, job_id: str) -> Job | None:
        """The job of this id; None if nobody announced it or its record is not a job's."""
        found = self.call("get", _key(job_id, "job"))
        try:
            job = Job.model_validate_json(found) if found else None
        except ValidationError:
            return None
        return job if job and job.id == job.due_id == job_id else None

    def fetch(self, job_id: str, batch: int) -> bytes | None:
        """A batch's bytes, which are the published ones; None if they are not, or no longer, there.

        Raises:
            AlteredBatch: there are other bytes; they are not read if they are more than expected.
        """
        entry = self.call("hget", _key(job_id, "out"), str(batch))
        try:
            size = int(self.call("strlen", _batch_key(job_id, batch)))
        except ResponseError as error:  # a list, a hash: whatever somebody put there
            raise AlteredBatch(str(error)) from None
        if not entry or not size:
            return None
        expected = _read(Outstanding, entry) or _NOBODYS
        if size != expected.size or size > settings().batch_bytes:
            raise AlteredBatch(
                f"{count(size, 'byte')}, expected {expected.size:,} and at most {settings().batch_bytes:,} "
                "(EMBEDMILL_BATCH_BYTES)"
            )
        payload: bytes | None = self.call("get", _batch_key(job_id, batch))
        if payload is not None and hashlib.sha256(payload).hexdigest() != expected.sha256:
            raise AlteredBatch(f"another SHA-256 than the {expected.sha256} that was published")
        return payload

    def begin_attempt(self, job_id: str, batch: int) -> int:
        """Count one more attempt at a batch; returns how many that makes."""
        try:
            return int(self._redis.hincrby(_key(job_id, "attempts"), str(batch), 1))
        except OutOfMemoryError:
            return 1  # Redis is full, and what frees it is to embed this batch: it must not wait for space to count
        except UNREACHABLE:
            return int(self.call("hincrby", _key(job_id, "attempts"), str(batch), 1))

    def search(self, job_id: str, batch: int) -> bytes | None:
        """How far the search for a batch's bad row is; None if there is none."""
        found: bytes | None = self.call("hget", _key(job_id, "search"), str(batch))
        return found

    def save_search(self, job_id: str, batch: int, state: str) -> None:
        self.call("hset", _key(job_id, "search"), str(batch), state)

    def settle(self, job_id: str, batch: int) -> None:
        """Forget a batch that has its shard."""
        self.together(
            ("delete", _batch_key(job_id, batch)),
            *(("hdel", _key(job_id, what), str(batch)) for what in ("out", "attempts", "search")),
        )

    def bury(self, job_id: str, batch: int, record: DeadBatch) -> None:
        """Set a batch aside as dead."""
        self.together(
            ("hset", _key(job_id, "dead"), str(batch), record.model_dump_json()),
            ("hdel", _key(job_id, "out"), str(batch)),
            ("delete", _batch_key(job_id, batch)),
        )


def _key(job_id: str, what: str) -> str:
    return f"embedmill:{job_id}:{what}"


def _batch_key(job_id: str, batch: int) -> str:
    return _key(job_id, f"batch:{batch}")


def _read(kind: type[_Record], value: bytes) -> _Record | None:
    """A hash's value; None for what is none of ours. Garbage in Redis must not stop a producer or a worker."""
    try:
        return kind.model_validate_json(value)
    except ValidationError:
        return None
