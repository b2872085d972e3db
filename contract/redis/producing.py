"""The producer's side of the ledger: it announces jobs, publishes batches, and takes back what is lost."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Self

import redis
from redis.client import Pipeline

from contract.errors import UserError
from contract.job import Job
from contract.redis.connection import Script, text
from contract.redis.keys import JOBS, KEPT_FOR, OF_A_BATCH, What, batch_key, key_of, producer_key, queue_of
from contract.redis.ledger import NOTHING, DeadBatch, Ledger, Outstanding, clock, parsed
from contract.redis.messages import Held, batch_of
from contract.settings import settings
from contract.words import count

_OF_A_JOB: tuple[What, ...] = (
    "queue",
    "next",
    "claims",
    "producers",
    "out",
    "attempts",
    "search",
    "rows",
    "job",
    "dead",
)


_PUBLISH = Script(
    """
    -- KEYS: claims, out, next, the batch's bytes. ARGV: a producer's id, a batch, its Outstanding.
    local out = redis.call('hget', KEYS[2], ARGV[2])
    if out == ARGV[3] then return 1 end  -- asked again
    local owner, first = redis.call('hget', KEYS[1], ARGV[2]), tonumber(redis.call('get', KEYS[3]) or '0') or 0
    -- A claim that Redis has lost, with all else, and that nobody else has made since, holds.
    if not out and (owner == ARGV[1] or (not owner and tonumber(ARGV[2]) >= first)) then
        redis.call('hset', KEYS[2], ARGV[2], ARGV[3])
        redis.call('hdel', KEYS[1], ARGV[2])
        return 1
    end
    if not out then redis.call('del', KEYS[4]) end
    return 0
    """
)


_SIZES = Script(
    """
    -- KEYS: out. Each batch and its bytes, in one string: what a producer asks for several times a second.
    local all, found = redis.call('hgetall', KEYS[1]), {}
    for i = 1, #all, 2 do found[#found + 1] = all[i] .. ':' .. (string.match(all[i + 1], '"size":(%d+)') or '0') end
    return table.concat(found, ',')
    """
)

_VANISHED = Script(
    """
    -- ARGV: the keys of batches' bytes without the number, numbers with commas. Those whose bytes are not there.
    local gone = {}
    for batch in string.gmatch(ARGV[2], '%d+') do
        if redis.call('exists', ARGV[1] .. batch) == 0 then gone[#gone + 1] = tonumber(batch) end
    end
    return gone
    """
)


class Publication:
    """A batch on its way into Redis. It may be called again after any error.

    Raises:
        UserError: it is larger than a worker takes, as batches of long texts in windows or kept columns may be.
    """

    def __init__(self, job: Job, batch: int, payload: bytes) -> None:
        if len(payload) > settings().batch_bytes:
            raise UserError(
                f"batch {batch} of job {job.id} has {count(len(payload), 'byte')}",
                f"a worker takes {settings().batch_bytes:,} (EMBEDMILL_BATCH_BYTES)",
                "run the same command with a smaller --batch-rows, or raise that everywhere",
            )
        self.size = len(payload)
        self._job, self._batch, self._payload = job, batch, payload
        self._sha256 = hashlib.sha256(payload).hexdigest()
        self._entry = ""

    def __call__(self, redis: redis.Redis, producer: str) -> bool:
        """Put the batch's bytes where workers find them. First the bytes, then the entry that says so: one without
        bytes is one that Redis lost.

        Args:
            redis: the job's.
            producer: the id of the one that has claimed the batch.

        Returns:
            Whether it was published; not where another producer has the claim by now.
        """
        claims, out, following = (key_of(self._job.key, what) for what in ("claims", "out", "next"))
        if not self._entry:
            owner = redis.hget(claims, str(self._batch))
            if (owner and text(owner) != producer) or redis.hget(out, str(self._batch)):
                return False
            entry = Outstanding(size=self.size, sha256=self._sha256, published=clock(redis))
            self._entry = entry.model_dump_json()
        bytes_key = batch_key(self._job.key, self._batch)
        with redis.pipeline(transaction=False) as pipeline:
            _put_job(pipeline, self._job)  # again: Redis may have lost it since
            pipeline.set(bytes_key, self._payload)
            pipeline.execute()
        return bool(_PUBLISH(redis, [claims, out, following, bytes_key], [producer, self._batch, self._entry]))


class ProducerLedger(Ledger):
    """What ``Ledger`` knows, and what only a producer changes."""

    @classmethod
    def open(cls, *, at_once: bool = False) -> Self:
        """The ledger of the Redis in the settings, which has been asked once, so that nobody waits in vain.

        Args:
            at_once: whether Redis must answer now, because somebody waits for the answer.

        Raises:
            UserError: Redis refuses this user, is none that embedmill can use, or does not answer ``at_once``.
        """
        ledger = cls(patience=settings().redis_patience)
        ledger.connection.ping(at_once=at_once)
        return ledger

    def announce(self, job: Job) -> None:
        """Let workers know the job: they take its batches from now on, with the priority that it has now."""

        def fill(pipeline: Pipeline) -> None:
            pipeline.delete(key_of(job.key, "cancelled"))
            _put_job(pipeline, job)
            pipeline.zadd(JOBS, {job.key: job.priority})

        self.connection.pipeline(fill)

    def outstanding(self, job: Job) -> dict[int, Outstanding]:
        """The batches that were published and not settled."""
        return {batch: parsed(Outstanding, entry) or NOTHING for batch, entry in self._of_batches(job, "out")}

    def sizes(self, job: Job) -> dict[int, int]:
        """The batches that were published and not settled → their bytes."""
        found = text(self.connection.ask(lambda redis: _SIZES(redis, [key_of(job.key, "out")], [])))
        pairs = (entry.rpartition(":") for entry in found.split(",") if found)
        return {int(batch): int(size) for batch, _, size in pairs if batch.isdigit() and int(batch) < job.batches}

    def vanished(self, job: Job, batches: Iterable[int]) -> list[int]:
        """Those of these batches whose bytes are gone."""
        keys = batch_key(job.key, 0).removesuffix("0")
        words = [keys, ",".join(map(str, batches))]
        gone: list[int] = self.connection.ask(lambda redis: _VANISHED(redis, [], words))
        return gone

    def dead(self, job: Job) -> dict[int, DeadBatch]:
        """The batches that were given up."""
        records = {batch: parsed(DeadBatch, record) for batch, record in self._of_batches(job, "dead")}
        return {batch: record for batch, record in records.items() if record}

    def revive(self, job: Job) -> None:
        """Let dead batches be tried again from the first attempt."""
        dead = self.dead(job)

        def fill(pipeline: Pipeline) -> None:
            for batch in dead:
                pipeline.delete(batch_key(job.key, batch))
                for what in ("dead", *OF_A_BATCH):
                    pipeline.hdel(key_of(job.key, what), str(batch))

        self.connection.pipeline(fill)

    def waiting(self, job: Job) -> set[int]:
        """The batches whose messages wait for a worker."""
        messages = self.connection.ask(lambda redis: redis.lrange(queue_of(job.key), 0, -1))
        return {found[1] for message in messages if (found := batch_of(message)) and found[0] == job.key}

    def held(self) -> list[Held]:
        """The messages of every job that a worker has taken and not acknowledged. The key is Kombu's."""
        found = []
        for tag, value in self.connection.ask(lambda redis: redis.hgetall("unacked")).items():
            try:
                message = json.dumps(json.loads(value)[0])
            except (ValueError, TypeError, LookupError):
                continue
            if named := batch_of(message):
                found.append(Held(text(tag), *named, message))
        return found

    def take_back(self, message: Held) -> bool:
        """Take a message from a worker that is gone. One that was only cut off may still acknowledge or return it:
        neither does anything any more.

        Returns:
            Whether it was still there, so that of several callers one goes on with it.
        """
        answers = self.connection.pipeline(
            lambda pipeline: (pipeline.hdel("unacked", message.tag), pipeline.zrem("unacked_index", message.tag))
        )
        return bool(answers[0])

    def put_first(self, message: Held) -> None:
        """Put a message that was taken back into its job's queue, as the next one: it has waited before."""
        self.connection.ask(lambda redis: redis.rpush(queue_of(message.job), message.message))

    def cancel(self, job: Job) -> int:
        """Take a job out of Redis, and let its producers know.

        Returns:
            How many batches waited or were held.
        """
        self.connection.ask(lambda redis: redis.set(key_of(job.key, "cancelled"), "1", ex=KEPT_FOR))
        return self.forget(job)

    def cancelled(self, job: Job) -> bool:
        return bool(self.connection.ask(lambda redis: redis.exists(key_of(job.key, "cancelled"))))

    def forget(self, job: Job, *, also: Iterable[int] = (), keep_dead: bool = False) -> int:
        """Remove what Redis holds of a job: its messages, also those that workers hold, and its batches.

        Args:
            job: the job.
            also: batches that the ledger may not name any more: published while another process forgot the job.
            keep_dead: leave the record of batches that were given up.

        Returns:
            How many batches were out.
        """
        out = self.outstanding(job)
        producers = self.connection.ask(lambda redis: redis.smembers(key_of(job.key, "producers")))
        for message in self.held():
            if message.job == job.key:
                self.take_back(message)

        def fill(pipeline: Pipeline) -> None:
            pipeline.zrem(JOBS, job.key)
            for what in _OF_A_JOB:
                if not (keep_dead and what == "dead"):
                    pipeline.delete(key_of(job.key, what))
            for producer in producers:  # each sees that it is gone, and looks for itself how far the job is
                pipeline.delete(producer_key(job.key, text(producer)))
            for batch in {*out, *also}:
                pipeline.delete(batch_key(job.key, batch))

        self.connection.pipeline(fill)
        return len(out)

    def set_rows(self, job: Job, rows: int) -> None:
        """Note how many of a job's rows have a shard, for metrics."""
        self.connection.ask(lambda redis: redis.set(key_of(job.key, "rows"), rows, ex=KEPT_FOR))

    def _of_batches(self, job: Job, what: What) -> Iterator[tuple[int, bytes | str]]:
        """A hash's values of the job's batches, without what somebody put there under other names."""
        for name, value in self.connection.ask(lambda redis: redis.hgetall(key_of(job.key, what))).items():
            if name.isdigit() and int(name) < job.batches:
                yield int(name), value


def _put_job(pipeline: Pipeline, job: Job) -> None:
    pipeline.set(key_of(job.key, "job"), job.model_dump_json())
    # Another producer of the job, begun since, may have given it another priority.
    pipeline.zadd(JOBS, {job.key: job.priority}, nx=True)
