"""The job's driver: publishes every batch that has no shard, and ends when each has one.

Redis may lose a message or a batch, a worker may die with one; the driver does not care how. It looks at the shards,
which are the truth, and publishes again what has none and is no longer on its way. Several drivers of one job do no
harm: a batch is claimed in Redis before it is published.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from contract.errors import UserError
from contract.job import Job
from contract.redis.ledger import DeadBatch
from contract.redis.messages import Held
from contract.redis.producing import ProducerLedger
from contract.words import count
from producer.lost import MISSING_AFTER, Sighting, all_in_sight, batch_states, lost, sightings, unpublished
from producer.messages import byte_budget, message_sender
from producer.progress import Progress, ShardTotals
from producer.shards import ShardWatch
from producer.tokenizing import BatchSource, Made
from producer.view import View, view_of


@dataclass(frozen=True)
class Times:
    """The driver's intervals, in seconds."""

    look: float = 0.25
    """Between two looks at the shards."""
    inspect: float = 1.0
    """Between two looks at the workers and at the state of each batch."""
    missing_after: float = MISSING_AFTER
    """For which a batch's message must be nowhere until the batch is published again."""


class Putting(NamedTuple):
    """A batch that is being put into Redis."""

    made: Made
    done: Future[bool]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.made.size


class Driver:
    """Publishes what has no shard and follows the job to its end.

    Args:
        job: the job.
        source: makes the batches, and puts them into Redis as they are ready.
        ledger: the job's keys in Redis.
        detach: end once everything is published.
        times: how often to look.
    """

    def __init__(
        self, job: Job, source: BatchSource, ledger: ProducerLedger, *, detach: bool = False, times: Times = Times()
    ) -> None:
        self._job, self._source, self._ledger, self._detach, self._times = job, source, ledger, detach, times
        self._budget = byte_budget(ledger)
        self._send = message_sender(job, ledger)
        self._shards = ShardWatch(job)
        self._before: ShardTotals | None = None
        """Over the shards that the first look found; None until then."""
        self._new = ShardTotals()
        self._last_shard = time.monotonic()
        self._todo: list[int] = []
        """Batches to make, the first one last."""
        self._begun: dict[Future[Made], int] = {}
        """Batches that are being made, or are made and wait for room in Redis."""
        self._putting: dict[int, Putting] = {}
        """Batches whose bytes are on their way into Redis; their messages are not sent yet."""
        self._out: dict[int, int] = {}
        """Batches that are published and have no shard → their bytes."""
        self._bytes_out = 0
        """Of both."""
        self._full = False
        """Whether a batch waits for room in Redis."""
        self._dead: Mapping[int, DeadBatch] = {}
        self._view: View | None = None
        self._seen: dict[int, Sighting] = {}
        self._next_look = self._next_inspection = 0.0

    def run(self, report: Callable[[Progress], None] = lambda progress: None) -> Progress:
        """Run the job to its end, or with ``detach`` until all is published.

        Args:
            report: called with how far the job is, a few times a second.

        Returns:
            How far the job is at the end.

        Raises:
            UserError: Redis did not answer for longer than ``EMBEDMILL_REDIS_PATIENCE``, somebody cancelled the job, or
                a batch cannot be made.
        """
        while True:
            self._wait()
            if time.monotonic() >= self._next_look:
                self._look()
                self._recover_lost()
                if self._ended():
                    break
            self._prepare()
            self._publish()
            self._announce()
            report(self._progress())
        self._clean_up()
        last = self._progress()
        report(last)
        return last

    def _ended(self) -> bool:
        """Asked right after a look, which has just listed the shards if nothing is under way."""
        return not (self._todo or self._begun or self._putting) and (self._detach or not self._out)

    def _progress(self) -> Progress:
        before = self._before or ShardTotals()
        begun = self._view.rows_begun(self._job, self._out) if self._view else 0
        return Progress(self._job, before, self._new, self._last_shard, self._dead, self._view, begun)

    def _wait(self) -> None:
        """Until there is something to do, at most until the next look."""
        pause = max(0.0, self._next_look - time.monotonic())
        if self._may_begin():
            return
        awaited: list[Future[Any]] = [put.done for put in self._putting.values()]
        if not self._full:
            awaited += self._begun
        if awaited:
            wait(awaited, pause, FIRST_COMPLETED)
        else:
            time.sleep(pause)

    def _look(self) -> None:
        """Find the shards that have come, and what Redis has of the job."""
        job, ledger = self._job, self._ledger
        if ledger.cancelled(job):
            self._take_back()
            raise UserError(
                f"job {job.id} was cancelled; {len(job.committed())} of {count(job.batches, 'shard')} there",
                hint="run the same command again: the job goes on where it was",
            )
        first = self._before is None
        out, dead = ledger.outstanding(job), ledger.dead(job)
        for batch in self._putting:  # claimed perhaps, and its bytes or its message not there yet
            out.pop(batch, None)
        self._take_in_shards(settled=self._out.keys() - out.keys())
        for batch in out.keys() & self._shards.batches:
            ledger.settle(job.key, batch)  # its worker died between the shard and the last word about it
            del out[batch]
        self._out = {batch: entry.size for batch, entry in out.items()}
        self._bytes_out = sum(self._out.values()) + sum(put.size for put in self._putting.values())
        # Nothing is under way: make what is missing. That is also where a batch comes back that a worker withdrew.
        if first or not (self._todo or self._begun or self._putting or self._out):
            self._take_in_shards()
            self._todo = unpublished(job.batches, self._shards.batches, dead, self._out)[::-1]
        # Where one worker gave a batch up, another, slower one may have made it.
        self._dead = {batch: record for batch, record in dead.items() if batch not in self._shards.batches}
        self._next_look = time.monotonic() + self._times.look

    def _take_in_shards(self, settled: set[int] | None = None) -> None:
        new = self._shards.refresh(settled)
        if self._before is None:
            self._before = new
        else:
            self._new += new
            self._last_shard = time.monotonic() if new.shards else self._last_shard

    def _recover_lost(self) -> None:
        """Look at the workers and the state of each batch, and publish again what is lost."""
        job, ledger = self._job, self._ledger
        if time.monotonic() < self._next_inspection:
            return
        ledger.set_rows(job, self._progress().totals.rows)
        for batch in ledger.vanished(job, self._out):
            if ledger.withdraw(job.key, batch):  # and no other driver, nor its worker
                self._todo.append(batch)
                self._bytes_out -= self._out.pop(batch)
        view = view_of(job, ledger, frozenset(self._out))
        self._view = replace(view, making=len(self._begun) + len(self._putting), unpublished=len(self._todo))
        self._publish_again(self._lost(view))
        self._next_inspection = time.monotonic() + self._times.inspect

    def _lost(self, view: View) -> dict[int, Held | None]:
        """The batches that are lost → the message of each that a worker holds; None where there is no message."""
        if all_in_sight(view):
            self._seen = {}
            return {}
        held = {message.batch: message for message in self._ledger.held() if message.job == view.job}
        states = batch_states(view, queued=self._ledger.waiting(self._job), held=held)
        now = time.monotonic()
        self._seen = sightings(states, self._seen, now)
        gone = lost(self._seen, now=now, timeout=view.timeout, missing_after=self._times.missing_after)
        return {batch: held.get(batch) for batch in sorted(gone)}

    def _publish_again(self, gone: Mapping[int, Held | None]) -> None:
        for batch, message in gone.items():
            if message is None:
                self._send(batch)
            elif self._ledger.take_back(message):
                self._ledger.put_first(message)
            del self._seen[batch]

    def _prepare(self) -> None:
        """Have as many batches made as may be."""
        while self._may_begin():
            batch = self._todo.pop()
            known = (self._out, self._shards.batches, self._dead, self._begun.values(), self._putting)
            if not any(batch in one for one in known):
                self._begun[self._source.make(batch)] = batch

    def _may_begin(self) -> bool:
        return bool(self._todo) and len(self._begun) + len(self._putting) < self._source.ahead

    def _publish(self) -> None:
        """Have what is made put into Redis, as far as there is room for it."""
        self._full = False
        for future in [future for future in self._begun if future.done()]:
            made = future.result()
            self._full = self._bytes_out > 0 and self._bytes_out + made.size > self._budget
            if self._full:
                break
            self._putting[self._begun.pop(future)] = Putting(made, made.put())
            self._bytes_out += made.size

    def _announce(self) -> None:
        """Send the messages of the batches whose bytes are in Redis."""
        for batch, put in [(batch, put) for batch, put in self._putting.items() if put.done.done()]:
            if self._is_own(put):
                self._send(batch)
            self._out[batch] = put.size  # this driver's, or another's
            del self._putting[batch]

    def _is_own(self, put: Putting) -> bool:
        """Whether it was this driver's put that published a batch. Where Redis did not take its bytes, it is asked
        again, and only that with the ledger's patience: of many puts that fail at once one line tells."""
        if put.done.exception():
            return self._ledger.connection.ask(lambda redis: put.made.put().result())
        return put.done.result()

    def _take_back(self) -> None:
        """Take out of a job that was cancelled what this driver has published since, or is just putting into Redis."""
        wait([put.done for put in self._putting.values()])
        self._ledger.forget(self._job, also={*self._out, *self._putting})

    def _clean_up(self) -> None:
        """Forget a job that is at its end, and remove what killed workers left of shards that others made."""
        if self._out:  # detached
            return
        if len(self._shards.batches) == self._job.batches:
            for leftover in self._job.leftovers():
                leftover.unlink()
        self._ledger.forget(self._job, keep_dead=True)
