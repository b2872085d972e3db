"""Every job that can be seen from here: in the output folder, and on the Redis, whoever began it."""

import time
from dataclasses import dataclass

from contract.errors import UserError
from contract.job import Job, JobKey
from contract.jobs import find_job, jobs_in
from contract.redis.producing import ProducerLedger
from contract.settings import settings


@dataclass(frozen=True)
class Listed:
    """A job in the list."""

    job: Job
    state: str
    """``done``, ``under way``, ``dead batches``, ``stopped``, ``cancelled``, or ``elsewhere``: its folder is not seen
    here. Without a Redis what is not ``done`` is ``not done``."""
    rows: int | None
    """Rows that have a shard; None if its folder is not seen here."""
    bytes: int
    """Of its shards."""
    age: float | None
    """Seconds since its last shard came; None if there is none."""
    queued: int
    """Batches that wait for a worker."""


def listed(ledger: ProducerLedger | None) -> list[Listed]:
    """The jobs of the output folder, the one begun or resumed last at the end, and then those that only Redis knows.

    Args:
        ledger: None for what the output folder has.

    Raises:
        UserError: Redis does not answer.
    """
    here = jobs_in(settings().output)
    if ledger is None:
        return [_seen(job, None, set()) for job in here]
    known = ledger.jobs()
    elsewhere = [job for key in sorted(known - {job.key for job in here}) if (job := ledger.job(key))]
    return [_seen(job, ledger, known) for job in here] + [_elsewhere(job, ledger) for job in elsewhere]


def _seen(job: Job, ledger: ProducerLedger | None, known: set[JobKey]) -> Listed:
    written = job.written()
    return Listed(
        job=job,
        state=_state(job, len(written), ledger, known),
        rows=sum(len(job.row_range(batch)) for batch in written),
        bytes=job.bytes(),
        age=time.time() - max(written.values()) if written else None,
        queued=ledger.queued(job.key) if ledger else 0,
    )


def _state(job: Job, done: int, ledger: ProducerLedger | None, known: set[JobKey]) -> str:
    if done == job.batches:
        return "done"
    if ledger is None:
        return "not done"
    if ledger.cancelled(job):
        return "cancelled"
    if job.key in known:
        return "under way"
    return "dead batches" if ledger.dead(job) else "stopped"


def _elsewhere(job: Job, ledger: ProducerLedger) -> Listed:
    return Listed(job, "elsewhere", None, 0, None, ledger.queued(job.key))


def find_to_cancel(name: str, ledger: ProducerLedger) -> Job:
    """The job of this folder, id, name or key: in the output folder, or known to Redis alone.

    Raises:
        UserError: there is none, or there are several.
    """
    on_redis = [job for key in sorted(ledger.jobs()) if (job := ledger.job(key))]
    fitting = [job for job in on_redis if name in (job.id, job.name, job.key, str(job.folder))]
    if len(fitting) > 1:
        folders = ", ".join(str(job.folder) for job in fitting)
        raise UserError(f"{len(fitting)} jobs on Redis are called {name}", hint=f"give one's folder: {folders}")
    return fitting[0] if fitting else find_job(name)


def cleaned(ledger: ProducerLedger) -> list[Job]:
    """Remove what jobs that are done or cancelled left on Redis, and in the folders that are seen here.

    Returns:
        The jobs of which something was removed.
    """
    known, found = ledger.jobs(), []
    for job in jobs_in(settings().output):
        complete = len(job.committed()) == job.batches
        if not (complete or ledger.cancelled(job)):
            continue
        leftovers = job.leftovers() if complete or job.key not in known else []
        for leftover in leftovers:
            leftover.unlink()
        if job.key in known or leftovers:
            ledger.forget(job)
            found.append(job)
    return found
