"""How a producer divides a job with others: what it claims next, and how much of Redis it may fill. Pure functions."""

from collections.abc import Collection

from contract.redis.claims import Division


def next_claims(division: Division, batches: int, many: int, *known: Collection[int]) -> tuple[list[int], int]:
    """The batches that a producer should claim.

    Args:
        division: how the job is divided.
        batches: how many the job has.
        many: how many to claim at most: first those whose producer is gone, then those that were never handed out.
        known: batches that have a shard, that are published, or that were given up.

    Returns:
        The batches, and the first batch that is still not handed out once they are claimed.
    """
    found, beyond = division.orphans[:many], division.next
    while len(found) < many and beyond < batches:
        if not any(beyond in one for one in known):
            found.append(beyond)
        beyond += 1
    return found, beyond


def missing(division: Division, batches: int, *known: Collection[int]) -> list[int]:
    """The batches that were handed out and are nowhere now: Redis or a worker lost them.

    Args:
        division: how the job was divided before ``known`` was read.
        batches: how many the job has.
        known: batches that have a shard, that are published, or that were given up.
    """
    places = (division.claims, *known)
    return [batch for batch in range(min(division.next, batches)) if not any(batch in one for one in places)]


def unknown_claims(division: Division, producer: str, *in_hand: Collection[int]) -> list[int]:
    """The batches that a producer has claimed in Redis and does not know of: the answer to its claim was lost.

    Args:
        division: how the job is divided.
        producer: its id.
        in_hand: batches that it knows of.
    """
    return [batch for batch in division.of(producer) if not any(batch in one for one in in_hand)]


def share_of_bytes(budget: int, out: int, producers: int) -> int:
    """Bytes of batches up to which a producer fills Redis until its next look: those that are there now, and its share
    of the room that is left. With a budget of 100, of which 40 are used, and 3 producers it is 60.

    Args:
        budget: bytes, for all producers.
        out: bytes that are in Redis.
        producers: that are alive.
    """
    return min(budget, out + max(0, budget - out) // max(1, producers))


def claims_at_once(ahead: int) -> int:
    """How many batches to claim at once: half of those that are made at once. Fewer would cost more questions to Redis,
    and more would be kept from the other producers for a while if this one died.

    Args:
        ahead: most batches that a producer makes at once (``BatchSource.ahead``).
    """
    return max(1, ahead // 2)
