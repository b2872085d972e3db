"""Which published batches nothing will make a shard of any more. Pure functions over what Redis and workers show.

Example, with a timeout of 10 s: a batch whose worker was last heard of 10 s ago is lost, if this producer has listened
for the last 4 of them; one that a worker took and never reported on, for instance because it died in between, after
10 s; one without any message after 3 s.
"""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from contract.redis.heartbeat import Heartbeat
from producer.view import View

MISSING_AFTER = 3.0
"""Seconds for which a batch's message must be nowhere: it is in neither of Kombu's structures for an instant while it
is handed over."""

LISTENED = 4.0
"""Seconds of a worker's silence that the producer has listened to itself. After Redis was away, or its clock was set,
every worker seems silent until its next beat."""


class BatchState(Enum):
    """What becomes of a published batch that has no shard."""

    COMPUTING = "a worker that is alive computes it"
    QUEUED = "its message waits in the queue"
    STARTING = "a worker took its message, and a worker is loading its engine"
    TAKEN = "a worker took its message and has not reported that it computes it"
    ORPHANED = "the worker that computed it is silent"
    MISSING = "there is no message of it"


class Sighting(NamedTuple):
    """A batch's state, and since when it has had it without interruption."""

    state: BatchState
    since: float
    """Seconds, by the monotonic clock."""


def batch_states(view: View, *, queued: Collection[int], held: Collection[int]) -> dict[int, BatchState]:
    """The state of each batch that is published and has no shard (``view.out``).

    Args:
        view: the job and all workers.
        queued: batches whose messages wait.
        held: batches whose messages a worker took and did not acknowledge.
    """
    alive: set[int] = set()
    silent: set[int] = set()
    starting = False
    for worker in view.workers:
        starting = starting or (worker.silent(view.now) <= view.timeout and worker.state == "starting")
        if worker.job == view.job and worker.batch is not None:
            (alive if _heard(view, worker) else silent).add(worker.batch)

    def state(batch: int) -> BatchState:
        if batch in alive:
            return BatchState.COMPUTING
        if batch in queued:
            return BatchState.QUEUED
        if batch in silent:
            return BatchState.ORPHANED
        if batch in held:
            return BatchState.STARTING if starting else BatchState.TAKEN
        return BatchState.MISSING

    return {batch: state(batch) for batch in view.out}


def all_in_sight(view: View) -> bool:
    """Whether each batch that is out waits or is computed, so that the messages need not be read. What a worker said
    last may be of a batch that has its shard by now."""
    computed = {one.batch for one in view.workers if one.job == view.job and _heard(view, one)}
    return len(view.out) <= view.queued + len(computed & view.out)


def _heard(view: View, worker: Heartbeat) -> bool:
    return worker.silent(view.now) <= view.timeout - _listened(view.timeout)


def _listened(timeout: float) -> float:
    return min(LISTENED, timeout / 2)


def sightings(states: Mapping[int, BatchState], before: Mapping[int, Sighting], now: float) -> dict[int, Sighting]:
    """Each batch's state with the time since when it has it.

    Args:
        states: the states now.
        before: what this function returned the last time.
        now: seconds, by the monotonic clock.
    """

    def sighting(batch: int, state: BatchState) -> Sighting:
        old = before.get(batch)
        return old if old and old.state is state else Sighting(state, now)

    return {batch: sighting(batch, state) for batch, state in states.items()}


def lost(seen: Mapping[int, Sighting], *, now: float, timeout: float, missing_after: float = MISSING_AFTER) -> set[int]:
    """The batches that are to be published again.

    Args:
        seen: each batch's state, and since when it has it.
        now: seconds, by the same clock.
        timeout: seconds after which a silent worker is taken for dead.
        missing_after: seconds for which a batch's message must be nowhere.
    """
    limits = {
        BatchState.ORPHANED: _listened(timeout),
        BatchState.TAKEN: timeout,
        BatchState.MISSING: missing_after,
    }
    return {batch for batch, (state, since) in seen.items() if state in limits and now - since >= limits[state]}
