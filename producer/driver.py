"""The job's driver: publishes every batch that has no shard, and ends when each has one.

Redis may lose a message or a batch, a worker may die with one; the driver does not care how. It looks at the shards,
which are the truth, and publishes again what has none and is no longer on its way. Any number of drivers divide a job:
each batch is claimed in Redis before it is made, and one of them looks after those that are published.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from contract.errors import UserError
from contract.redis.claims import Claims, Division
from contract.redis.ledger import DeadBatch
from contract.redis.messages import Held
from contract.redis.producing import ProducerLedger
from contract.words import count
from producer.dividing import adrift, claims_at_once, missing, next_claims, share_of_bytes
from producer.lost import MISSING_AFTER, Sighting, all_in_sight, batch_states, lost, sightings
from producer.messages import byte_budget, message_sender
from producer.progress import Progress, ShardTotals
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
        self._budget = byte_budget(ledger)
        self._send = message_sender(job, ledger)
        self._shards = ShardWatch(job)
        self._before: ShardTotals | None = None
        """Over the shards that the first look found; None until then."""
        self._new = ShardTotals()
        self._last_shard = time.monotonic()
        self._todo: list[int] = []
        """Batches that this producer has claimed and not begun, the first one last."""
        self._begun: dict[Future[Made], int] = {}
        """Batches that are being made, or are made and wait for room in Redis."""
        self._putting: dict[int, Putting] = {}
        """Batches whose bytes are on their way into Redis; their messages are not sent yet."""
        self._out: dict[int, int] = {}
        """Batches that are published and have no shard → their bytes."""
        self._bytes_out = 0
        """Of both."""
        self._limit = 0
        """Of these, up to the next look."""
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
        if self._todo or self._begun or self._putting:
            return False
        if self._detach and self._division.next >= self._job.batches and not self._division.orphans:
            return True
        return not self._out and len(self._shards.batches) + len(self._dead) == self._job.batches

    def _progress(self) -> Progress:
        before = self._before or ShardTotals()
        begun = self._view.rows_begun(self._job, self._out) if self._view else 0
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
        anew = self._join()
        out, dead = ledger.sizes(job), ledger.dead(job)
        for batch in self._putting:  # its message is not there yet
            out.pop(batch, None)
        # Nothing is under way: what is missing then, such as a batch that a worker withdrew, is to be made again.
        nowhere = not (self._todo or self._begun or self._putting or out or self._division.claims)
        quiet = nowhere and self._division.next >= job.batches
        self._take_in_shards(settled=None if anew or quiet else self._out.keys() - out.keys())
        for batch in out.keys() & self._shards.batches:
            ledger.settle(job.key, batch)  # its worker died between the shard and the last word about it
            del out[batch]
        self._out = out
        # Where one worker gave a batch up, another, slower one may have made it.
        self._dead = {batch: record for batch, record in dead.items() if batch not in self._shards.batches}
        if anew or quiet:
            self._free_missing()
        in_hand = (self._todo, self._begun.values(), self._putting)
        self._todo[:0] = adrift(self._division, self._claims.producer, *in_hand)[::-1]
        self._bytes_out = sum(self._out.values()) + sum(put.size for put in self._putting.values())
        self._limit = share_of_bytes(self._budget, self._bytes_out, len(self._division.alive))
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
        gone = missing(self._division, self._job.batches, self._out, self._putting, self._dead, self._shards.batches)
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

    def _recover_lost(self) -> None:
        """Look at the workers, and, if this producer joined before the others, at the state of each batch: publish
        again what is lost."""
        job, ledger = self._job, self._ledger
        if time.monotonic() < self._next_inspection:
            return
        ledger.set_rows(job, self._progress().totals.rows)
        if self._looks_after and (
            gone := [one for one in ledger.vanished(job, self._out) if ledger.withdraw(job.key, one)]
        ):
            self._claims.free(gone)
            for batch in gone:
                self._bytes_out -= self._out.pop(batch)
        view = view_of(job, ledger, frozenset(self._out))
        division = self._division
        self._view = replace(
            view,
            making=len(self._begun) + len(self._putting),
            unpublished=len(self._todo) + max(0, job.batches - division.next),
            producers=len(division.alive),
            elsewhere=len(division.claims) - len(division.of(self._claims.producer)),
        )
        if self._looks_after:
            self._publish_again(self._lost(view))
        else:
            self._seen = {}
        self._next_inspection = time.monotonic() + self._times.inspect * self._seldom

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
            if not self._todo:
                self._claim()
            if not self._todo:
                break
            batch = self._todo.pop()
            if any(batch in one for one in (self._out, self._shards.batches, self._dead)):
                self._claims.release(batch)
            else:
                self._begun[self._source.make(batch)] = batch

    def _claim(self) -> None:
        """Claim further batches. Those that others have by now are seen again at the next look, if they are orphans
        then."""
        many = claims_at_once(self._source.ahead)
        known = (self._out, self._shards.batches, self._dead)
        batches, beyond = next_claims(self._division, self._job.batches, many, *known)
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
        return bool(more) and len(self._begun) + len(self._putting) < self._source.ahead

    def _publish(self) -> None:
        """Have what is made put into Redis, as far as there is room for it."""
        self._full = False
        for future in [future for future in self._begun if future.done()]:
            made = future.result()
            self._full = self._bytes_out > 0 and self._bytes_out + made.size > self._limit
            if self._full:
                break
            self._putting[self._begun.pop(future)] = Putting(made, made.put(self._claims.producer))
            self._made += 1
            self._bytes_out += made.size

    def _announce(self) -> None:
        """Send the messages of the batches whose bytes are in Redis."""
        for batch, put in [(batch, put) for batch, put in self._putting.items() if put.done.done()]:
            if self._is_own(put):
                self._send(batch)
            self._out[batch] = put.size  # this driver's, or another's who has claimed it since
            del self._putting[batch]

    def _is_own(self, put: Putting) -> bool:
        """Whether it was this driver's put that published a batch. Where Redis did not take its bytes, it is asked
        again, and only that with the ledger's patience: of many puts that fail at once one line tells."""
        if put.done.exception():
            return self._ledger.connection.ask(lambda redis: put.made.put(self._claims.producer).result())
        return put.done.result()

    def _take_back(self) -> None:
        """Take out of a job that was cancelled what this driver has published since, or is just putting into Redis."""
        wait([put.done for put in self._putting.values()])
        self._ledger.forget(self._job, also={*self._out, *self._putting})

    def _clean_up(self) -> None:
        """Forget a job that is at its end, and remove what killed workers left of shards that others made."""
        if len(self._shards.batches) + len(self._dead) < self._job.batches:  # detached
            return
        if not self._dead:
            for leftover in self._job.leftovers():
                leftover.unlink()
        self._ledger.forget(self._job, keep_dead=True)
