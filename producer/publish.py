"""The job's driver: publishes every batch that has no shard, and sees to it until each has one.

Redis may lose a message or a batch, a worker may die with one; the driver does not care how. It looks at the shards,
which are the truth, and publishes again what has none and is no longer on its way. Several drivers of one job do no
harm: a batch is claimed in Redis before it is published.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import kombu.exceptions

from contract.connection import WAITED_FOR, celery_client, redis_address, said
from contract.errors import UserError
from contract.job import Job
from contract.ledger import QUEUE, TASK, DeadBatch, Ledger, Outstanding
from contract.settings import settings
from contract.shard import ShardInfo, read_info
from contract.store import ObjectPath
from producer.tokenizing import Making

_LOOK_EVERY = 0.25
"""Seconds between two looks at the shards."""

_LISTING_SHARE = 0.05
"""Most of the time that goes into listing the shards."""

_FOOTERS_AT_ONCE = 16
"""Shards whose footers are read side by side: an object store takes its time for each."""

_LOST_AFTER = 3.0
"""Seconds for which Celery must hold no message at all before batches on their way count as lost. A message is in
neither of Kombu's structures for an instant while it is handed over."""


_REFUSED = (kombu.exceptions.OperationalError, OSError, *WAITED_FOR)
"""What Celery raises where Redis does not take a message: Kombu's own errors and, for some, redis-py's."""


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
    recomputed: int = 0
    """Rows whose vector was not finite and was computed again in FP32."""
    failed: int = 0
    """Rows that have an error instead of a vector."""
    made_by: set[str] = field(default_factory=set)
    """Runtimes of the shards, such as ``onnxruntime 1.32.0 (fp32)``."""
    dead: dict[int, DeadBatch] = field(default_factory=dict)
    """Batches that were given up, and why."""
    idle: bool = False
    """Batches wait, and no worker has taken one."""
    _list_again: float = field(default=0.0, init=False, repr=False)
    """When the folder may be listed again, by the monotonic clock."""

    def look(self, settled: Iterable[int] | None = None) -> None:
        """Take in the shards that have come since the last look.

        Args:
            settled: batches whose shards have probably come: only those are looked for while another listing of the
                folder would take more than its share of the time, as one of many objects does. None: it is listed.

        Raises:
            UserError: a file of a shard's name is no shard.
        """
        began = time.monotonic()
        if settled is None or began >= self._list_again:
            come = self.job.committed() - self.done
            self._list_again = time.monotonic() + (time.monotonic() - began) / _LISTING_SHARE
        else:
            come = {batch for batch in settled if batch not in self.done and self.job.shard(batch).exists()}
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            infos = list(pool.map(lambda batch: _info_of(self.job.shard(batch), self.job.folder), come))
        for batch, info in zip(come, infos, strict=True):
            self.rows += info.rows
            self.tokens += info.tokens
            self.truncated += info.truncated
            self.without_text += info.without_text
            self.recomputed += info.recomputed
            self.failed += info.failed
            self.made_by.add(f"{info.runtime} ({info.precision})")
            self.done.add(batch)
        for batch in self.done & self.dead.keys():  # one worker gave it up, and another, slower one made it
            del self.dead[batch]


def _info_of(shard: Path | ObjectPath, folder: Path | ObjectPath) -> ShardInfo:
    try:
        return read_info(shard)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{shard} is no shard ({error})",
            "a shard is whole once it is there: the disk or a person changed it",
            f"have it set aside and made again: python -m verify {folder}, then python -m producer retry {folder}",
        ) from None


def drive(job: Job, making: Making, ledger: Ledger, *, detach: bool) -> Iterator[Progress]:
    """Publish what has no shard and follow it to its end.

    Args:
        job: the job.
        making: makes the batches; they are published as they are ready.
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
    send = _sender(job, ledger)
    budget = _budget(ledger)
    quiet_since: float | None = None
    todo: list[int] | None = None
    begun: dict[Future[bytes], int] = {}
    out: dict[int, Outstanding] = {}
    sent: set[int] = set()
    bytes_out, next_look = 0, 0.0
    while True:
        yield progress
        if time.monotonic() >= next_look:
            sent |= out.keys()
            out, progress.dead = ledger.outstanding(job), ledger.dead(job)
            progress.look(sent - out.keys())
            sent.clear()
            for batch in out.keys() & progress.done:
                ledger.settle(job.id, batch)  # its worker died between the shard and the last word about it
                del out[batch]
            bytes_out = sum(entry.size for entry in out.values())
            if todo is None or not (todo or begun or out):
                progress.look()
                todo = _without_shard(progress, out)
                if not (todo or out):
                    _tidy(progress)
                    return
            if detach and not (todo or begun):
                return
            queued, held = ledger.queued(), ledger.held()
            progress.idle = queued > 0 and held == 0
            now = ledger.now()
            old = {batch: entry for batch, entry in out.items() if now - entry.published > _LOST_AFTER}
            for batch in ledger.vanished(job.id, old):
                if ledger.withdraw(job.id, batch):
                    todo.append(batch)
                del out[batch], old[batch]
            if queued or held:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = time.monotonic()
            quiet = quiet_since is not None and time.monotonic() - quiet_since > _LOST_AFTER
            for batch, entry in old.items():
                if quiet or now - entry.published > settings().visibility_timeout:
                    ledger.republished(job.id, batch, entry)
                    send(batch)
            next_look = time.monotonic() + _LOOK_EVERY
        while todo and len(begun) < making.ahead:
            batch = todo.pop()
            if not (batch in out or batch in progress.done or batch in progress.dead):
                begun[making.begin(batch)] = batch
        ready = [made for made in begun if made.done()]
        full = False
        for made in ready:
            payload = made.result()
            full = bytes_out > 0 and bytes_out + len(payload) > budget
            if full:
                break
            batch = begun.pop(made)
            if ledger.publish(job, batch, payload):
                send(batch)
                sent.add(batch)
                bytes_out += len(payload)
        pause = max(0.0, next_look - time.monotonic())
        if begun and not full:
            wait(begun, 0 if ready else pause, FIRST_COMPLETED)
        elif full or not todo:
            time.sleep(pause)


def _without_shard(progress: Progress, out: Mapping[int, Outstanding]) -> list[int]:
    """Batches that are neither done nor dead nor out, the first one last."""
    known = (progress.done, progress.dead, out)
    return [batch for batch in reversed(range(progress.job.batches)) if not any(batch in what for what in known)]


def _tidy(progress: Progress) -> None:
    """Remove what killed workers left of shards that others have made since."""
    staging = progress.job.staging
    if len(progress.done) == progress.job.batches and isinstance(staging, Path):
        for leftover in staging.iterdir():
            leftover.unlink(missing_ok=True)


def _budget(ledger: Ledger) -> int:
    """Bytes of batches that may be in Redis at once. Over ``maxmemory`` even an acknowledgement fails, and with it
    the worker: half of it is left free."""
    limit = ledger.memory_limit()
    return min(settings().outstanding_bytes, limit // 2) if limit else settings().outstanding_bytes


def _sender(job: Job, ledger: Ledger) -> Callable[[int], None]:
    """What sends a batch's message, and waits for a Redis that does not answer or is full."""
    celery = celery_client()

    def send(batch: int) -> None:
        try:
            ledger.patiently(celery.send_task, TASK, args=(job.id, batch), queue=QUEUE, retry=False)
        except _REFUSED as error:
            raise UserError(
                f"Redis at {redis_address()} took no message ({said(error)})",
                "a Redis server with free memory must run there",
                "start it, and run the same command again: the job goes on where it was",
            ) from None

    return send
