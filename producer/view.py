"""A job and its workers at one instant, as Redis shows them: what ``lost``, ``reasons`` and the status are computed
from."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from contract.job import Job
from contract.redis.heartbeat import Heartbeat, computing
from contract.redis.producing import ProducerLedger
from contract.settings import settings


@dataclass(frozen=True)
class View:
    """A job and all workers at one instant. Times are seconds since the epoch."""

    job: str
    """The job's key."""
    now: float
    timeout: float
    """Seconds after which a silent worker is taken for dead."""
    workers: tuple[Heartbeat, ...] = ()
    """One for each process that computes, of the last hour."""
    commands: tuple[Heartbeat, ...] = ()
    """``celery worker`` itself, of the last hour: what says which jobs are refused."""
    queued: int = 0
    """The job's messages that wait."""
    out: frozenset[int] = frozenset()
    """The job's batches that are published and have no shard."""
    making: int = 0
    """Batches that are being tokenized."""
    unpublished: int = 0
    """Batches that are neither published nor done nor dead."""
    producers: int = 1
    """Producers of the job that are alive."""
    elsewhere: int = 0
    """Batches that other producers have claimed and not published."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Keys of the other jobs that have messages waiting, and how many."""
    priorities: Mapping[str, float] = field(default_factory=dict)
    """Of every job under way, by its key."""

    @property
    def priority(self) -> float:
        """The job's own."""
        return self.priorities.get(self.job, 0.0)

    def alive(self) -> list[Heartbeat]:
        """The processes that compute and were heard of within the timeout."""
        return [one for one in self.workers if one.silent(self.now) <= self.timeout]

    def rows_begun(self, job: Job, out: Container[int]) -> int:
        """Rows that are computed, of batches that have no shard.

        Args:
            job: the job that this is of.
            out: its batches that have none by now.
        """
        shares = {one.batch: one.computed for one in self.workers if one.job == self.job and one.batch is not None}
        return sum(int(share * len(job.row_range(batch))) for batch, share in shares.items() if batch in out)

    def refusals(self) -> dict[str, str]:
        """Commands that are alive and cannot serve this job → why."""
        return {
            one.worker: one.refuses[self.job]
            for one in self.commands
            if self.job in one.refuses and one.silent(self.now) <= self.timeout
        }


def view_of(job: Job, ledger: ProducerLedger, out: frozenset[int]) -> View:
    """What Redis says of a job that nothing more is published of just now.

    Args:
        job: the job.
        ledger: the job's keys.
        out: its batches that are published and have no shard.

    Raises:
        UserError: Redis does not answer.
    """
    heartbeats, priorities = ledger.heartbeats(), ledger.priorities()
    return View(
        job=job.key,
        now=ledger.now(),
        timeout=settings().heartbeat_timeout,
        workers=tuple(computing(heartbeats)),
        commands=tuple(one for one in heartbeats if not one.is_child),
        queued=ledger.queued(job.key),
        out=out,
        others={key: waiting for key in priorities.keys() - {job.key} if (waiting := ledger.queued(key))},
        priorities=dict(priorities.items()),
    )
