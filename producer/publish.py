"""The job's driver: publishes every batch that has no shard, and sees to it until each has one.

Redis may lose a message or a batch, a worker may die with one; the driver does not care how. It looks at the shards,
which are the truth, and publishes again what has none and is no longer on its way. Several drivers of one job do no
harm: a batch is claimed in Redis before it is published.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import kombu.exceptions

from contract.connection import WAITED_FOR, celery_client, direct_queue, redis_address, said
from contract.errors import UserError
from contract.job import Job
from contract.ledger import TASK, DeadBatch, Ledger, Outstanding, queue_of
from contract.settings import settings
from contract.shard import ShardInfo, read_info
from contract.store import Location
from contract.words import count
from producer.lost import Place, lost, places
from producer.reasons import View
from producer.status import view_of
from producer.tokenizing import Making

_LISTING_SHARE = 0.05
"""Most of the time that goes into listing the shards."""

_FOOTERS_AT_ONCE = 16
"""Shards whose footers are read side by side: an object store takes its time for each."""

_REFUSED = (kombu.exceptions.OperationalError, OSError, *WAITED_FOR)
"""What Celery raises where Redis does not take a message: Kombu's own errors and, for some, redis-py's."""


@dataclass(frozen=True)
class Times:
    """How often the driver looks. Seconds."""

    look: float = 0.25
    """Between two looks at the shards."""
    see: float = 1.0
    """Between two looks at the workers and at where each batch is."""


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
    view: View | None = None
    """The workers and the job in Redis, as last seen."""
    moved: float = field(default_factory=time.monotonic)
    """When a shard last came, by the monotonic clock; at first when this run began."""
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
            self.moved = time.monotonic()
        for batch in self.done & self.dead.keys():  # one worker gave it up, and another, slower one made it
            del self.dead[batch]


def _info_of(shard: Location, folder: Location) -> ShardInfo:
    try:
        return read_info(shard)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{shard} is no shard ({error})",
            "a shard is whole once it is there: the disk or a person changed it",
            f"have it set aside and made again: python -m verify {folder}, then python -m producer retry {folder}",
        ) from None


def drive(job: Job, making: Making, ledger: Ledger, *, detach: bool, times: Times = Times()) -> Iterator[Progress]:
    """Publish what has no shard and follow it to its end.

    Args:
        job: the job.
        making: makes the batches; they are published as they are ready.
        ledger: the job's keys in Redis.
        detach: end once everything is published.
        times: how often to look.

    Yields:
        How far the job is, a few times a second; the same object each time.

    Raises:
        UserError: Redis did not answer for longer than ``EMBEDMILL_REDIS_PATIENCE``, or somebody cancelled the job.
    """
    return _Driver(job, making, ledger, detach, times).run()


class _Driver:
    """What ``drive`` keeps from step to step."""

    def __init__(self, job: Job, making: Making, ledger: Ledger, detach: bool, times: Times) -> None:
        self._job, self._making, self._ledger, self._detach, self._times = job, making, ledger, detach, times
        self._send = _sender(job, ledger)
        self._budget = _budget(ledger)
        self._progress = Progress(job)
        self._todo: list[int] | None = None
        """Batches to make, the first one last; None until the first look."""
        self._begun: dict[Future[bytes], int] = {}
        self._out: dict[int, Outstanding] = {}
        self._sent: set[int] = set()
        """Batches that were out at some time since the last look."""
        self._bytes_out = 0
        self._full = False
        self._since: dict[int, tuple[Place, float]] = {}
        self._next_look = self._next_see = 0.0

    def run(self) -> Iterator[Progress]:
        progress = self._progress
        progress.look()
        progress.before, progress.tokens = progress.rows, 0
        while True:
            yield progress
            if time.monotonic() >= self._next_look:
                self._look()
                if self._ended():
                    yield progress
                    return
                self._next_look = time.monotonic() + self._times.look
            self._begin()
            self._publish()
            self._pause()

    def _look(self) -> None:
        """Take in what has come, and publish again what is lost."""
        job, ledger, progress = self._job, self._ledger, self._progress
        if ledger.cancelled(job):
            raise UserError(
                f"job {job.id} was cancelled; {len(job.committed())} of {count(job.batches, 'shard')} there",
                mend="run the same command again: the job goes on where it was",
            )
        self._sent |= self._out.keys()
        self._out, progress.dead = ledger.outstanding(job), ledger.dead(job)
        progress.look(self._sent - self._out.keys())
        self._sent.clear()
        for batch in self._out.keys() & progress.done:
            ledger.settle(job.key, batch)  # its worker died between the shard and the last word about it
            del self._out[batch]
        self._bytes_out = sum(entry.size for entry in self._out.values())
        if self._todo is None or not (self._todo or self._begun or self._out):
            progress.look()
            self._todo = self._without_shard()
        if time.monotonic() >= self._next_see:
            self._see(self._todo)
            self._next_see = time.monotonic() + self._times.see

    def _ended(self) -> bool:
        if self._todo or self._begun:
            return False
        if not self._out:
            _tidy(self._progress)
            self._ledger.forget(self._job, keep_dead=True)
            return True
        return self._detach

    def _see(self, todo: list[int]) -> None:
        """Look at the workers and at where each batch is."""
        job, ledger = self._job, self._ledger
        for batch in ledger.vanished(job, self._out):
            if ledger.withdraw(job.key, batch):
                todo.append(batch)
            del self._out[batch]
        ledger.set_rows(job, self._progress.rows)
        view = replace(
            view_of(job, ledger, frozenset(self._out)),
            making=len(self._begun),
            unpublished=len(todo),
        )
        self._progress.view = view
        self._publish_lost(view)

    def _publish_lost(self, view: View) -> None:
        job, ledger = self._job, self._ledger
        in_hand = sum(one.job == job.key for one in view.alive())
        if len(self._out) <= view.queued + in_hand:  # each is in sight; their messages need not be read
            self._since.clear()
            return
        held = [message for message in ledger.held() if message.job == job.key]
        found = places(
            job.key,
            self._out,
            view.workers,
            queued=ledger.waiting(job),
            held={message.batch for message in held},
            now=view.now,
            timeout=view.timeout,
        )
        at = time.monotonic()
        before, self._since = self._since, {}
        for batch, place in found.items():
            old = before.get(batch)
            self._since[batch] = old if old and old[0] is place else (place, at)
        gone = lost(found, {batch: since for batch, (_, since) in self._since.items()}, now=at, timeout=view.timeout)
        for message in held:
            if message.batch in gone:
                gone.discard(message.batch)
                del self._since[message.batch]
                if ledger.take_back(message):
                    ledger.put_first(message)
        for batch in sorted(gone):
            self._send(batch)
            del self._since[batch]

    def _begin(self) -> None:
        """Have as many batches made as may be."""
        progress = self._progress
        while self._todo and len(self._begun) < self._making.ahead:
            batch = self._todo.pop()
            if not (batch in self._out or batch in progress.done or batch in progress.dead):
                self._begun[self._making.begin(batch)] = batch

    def _publish(self) -> None:
        """Publish what is made, as far as there is room for it."""
        self._full = False
        for made in [made for made in self._begun if made.done()]:
            payload = made.result()
            self._full = self._bytes_out > 0 and self._bytes_out + len(payload) > self._budget
            if self._full:
                break
            batch = self._begun.pop(made)
            if self._ledger.publish(self._job, batch, payload):
                self._send(batch)
                self._sent.add(batch)
                self._bytes_out += len(payload)

    def _pause(self) -> None:
        """Until there is something to do, at most until the next look."""
        pause = max(0.0, self._next_look - time.monotonic())
        if self._begun and not self._full:
            wait(self._begun, pause, FIRST_COMPLETED)
        elif self._full or not self._todo:
            time.sleep(pause)

    def _without_shard(self) -> list[int]:
        """Batches that are neither done nor dead nor out, the first one last."""
        known = (self._progress.done, self._progress.dead, self._out)
        return [batch for batch in reversed(range(self._job.batches)) if not any(batch in what for what in known)]


def _tidy(progress: Progress) -> None:
    """Remove what killed workers left of shards that others have made since."""
    if len(progress.done) == progress.job.batches:
        for leftover in progress.job.leftovers():
            leftover.unlink(missing_ok=True)


def _budget(ledger: Ledger) -> int:
    """Bytes of batches that may be in Redis at once. Over ``maxmemory`` even an acknowledgement fails, and with it
    the worker: half of it is left free."""
    limit = ledger.memory_limit()
    return min(settings().outstanding_bytes, limit // 2) if limit else settings().outstanding_bytes


def _sender(job: Job, ledger: Ledger) -> Callable[[int], None]:
    """What sends a batch's message, and waits for a Redis that does not answer or is full."""
    celery, queue = celery_client(), direct_queue(queue_of(job.key))

    def send(batch: int) -> None:
        try:
            ledger.patiently(celery.send_task, TASK, args=(job.key, batch), queue=queue, retry=False)
        except _REFUSED as error:
            raise UserError(
                f"Redis at {redis_address()} took no message ({said(error)})",
                "a Redis server with free memory must run there",
                "start it, and run the same command again: the job goes on where it was",
            ) from None

    return send
