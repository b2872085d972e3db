"""Which published batches are on nobody's way to a shard any more. Pure: from what was seen to what follows."""

from collections.abc import Collection, Iterable, Mapping
from enum import Enum

from contract.heartbeat import Heartbeat

MISSED_AFTER = 3.0
"""Seconds for which a batch's message must be nowhere: it is in neither of Kombu's structures for an instant while it
is handed over."""


class Place(Enum):
    """Where a published batch is."""

    WORKED_ON = "a worker that is alive says that it has it in hand"
    QUEUED = "its message waits"
    ABOUT_TO_START = "a worker took its message, and one is loading its engine"
    TAKEN = "a worker took its message and has not said that it began"
    SILENT = "the worker that had it in hand is silent"
    NOWHERE = "there is no message"


def places(
    job: str,
    batches: Iterable[int],
    heartbeats: Iterable[Heartbeat],
    *,
    queued: Collection[int],
    held: Collection[int],
    now: float,
    timeout: float,
) -> dict[int, Place]:
    """Where each batch of a job is.

    Args:
        job: the job's key.
        batches: those that are published and have no shard.
        heartbeats: of all workers.
        queued: batches whose messages wait.
        held: batches whose messages a worker took and did not acknowledge.
        now: seconds since the epoch.
        timeout: seconds after which a silent worker is taken for dead.
    """
    alive: set[int] = set()
    silent: set[int] = set()
    starts = False
    for one in heartbeats:
        is_alive = one.silent(now) <= timeout
        starts = starts or (is_alive and one.state == "starting")
        if one.job == job and one.batch is not None:
            (alive if is_alive else silent).add(one.batch)

    def place(batch: int) -> Place:
        if batch in alive:
            return Place.WORKED_ON
        if batch in queued:
            return Place.QUEUED
        if batch in silent:
            return Place.SILENT
        if batch in held:
            return Place.ABOUT_TO_START if starts else Place.TAKEN
        return Place.NOWHERE

    return {batch: place(batch) for batch in batches}


def lost(found: Mapping[int, Place], since: Mapping[int, float], *, now: float, timeout: float) -> set[int]:
    """The batches that are to be published again.

    Args:
        found: where each batch is.
        since: since when it is there without interruption, in the same clock as ``now``.
        now: seconds.
        timeout: seconds after which a silent worker is taken for dead.

    Example: with a timeout of 30, a batch whose worker was last heard of 31 s ago is lost now; one that some worker
    took and has said nothing of, for instance because it died in between, after 30 s; one without any message after 3.
    """
    limits = {Place.SILENT: 0.0, Place.TAKEN: timeout, Place.NOWHERE: MISSED_AFTER}
    return {batch for batch, place in found.items() if place in limits and now - since[batch] >= limits[place]}
