"""How a producer divides a job with others: what it claims next, and how much of Redis is its own. Pure functions."""

from collections.abc import Collection

from contract.redis.claims import Division


def next_claims(division: Division, batches: int, many: int, *known: Collection[int]) -> tuple[list[int], int]:
    """The batches that a producer should claim.

    Args:
        division: how the job is divided.
        batches: how many the job has.
        many: how many to claim at most: first those that no living producer makes, then such as were never handed out.
        known: batches that have a shard, that are published, or that were given up.

    Returns:
        The batches, and the first one that is not handed out by that.
    """
    found, beyond = division.orphans[:many], division.next
    while len(found) < many and beyond < batches:
        if not any(beyond in one for one in known):
            found.append(beyond)
        beyond += 1
    return found, beyond


def missing(division: Division, batches: int, *known: Collection[int]) -> list[int]:
    """The batches that were handed out and are nowhere any more: Redis or a worker lost them.

    Args:
        division: how the job was divided, before it was asked what is known.
        batches: how many the job has.
        known: batches that have a shard, that are published, or that were given up.
    """
    places = (division.claims, *known)
    return [batch for batch in range(min(division.next, batches)) if not any(batch in one for one in places)]


def adrift(division: Division, producer: str, *in_hand: Collection[int]) -> list[int]:
    """The batches that a producer has claimed by what Redis says, and knows nothing of: it never got that answer."""
    return [batch for batch in division.of(producer) if not any(batch in one for one in in_hand)]


def share_of_bytes(budget: int, out: int, producers: int) -> int:
    """Bytes of batches that may be in Redis before a producer stops until it looks again: each of them takes at most
    its share of the room that all have seen.

    Args:
        budget: for all producers.
        out: bytes that are in Redis.
        producers: that are alive.
    """
    return min(budget, out + max(0, budget - out) // max(1, producers))


def claims_at_once(ahead: int) -> int:
    """How many batches to claim at once: enough that asking costs next to nothing, and few, since a producer that dies
    keeps them from the others for a while.

    Args:
        ahead: most batches that a producer makes at once (``BatchSource.ahead``).
    """
    return max(1, ahead // 2)
