"""Where a job is, from its shards and from Redis, for anyone who asks."""

import time
from dataclasses import dataclass, replace

from contract.job import Job
from contract.redis.claims import division_of
from contract.redis.ledger import DeadBatch
from contract.redis.producing import ProducerLedger
from producer.view import View, view_of

_WINDOW = 60.0
"""Seconds over which the speed is taken."""


@dataclass(frozen=True)
class Status:
    """A job at one instant."""

    job: Job
    rows: int
    """Rows that have a shard."""
    done: int
    """Batches that have a shard."""
    out_bytes: int
    """Of the batches that were published and have no shard yet."""
    dead: dict[int, DeadBatch]
    rows_per_s: float
    """Of the shards of the last minute."""
    ended: float | None
    """When the last shard came, in seconds since the epoch, if all are there."""
    view: View
    """The workers and the job on Redis."""

    @property
    def out(self) -> int:
        """Batches that were published and have no shard yet."""
        return len(self.view.out)

    @property
    def waiting(self) -> int:
        """Batches that are not published."""
        return self.job.batches - self.done - self.out - len(self.dead)

    @property
    def eta(self) -> float | None:
        """Seconds to the end; None if nothing moves, or nothing is left."""
        return (self.job.rows - self.rows) / self.rows_per_s if self.rows_per_s and not self.ended else None


def status_of(job: Job, ledger: ProducerLedger) -> Status:
    """Look at a job.

    Raises:
        UserError: Redis does not answer.
    """
    done = job.written()
    out = {batch: entry for batch, entry in ledger.outstanding(job).items() if batch not in done}
    return Status(
        job=job,
        rows=sum(len(job.row_range(batch)) for batch in done),
        done=len(done),
        out_bytes=sum(entry.size for entry in out.values()),
        dead={batch: record for batch, record in ledger.dead(job).items() if batch not in done},
        rows_per_s=_speed(job, done),
        ended=max(done.values()) if len(done) == job.batches else None,
        view=replace(view_of(job, ledger, frozenset(out)), producers=len(division_of(job, ledger.connection).alive)),
    )


def _speed(job: Job, made: dict[int, float]) -> float:
    now = time.time()
    recent = [batch for batch, when in made.items() if now - when < _WINDOW]
    if not recent:
        return 0.0
    earlier = any(now - when >= _WINDOW for when in made.values())
    seconds = _WINDOW if earlier else max(1.0, now - min(made.values()))
    return sum(len(job.row_range(batch)) for batch in recent) / seconds
