"""The job's driver: publishes every batch that has no shard, and sees to it until each has one.

Redis may lose a message or a batch; the driver does not care how. It looks at the shards, which are the truth, and
publishes again what has none and is no longer on its way.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import kombu.exceptions
import tenacity
from celery import Celery

from contract.errors import UserError
from contract.job import Job
from contract.ledger import QUEUE, TASK, UNREACHABLE, Ledger, redis_address
from contract.settings import settings
from contract.shard import ShardInfo, read_info

_LOOK_EVERY = 0.25
"""Seconds between two looks at the shards."""

_LOST_AFTER = 3.0
"""Seconds for which Celery must hold no message at all before batches on their way count as lost. A message is in
neither of Kombu's structures for an instant while it is handed over."""


@dataclass
class Progress:
    """How far a job is."""

    job: Job
    done: set[int] = field(default_factory=set)
    """Batches that have a shard."""
    before: int = 0
    """Rows that had a shard when this run began."""
    rows: int = 0
    """Rows that have a shard."""
    tokens: int = 0
    """Tokens embedded in this run."""
    truncated: int = 0
    without_text: int = 0
    dead: dict[int, str] = field(default_factory=dict)
    """Batches that were given up, and why."""

    def look(self) -> None:
        """Take in the shards that have come since the last look."""
        for batch in self.job.committed() - self.done:
            info: ShardInfo = read_info(self.job.shard(batch))
            self.rows += info.rows
            self.tokens += info.tokens
            self.truncated += info.truncated
            self.without_text += info.without_text
            self.done.add(batch)


def drive(job: Job, payload: Callable[[int], bytes], ledger: Ledger, *, detach: bool) -> Iterator[Progress]:
    """Publish what has no shard and follow it to its end.

    Args:
        job: an announced job.
        payload: makes a batch's bytes from its number.
        ledger: the job's keys in Redis.
        detach: end once everything is published.

    Yields:
        How far the job is, a few times a second; the same object each time.

    Raises:
        UserError: Redis did not answer for longer than ``EMBEDMILL_REDIS_PATIENCE``.
    """
    progress = Progress(job)
    progress.look()
    progress.before, progress.tokens = progress.rows, 0
    ledger.revive(job.id, ledger.dead(job.id))  # running a job again is the user's word that the cause is mended
    waiting = sorted(set(range(job.batches)) - progress.done, reverse=True)
    on_their_way = _found_in_redis(job, waiting, ledger)
    waiting = [batch for batch in waiting if batch not in on_their_way]
    publisher = _Publisher(job, ledger)
    quiet_since: float | None = None
    yield progress
    while waiting or on_their_way:
        if waiting and (not on_their_way or sum(on_their_way.values()) < settings().outstanding_bytes):
            batch = waiting.pop()
            on_their_way[batch] = publisher.publish(batch, payload(batch))
        else:
            time.sleep(_LOOK_EVERY)
        progress.look()
        progress.dead = ledger.dead(job.id)
        for batch in list(on_their_way):
            if batch in progress.done or batch in progress.dead:
                del on_their_way[batch]
        yield progress
        if not on_their_way or ledger.messages():
            quiet_since = None
        elif quiet_since is None:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > _LOST_AFTER:
            ledger.announce(job)  # what lost the batches may have lost the job's record too
            waiting = sorted({*waiting, *on_their_way}, reverse=True)
            on_their_way, quiet_since = {}, None
        if detach and not waiting:
            break


def _found_in_redis(job: Job, batches: list[int], ledger: Ledger) -> dict[int, int]:
    """Batches that an earlier run published and that still wait, with their bytes."""
    sizes = {batch: ledger.size(job.id, batch) for batch in batches} if ledger.messages() else {}
    return {batch: size for batch, size in sizes.items() if size}


_REFUSED = (kombu.exceptions.OperationalError, OSError, *UNREACHABLE)


class _Publisher:
    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job, ledger
        self._celery = Celery(broker=settings().redis_url, set_as_current=False)
        self._celery.conf.task_ignore_result = True
        self._send = tenacity.retry(
            retry=tenacity.retry_if_exception_type(_REFUSED),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=tenacity.stop_after_delay(ledger.patience or 60),
            reraise=True,
        )(self._celery.send_task)

    def publish(self, batch: int, payload: bytes) -> int:
        """Put the batch's bytes, then its message: a message never comes before what it speaks of."""
        self._ledger.put(self._job.id, batch, payload)
        try:
            self._send(TASK, args=(self._job.id, batch), queue=QUEUE, retry=False)
        except _REFUSED as error:
            raise UserError(
                f"Redis at {redis_address()} took no message ({error})",
                "a Redis server must run there",
                "start it, and run the same command again: the job goes on where it was",
            ) from None
        return len(payload)
