"""The job's driver: publishes every batch that has no shard, and ends when each has one.

Redis may lose a message or a batch, a worker may die with one; the driver does not care how. It looks at the shards,
which are the truth, and publishes again what has none and is no longer on its way. Any number of drivers divide a job:
each batch is claimed in Redis before it is made, and one of them looks after those that are published.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any

from contract.errors import UserError
from contract.redis.claims import Claims, Division
from contract.redis.ledger import DeadBatch
from contract.redis.producing import ProducerLedger
from contract.words import count
from producer.lost import MISSING_AFTER
from producer.outbox import Outbox
from producer.progress import Progress, ShardTotals
from producer.recovery import Recovery
from producer.shards import ShardWatch
from producer.tokenizing import BatchSource, Made
from producer.view import View, view_of

_MOST_SELDOM = 4
"""Times ``Times.look`` between two looks of a producer, however many there are."""


@dataclass(frozen=True)
class Times:
    """The driver's intervals, in seconds."""

    look: float = 0.25
    """Between two looks at the shards."""
    inspect: float = 1.0
    """Between two looks at the workers and at the state of each batch."""
    missing_after: float = MISSING_AFTER
    """For which a batch's message must be nowhere until the batch is published again."""


class Driver:
    """Publishes what has no shard and follows the job to its end.

    Args:
        claims: this producer's part of its job, which it has joined.
        source: makes the batches, and puts them into Redis as they are ready.
        ledger: the job's keys in Redis.
        detach: end once everything is published.
        times: how often to look.
    """

    def __init__(
        self,
        claims: Claims,
        source: BatchSource,
        ledger: ProducerLedger,
        *,
        detach: bool = False,
        times: Times = Times(),
    ) -> None:
        job = claims.job
        self._job, self._source, self._ledger, self._detach, self._times = job, source, ledger, detach, times
        self._claims, self._division = claims, Division()
        self._producers = 1
        """Most that were alive at once."""
        self._made = 0
        """Batches that this producer has made."""
        self._outbox = Outbox(job, ledger, claims.producer)
        self._recovery = Recovery(job, ledger, self._outbox, times.missing_after)
        self._shards = ShardWatch(job)
        self._before: ShardTotals | None = None
        """Over the shards that the first look found; None until then."""
        self._new = ShardTotals()
        self._last_shard = time.monotonic()
        self._todo: list[int] = []
        """Batches that this producer has claimed and not begun, the first one last."""
        self._begun: dict[Future[Made], int] = {}
        """Batches that are being made, or are made and wait for room in Redis."""
        self._dead: Mapping[int, DeadBatch] = {}
        self._view: View | None = None
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
                self._inspect()
                if self._ended():
                    break
            self._prepare()
            self._publish()
            self._outbox.announce()
            report(self._progress())
        self._clean_up()
        last = self._progress()
        report(last)
        return last

    def _ended(self) -> bool:
        """Asked right after a look, which has just listed the shards if nothing is under way."""
        if self._todo or self._begun or self._outbox.putting:
            return False
        if self._detach and self._division.next >= self._job.batches and not self._division.orphans:
            return True
        return not self._outbox.out and len(self._shards.batches) + len(self._dead) == self._job.batches

    def _progress(self) -> Progress:
        before = self._before or ShardTotals()
        begun = self._view.rows_begun(self._job, self._outbox.out) if self._view else 0
        return Progress(
            self._job,
            before,
            self._new,
            self._last_shard,
            self._dead,
            self._view,
            begun,
            producers=self._producers,
            made=self._made,
        )

    def _wait(self) -> None:
        """Until there is something to do, at most until the next look."""
        pause = max(0.0, self._next_look - time.monotonic())
        if self._may_begin():
            return
        awaited: list[Future[Any]] = [*self._outbox.puts]
        if not self._outbox.full:
            awaited += self._begun
        if awaited:
            wait(awaited, pause, FIRST_COMPLETED)
        else:
            time.sleep(pause)

    def _look(self) -> None:
        """Find the shards that have come, and what Redis has of the job."""
        job, ledger = self._job, self._ledger
        if ledger.cancelled(job):
            self._outbox.take_back()
            raise UserError(
                f"job {job.id} was cancelled; {len(job.committed())} of {count(job.batches, 'shard')} there",
                hint="run the same command again: the job goes on where it was",
            )
        anew = self._join()
        out, dead = ledger.sizes(job), ledger.dead(job)
        putting = self._outbox.putting
        for batch in putting:  # its message is not there yet
            out.pop(batch, None)
        # Nothing is under way: what is missing then, such as a batch that a worker withdrew, is to be made again.
        nowhere = not (self._todo or self._begun or putting or out or self._division.claims)
        quiet = nowhere and self._division.next >= job.batches
        self._take_in_shards(settled=None if anew or quiet else self._outbox.out.keys() - out.keys())
        for batch in out.keys() & self._shards.batches:
            ledger.settle(job.key, batch)  # its worker died between the shard and the last word about it
            del out[batch]
        self._outbox.look(out, producers=len(self._division.alive))
        # Where one worker gave a batch up, another, slower one may have made it.
        self._dead = {batch: record for batch, record in dead.items() if batch not in self._shards.batches}
        if anew or quiet:
            self._free_missing()
        in_hand = (self._todo, self._begun.values(), putting)
        self._todo[:0] = self._division.unknown_to(self._claims.producer, *in_hand)[::-1]
        self._next_look = time.monotonic() + self._times.look * self._seldom

    def _join(self) -> bool:
        """See how the job is divided. Where Redis knows this producer no more, because it lost everything, or this
        process stood still, join again: what is made and not published is this producer's unless another has it.

        Returns:
            Whether this producer has just joined.
        """
        claims = self._claims
        self._division = claims.division()
        gone = claims.producer not in self._division.alive
        if gone:
            claims.join()
            mine = claims.claim(sorted({*self._todo, *self._begun.values()}))
            self._todo = [batch for batch in self._todo if mine and batch in mine.batches]
            self._division = claims.division()
        self._producers = max(self._producers, len(self._division.alive))
        return gone or self._before is None

    def _free_missing(self) -> None:
        known = (self._outbox.out, self._outbox.putting, self._dead, self._shards.batches)
        gone = self._division.missing(self._job.batches, *known)
        if gone:
            self._claims.free(gone)
            self._division = self._claims.division()

    @property
    def _looks_after(self) -> bool:
        """Whether this producer looks after what is published: the one that joined first."""
        return self._claims.producer in self._division.alive[:1]

    @property
    def _seldom(self) -> int:
        """How much more seldom than one alone this producer looks: so that many together take little more time than
        one."""
        return 1 if self._looks_after else max(1, min(_MOST_SELDOM, len(self._division.alive)))

    def _take_in_shards(self, settled: set[int] | None = None) -> None:
        new = self._shards.refresh(settled)
        if self._before is None:
            self._before = new
        else:
            self._new += new
            self._last_shard = time.monotonic() if new.shards else self._last_shard

    def _inspect(self) -> None:
        """Look at the workers. If this producer joined before the others, publish again what is lost."""
        job, ledger = self._job, self._ledger
        if time.monotonic() < self._next_inspection:
            return
        ledger.set_rows(job, self._progress().totals.rows)
        if self._looks_after and (
            gone := [one for one in ledger.vanished(job, self._outbox.out) if ledger.withdraw(job.key, one)]
        ):
            self._claims.free(gone)
            for batch in gone:
                self._outbox.drop(batch)
        view = view_of(job, ledger, frozenset(self._outbox.out))
        division = self._division
        self._view = replace(
            view,
            making=len(self._begun) + len(self._outbox.putting),
            unpublished=len(self._todo) + max(0, job.batches - division.next),
            producers=len(division.alive),
            elsewhere=len(division.claims) - len(division.of(self._claims.producer)),
        )
        if self._looks_after:
            self._recovery.look(view)
        else:
            self._recovery.forget()
        self._next_inspection = time.monotonic() + self._times.inspect * self._seldom

    def _prepare(self) -> None:
        """Have as many batches made as may be."""
        while self._may_begin():
            if not self._todo:
                self._claim()
            if not self._todo:
                break
            batch = self._todo.pop()
            if any(batch in one for one in (self._outbox.out, self._shards.batches, self._dead)):
                self._claims.release(batch)
            else:
                self._begun[self._source.make(batch)] = batch

    def _claim(self) -> None:
        """Claim further batches. Those that others have by now are seen again at the next look, if they are orphans
        then."""
        known = (self._outbox.out, self._shards.batches, self._dead)
        batches, beyond = self._division.next_claims(self._job.batches, self._source.claims_at_once, *known)
        claimed = self._claims.claim(batches, beyond)
        if claimed is None:
            self._next_look = 0.0  # and join again
            self._division = Division()
            return
        left = {batch: owner for batch, owner in self._division.claims.items() if batch not in batches}
        own = dict.fromkeys(claimed.batches, self._claims.producer)
        self._todo = claimed.batches[::-1]
        self._division = self._division._replace(next=claimed.next, claims=left | own)

    def _may_begin(self) -> bool:
        division = self._division
        more = self._todo or division.next < self._job.batches or division.orphans
        return bool(more) and len(self._begun) + len(self._outbox.putting) < self._source.ahead

    def _publish(self) -> None:
        """Have what is made put into Redis, as far as there is room for it."""
        self._outbox.full = False
        for future in [future for future in self._begun if future.done()]:
            if not self._outbox.put(self._begun[future], future.result()):
                break
            del self._begun[future]
            self._made += 1

    def _clean_up(self) -> None:
        """Forget a job that is at its end, and remove what killed workers left of shards that others made."""
        if len(self._shards.batches) + len(self._dead) < self._job.batches:  # detached
            return
        if not self._dead:
            for leftover in self._job.leftovers():
                leftover.unlink()
        self._ledger.forget(self._job, keep_dead=True)
