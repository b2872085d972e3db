"""Which producer makes which batches of a job, so that any number of them divide it.

A batch is at any instant in one of these places, and goes from each to the next in one step:

    not handed out   its number is ``next`` or higher
    claimed          ``claims`` names the producer that makes it; "" if any producer may claim it
    published        ``out`` has it
    at its end       its shard is there, or ``dead`` has it

A producer is alive while its key exists; a thread of the producer prolongs the key. Batches that a dead producer has
claimed may be claimed by any other. Redis may lose all of this: a producer then finds its own key gone, and joins
again.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import redis

from contract.job import Job
from contract.redis.connection import Connection, Script, client, text
from contract.redis.keys import key_of, producer_key
from contract.redis.ledger import clock
from contract.redis.producer_ids import has_ended_here, is_here, own_id
from contract.settings import settings

_BEATS = 6
"""How often a producer prolongs its key in ``EMBEDMILL_HEARTBEAT_TIMEOUT``."""

_CLAIM = Script(
    """
    -- KEYS: claims, out, dead, next. ARGV: the keys of producers without the id, an id, the number up to which batches
    -- are handed out by this, batches.
    if redis.call('exists', ARGV[1] .. ARGV[2]) == 0 then return false end
    local first, mine = tonumber(redis.call('get', KEYS[4]) or '0') or 0, {}
    for i = 4, #ARGV do
        local batch, free = ARGV[i], false
        local owner = redis.call('hget', KEYS[1], batch)
        if owner then
            free = owner == ARGV[2] or redis.call('exists', ARGV[1] .. owner) == 0
        else
            free = tonumber(batch) >= first
                and not redis.call('hget', KEYS[2], batch) and not redis.call('hget', KEYS[3], batch)
        end
        if free then
            redis.call('hset', KEYS[1], batch, ARGV[2])
            mine[#mine + 1] = tonumber(batch)
        end
    end
    if tonumber(ARGV[3]) > first then
        redis.call('set', KEYS[4], ARGV[3])
        first = tonumber(ARGV[3])
    end
    return {first, mine}
    """
)

_FREE = Script(
    """
    -- KEYS: claims, out. ARGV: batches.
    for _, batch in ipairs(ARGV) do
        if not redis.call('hget', KEYS[1], batch) and not redis.call('hget', KEYS[2], batch) then
            redis.call('hset', KEYS[1], batch, '')
        end
    end
    """
)


class Division(NamedTuple):
    """How a job is divided at one instant."""

    next: int = 0
    """The first batch that was never handed out."""
    claims: Mapping[int, str] = {}
    """Batches that are claimed and not published → the producer's id, or ""."""
    alive: tuple[str, ...] = ()
    """The ids of the producers that are alive, the one that joined first at the beginning."""

    @property
    def orphans(self) -> list[int]:
        """Batches that are claimed by no producer that is alive."""
        return sorted(batch for batch, owner in self.claims.items() if owner not in self.alive)

    def of(self, producer: str) -> list[int]:
        """The batches that a producer has claimed."""
        return sorted(batch for batch, owner in self.claims.items() if owner == producer)

    def next_claims(self, batches: int, many: int, *known: Collection[int]) -> tuple[list[int], int]:
        """The batches that a producer should claim.

        Args:
            batches: how many the job has.
            many: how many to claim at most: first those whose producer is gone, then those that were never handed out.
            known: batches that have a shard, that are published, or that were given up.

        Returns:
            The batches, and the first batch that is still not handed out once they are claimed.
        """
        found, beyond = self.orphans[:many], self.next
        while len(found) < many and beyond < batches:
            if not any(beyond in one for one in known):
                found.append(beyond)
            beyond += 1
        return found, beyond

    def missing(self, batches: int, *known: Collection[int]) -> list[int]:
        """The batches that were handed out and are nowhere now: Redis or a worker lost them.

        Args:
            batches: how many the job has.
            known: batches that have a shard, that are published, or that were given up; read after this division.
        """
        places = (self.claims, *known)
        return [batch for batch in range(min(self.next, batches)) if not any(batch in one for one in places)]

    def unknown_to(self, producer: str, *in_hand: Collection[int]) -> list[int]:
        """The batches that a producer has claimed and does not know of: the answer to its claim was lost.

        Args:
            producer: its id.
            in_hand: batches that it knows of.
        """
        return [batch for batch in self.of(producer) if not any(batch in one for one in in_hand)]

    @property
    def here(self) -> int:
        """How many of the producers run on this machine."""
        return sum(map(is_here, self.alive))


class Claimed(NamedTuple):
    """The answer to a producer's claim."""

    next: int
    """The first batch that was never handed out."""
    batches: list[int]


class Claims:
    """One producer's part of a job.

    Args:
        job: the job.
        connection: to the job's Redis.
    """

    def __init__(self, job: Job, connection: Connection) -> None:
        self.job, self._connection = job, connection
        self.producer = own_id(connection.ask(clock))
        """This producer's id."""
        self._life = round(1000 * settings().heartbeat_timeout)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Be one of the job's producers until the ``with`` block ends. Then what it has claimed is free for others."""
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(over,), daemon=True)
        self.join()
        beats.start()
        try:
            yield
        finally:
            over.set()
            with contextlib.suppress(redis.RedisError):
                _remove(client(timeout=1), self.job, self.producer)

    def join(self) -> None:
        """Become one of the job's producers, at first or after Redis has lost that this is one."""

        def fill(pipeline: redis.client.Pipeline) -> None:
            pipeline.set(producer_key(self.job.key, self.producer), "1", px=self._life)
            pipeline.sadd(key_of(self.job.key, "producers"), self.producer)

        self._connection.pipeline(fill)

    def division(self) -> Division:
        """How the job is divided now."""
        return division_of(self.job, self._connection)

    def claim(self, batches: Sequence[int], beyond: int = 0) -> Claimed | None:
        """Claim batches that were never handed out, or whose producer is gone. Others of ``batches`` are not claimed.

        Args:
            batches: their numbers, in order.
            beyond: every batch below this number is handed out after this call.

        Returns:
            What this producer has claimed of them; None if Redis does not know this producer.
        """
        keys = [key_of(self.job.key, what) for what in ("claims", "out", "dead", "next")]
        words: list[bytes | str | int] = [producer_key(self.job.key, ""), self.producer, beyond, *batches]
        found = self._connection.ask(lambda redis: _CLAIM(redis, keys, words))
        return None if found is None else Claimed(found[0], found[1])

    def free(self, batches: Sequence[int]) -> None:
        """Let any producer claim lost batches: those of ``batches`` that are neither claimed nor published."""
        keys = [key_of(self.job.key, what) for what in ("claims", "out")]
        self._connection.ask(lambda redis: _FREE(redis, keys, batches))

    def release(self, batch: int) -> None:
        """Remove the claim to a batch that need not be made."""
        self._connection.ask(lambda redis: redis.hdel(key_of(self.job.key, "claims"), str(batch)))

    def _beat(self, over: threading.Event) -> None:
        own, key = client(), producer_key(self.job.key, self.producer)
        while not over.wait(self._life / 1000 / _BEATS):
            with contextlib.suppress(redis.RedisError):  # the driver says so
                own.pexpire(key, self._life)  # which a full Redis takes too


def division_of(job: Job, connection: Connection) -> Division:
    """How a job is divided now. Removes the records of producers that are gone."""
    number, claims, members = connection.pipeline(
        lambda pipeline: (
            pipeline.get(key_of(job.key, "next")),
            pipeline.hgetall(key_of(job.key, "claims")),
            pipeline.smembers(key_of(job.key, "producers")),
        )
    )
    producers = sorted(map(text, members))
    there = connection.pipeline(lambda pipeline: [pipeline.exists(producer_key(job.key, one)) for one in producers])
    alive = tuple(one for one, found in zip(producers, there, strict=True) if found and not has_ended_here(one))
    if gone := set(producers) - set(alive):

        def forget(pipeline: redis.client.Pipeline) -> None:
            for producer in gone:
                _remove(pipeline, job, producer)

        connection.pipeline(forget)
    return Division(
        next=int(number) if number and number.isdigit() else 0,
        claims={int(batch): text(owner) for batch, owner in claims.items() if batch.isdigit()},
        alive=alive,
    )


def _remove(redis: redis.Redis, job: Job, producer: str) -> None:
    redis.delete(producer_key(job.key, producer))
    redis.srem(key_of(job.key, "producers"), producer)
