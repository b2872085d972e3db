"""What Redis holds of a job: only the way to the shards, never the truth about them.

::

    embedmill:jobs               set: keys of the jobs that are under way
    embedmill:<job>:job          the Job, JSON
    embedmill:<job>:queue        the job's Celery queue, a Redis list; a message is the job's key and a batch's number
    embedmill:<job>:out          hash: batch -> Outstanding, JSON     claimed by the producer that publishes the batch
    embedmill:<job>:batch:<n>    the Batch, bytes
    embedmill:<job>:attempts     hash: batch -> times begun           counted by the workers
    embedmill:<job>:search       hash: batch -> how far the search for its bad row is, JSON
    embedmill:<job>:dead         hash: batch -> DeadBatch, JSON       set by the worker that gave the batch up
    embedmill:<job>:rows         rows that have a shard               for metrics
    embedmill:<job>:cancelled    there for a day after ``python -m producer cancel``

``<job>`` is ``Job.key``. A batch's ``out``, bytes, attempts and search go when its shard is there; all of a job's keys
go at its end. Any of it may be lost at any time: the producer looks at the shards and publishes again. Besides there
are the workers' heartbeats (``contract.heartbeat``) and Kombu's ``unacked``: the messages that workers hold.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import OutOfMemoryError, ResponseError

from contract import heartbeat
from contract.connection import UNREACHABLE, Connection
from contract.errors import UserError
from contract.heartbeat import Heartbeat
from contract.job import Job, JobKey
from contract.settings import settings
from contract.words import count

TASK = "worker.embed_batch"
"""The Celery task's name; its arguments are the job's key and the batch's number."""

JOBS = "embedmill:jobs"

_REMEMBERED = 86_400
"""Seconds after which Redis forgets how far a job was, and that it was cancelled. A day: a cancelled job's producer may
be on a machine that is asleep."""


def queue_of(key: JobKey) -> str:
    """The Celery queue of the job with this key, which is a Redis list of this name. Each job has its own: workers take
    from all in turn, and one that cannot serve a job leaves its queue alone."""
    return _key(key, "queue")


class Held(NamedTuple):
    """A message that a worker has taken and not acknowledged."""

    tag: str
    """Kombu's name of it."""
    job: JobKey
    batch: int
    message: str
    """As Kombu has it in the queue, JSON."""


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
        """Let workers know the job: they take its batches from now on."""
        self.together(
            ("set", _key(job.key, "job"), job.model_dump_json()),
            ("delete", _key(job.key, "cancelled")),
            ("sadd", JOBS, job.key),
        )

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
        if not self.call("hsetnx", _key(job.key, "out"), str(batch), entry.model_dump_json()):
            return False
        self.together(
            ("set", _key(job.key, "job"), job.model_dump_json()),
            ("sadd", JOBS, job.key),  # again: Redis may have lost it since
            ("set", _batch_key(job.key, batch), payload),
        )
        return True

    def outstanding(self, job: Job) -> dict[int, Outstanding]:
        """The batches that were published and not settled."""
        return {batch: _read(Outstanding, entry) or _NOBODYS for batch, entry in self._of_batches(job, "out")}

    def withdraw(self, key: JobKey, batch: int) -> bool:
        """Take back a batch that was published.

        Returns:
            Whether it was still out, so that of several callers one publishes it again.
        """
        return bool(self.together(("hdel", _key(key, "out"), str(batch)), ("delete", _batch_key(key, batch)))[0])

    def vanished(self, job: Job, batches: Iterable[int]) -> list[int]:
        """Those of these batches whose bytes are gone."""
        numbers = list(batches)
        there = self.together(*(("exists", _batch_key(job.key, batch)) for batch in numbers)) if numbers else []
        return [batch for batch, found in zip(numbers, there, strict=True) if not found]

    def dead(self, job: Job) -> dict[int, DeadBatch]:
        """The batches that were given up."""
        records = {batch: _read(DeadBatch, record) for batch, record in self._of_batches(job, "dead")}
        return {batch: record for batch, record in records.items() if record}

    def _of_batches(self, job: Job, what: str) -> Iterator[tuple[int, bytes]]:
        """A hash's values of the job's batches, without what somebody put there under other names."""
        for name, value in self.call("hgetall", _key(job.key, what)).items():
            if name.isdigit() and int(name) < job.batches:
                yield int(name), value

    def revive(self, job: Job) -> None:
        """Let dead batches be tried again from the first attempt."""
        for batch in self.dead(job):
            self.together(
                *(("hdel", _key(job.key, what), str(batch)) for what in ("dead", "attempts", "search", "out")),
                ("delete", _batch_key(job.key, batch)),
            )

    def queued(self, key: JobKey) -> int:
        """Messages of a job that wait for a worker."""
        return int(self.call("llen", queue_of(key)))

    def waiting(self, job: Job) -> set[int]:
        """The batches whose messages wait for a worker."""
        messages = self.call("lrange", queue_of(job.key), 0, -1)
        return {named[1] for message in messages if (named := _named(message)) and named[0] == job.key}

    def held(self) -> list[Held]:
        """The messages of every job that a worker has taken and not acknowledged. The key is Kombu's."""
        found = []
        for tag, value in self.call("hgetall", "unacked").items():
            try:
                message = json.dumps(json.loads(value)[0])
            except (ValueError, TypeError, LookupError):
                continue
            if named := _named(message):
                found.append(Held(tag.decode(errors="replace"), *named, message))
        return found

    def take_back(self, message: Held) -> bool:
        """Take a message out of the hand of a worker that is gone. One that was only cut off may still acknowledge or
        return it: neither does anything any more.

        Returns:
            Whether it was still there, so that of several callers one goes on with it.
        """
        return bool(self.together(("hdel", "unacked", message.tag), ("zrem", "unacked_index", message.tag))[0])

    def put_first(self, message: Held) -> None:
        """Put a message that was taken back into its job's queue, as the next one: it has waited before."""
        self.call("rpush", queue_of(message.job), message.message)

    def heartbeats(self) -> list[Heartbeat]:
        """What every worker last said, of the last hour."""
        workers = sorted(self.call("smembers", heartbeat.WORKERS))
        records = self.together(*(("get", heartbeat.key_of(name.decode())) for name in workers)) if workers else []
        if gone := [name for name, record in zip(workers, records, strict=True) if record is None]:
            self.call("srem", heartbeat.WORKERS, *gone)
        return [found for record in records if record and (found := heartbeat.read(record))]

    def cancel(self, job: Job) -> int:
        """Take a job out of Redis, and let its producers know.

        Returns:
            How many batches waited or were held.
        """
        self.call("set", _key(job.key, "cancelled"), "1", ex=_REMEMBERED)
        return self.forget(job)

    def cancelled(self, job: Job) -> bool:
        return bool(self.call("exists", _key(job.key, "cancelled")))

    def forget(self, job: Job, *, keep_dead: bool = False) -> int:
        """Remove what Redis holds of a job: its messages, also those in workers' hands, and its batches.

        Args:
            job: the job.
            keep_dead: leave the record of batches that were given up.

        Returns:
            How many batches were out.
        """
        out = self.outstanding(job)
        for message in self.held():
            if message.job == job.key:
                self.take_back(message)
        kept = ("dead",) if keep_dead else ()
        every = ("queue", "out", "attempts", "search", "rows", "job", "dead")
        self.together(
            ("srem", JOBS, job.key),
            *(("delete", _key(job.key, what)) for what in every if what not in kept),
            *(("delete", _batch_key(job.key, batch)) for batch in out),
        )
        return len(out)

    def set_rows(self, job: Job, rows: int) -> None:
        """Note how many of a job's rows have a shard, for metrics."""
        self.call("set", _key(job.key, "rows"), rows, ex=_REMEMBERED)

    def now(self) -> float:
        """Redis's clock, the one that all producers share. Seconds since the epoch."""
        seconds, microseconds = self.call("time")
        return float(seconds) + microseconds / 1e6

    # The worker's side

    def jobs(self) -> set[JobKey]:
        """Keys of the jobs that are under way, and of such as were left behind."""
        return {JobKey(key.decode(errors="replace")) for key in self.call("smembers", JOBS)}

    def job(self, key: str) -> Job | None:
        """The job of this key; None if nobody announced it or its record is not a job's."""
        found = self.call("get", _key(JobKey(key), "job"))
        try:
            job = Job.model_validate_json(found) if found else None
        except ValidationError:
            return None
        return job if job and job.id == job.due_id and job.key == key else None

    def rows(self, key: JobKey) -> int:
        """Rows of a job that have a shard, as far as Redis knows."""
        found = self.call("get", _key(key, "rows"))
        return int(found) if found and found.isdigit() else 0

    def fetch(self, key: JobKey, batch: int) -> bytes | None:
        """A batch's bytes, which are the published ones; None if they are not, or no longer, there.

        Raises:
            AlteredBatch: there are other bytes; they are not read if they are more than expected.
        """
        entry = self.call("hget", _key(key, "out"), str(batch))
        try:
            size = int(self.call("strlen", _batch_key(key, batch)))
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
        payload: bytes | None = self.call("get", _batch_key(key, batch))
        if payload is not None and hashlib.sha256(payload).hexdigest() != expected.sha256:
            raise AlteredBatch(f"another SHA-256 than the {expected.sha256} that was published")
        return payload

    def begin_attempt(self, key: JobKey, batch: int) -> int:
        """Count one more attempt at a batch; returns how many that makes."""
        try:
            return int(self._redis.hincrby(_key(key, "attempts"), str(batch), 1))
        except OutOfMemoryError:
            return 1  # Redis is full, and what frees it is to embed this batch: it must not wait for space to count
        except UNREACHABLE:
            return int(self.call("hincrby", _key(key, "attempts"), str(batch), 1))

    def search(self, key: JobKey, batch: int) -> bytes | None:
        """How far the search for a batch's bad row is; None if there is none."""
        found: bytes | None = self.call("hget", _key(key, "search"), str(batch))
        return found

    def save_search(self, key: JobKey, batch: int, state: str) -> None:
        self.call("hset", _key(key, "search"), str(batch), state)

    def end_attempt(self, key: JobKey, batch: int) -> None:
        """Take an attempt back: it was this worker that failed, and not the batch."""
        self.call("hincrby", _key(key, "attempts"), str(batch), -1)

    def settle(self, key: JobKey, batch: int, rows: int = 0) -> None:
        """Forget a batch that has its shard, of which ``rows`` rows are new."""
        counted = (("incrby", _key(key, "rows"), rows), ("expire", _key(key, "rows"), _REMEMBERED)) if rows else ()
        self.together(
            *counted,
            ("delete", _batch_key(key, batch)),
            *(("hdel", _key(key, what), str(batch)) for what in ("out", "attempts", "search")),
        )

    def bury(self, key: JobKey, batch: int, record: DeadBatch) -> None:
        """Set a batch aside as dead."""
        self.together(
            ("hset", _key(key, "dead"), str(batch), record.model_dump_json()),
            ("hdel", _key(key, "out"), str(batch)),
            ("delete", _batch_key(key, batch)),
        )


def _named(message: bytes | str) -> tuple[JobKey, int] | None:
    """The job's key and the batch that a message names; None for what is none of ours."""
    try:
        arguments, *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
        key, batch = arguments
    except (ValueError, TypeError, LookupError):
        return None
    return (JobKey(key), batch) if isinstance(key, str) and type(batch) is int else None


def _key(key: JobKey, what: str) -> str:
    return f"embedmill:{key}:{what}"


def _batch_key(key: JobKey, batch: int) -> str:
    return _key(key, f"batch:{batch}")


def _read(kind: type[_Record], value: bytes) -> _Record | None:
    """A hash's value; None for what is none of ours. Garbage in Redis must not stop a producer or a worker."""
    try:
        return kind.model_validate_json(value)
    except ValidationError:
        return None
