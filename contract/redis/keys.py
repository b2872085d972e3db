"""What Redis holds: only the way to the shards, never the truth about them.

::

    embedmill:jobs               sorted set: keys of the jobs that are under way, by priority
    embedmill:<job>:job          the Job, JSON
    embedmill:<job>:queue        the job's Celery queue, a Redis list; a message is the job's key and a batch's number
    embedmill:<job>:next         the first batch that no producer was given yet
    embedmill:<job>:claims       hash: batch -> the producer that makes it (``contract.redis.claims``)
    embedmill:<job>:out          hash: batch -> Outstanding, JSON     published, and no shard there yet
    embedmill:<job>:batch:<n>    the Batch, bytes
    embedmill:<job>:attempts     hash: batch -> times begun           counted by the workers
    embedmill:<job>:search       hash: batch -> how far the search for its bad row is, JSON
    embedmill:<job>:dead         hash: batch -> DeadBatch, JSON       set by the worker that gave the batch up
    embedmill:<job>:rows         rows that have a shard               for metrics
    embedmill:<job>:producers    set: ids of the job's producers
    embedmill:<job>:producer:<id>  there while that producer is alive
    embedmill:<job>:cancelled    there for a day after ``python -m producer cancel``

``<job>`` is ``Job.key``. A batch's ``out``, bytes, attempts and search go when its shard is there; all of a job's keys
go at its end. Any of it may be lost at any time: the producer looks at the shards and publishes again. Besides there
are the workers' heartbeats (``contract.redis.heartbeat``) and Kombu's ``unacked``: the messages that workers hold.
"""

from typing import Literal

from contract.job import JobKey

JOBS = "embedmill:jobs"

KEPT_FOR = 86_400
"""Seconds after which Redis forgets how far a job was, and that it was cancelled. A day: a cancelled job's producer may
be on a machine that is asleep."""

What = Literal["job", "queue", "next", "claims", "out", "attempts", "search", "dead", "rows", "producers", "cancelled"]

OF_A_BATCH: tuple[What, ...] = ("out", "attempts", "search")
"""Hashes that hold something of a batch until it has its shard."""


def key_of(job: JobKey, what: What) -> str:
    """The key of something that there is one of for a job."""
    return f"embedmill:{job}:{what}"


def batch_key(job: JobKey, batch: int) -> str:
    """The key of a batch's bytes."""
    return f"embedmill:{job}:batch:{batch}"


def producer_key(job: JobKey, producer: str) -> str:
    """The key that is there while a producer of a job is alive."""
    return f"embedmill:{job}:producer:{producer}"


def queue_of(job: JobKey) -> str:
    """The Celery queue of a job, which is a Redis list of this name. Each job has its own: workers take from those of
    the highest priority in turn, and one that cannot serve a job leaves its queue alone."""
    return key_of(job, "queue")
