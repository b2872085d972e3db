"""Batches on their way to workers: their bytes are put into Redis as far as there is room, then a message is sent."""

from collections.abc import Collection
from concurrent.futures import Future, wait
from typing import NamedTuple

import kombu.exceptions

from contract.errors import UserError
from contract.job import Job
from contract.redis.connection import WAITED_FOR
from contract.redis.keys import queue_of
from contract.redis.messages import TASK, celery_client, direct_queue
from contract.redis.producing import ProducerLedger
from contract.redis.refusals import message_of, redis_address
from contract.settings import settings
from producer.tokenizing import Made

_REFUSED = (kombu.exceptions.OperationalError, OSError, *WAITED_FOR)
"""What Celery raises where Redis does not take a message: Kombu's own errors and, for some, redis-py's."""


class _Put(NamedTuple):
    """A batch that is being put into Redis."""

    made: Made
    done: Future[bool]


class Outbox:
    """What one producer puts into Redis, and what is there.

    Args:
        job: the job.
        ledger: its keys in Redis.
        producer: the id of this producer, which claims the batches that it puts.
    """

    def __init__(self, job: Job, ledger: ProducerLedger, producer: str) -> None:
        self._job, self._ledger, self._producer = job, ledger, producer
        self._budget = byte_budget(ledger)
        self._celery, self._queue = celery_client(), direct_queue(queue_of(job.key))
        self.out: dict[int, int] = {}
        """Batches of any producer that are published and have no shard → their bytes."""
        self._puts: dict[int, _Put] = {}
        """Batches whose bytes are on their way; their messages are not sent yet."""
        self._bytes = 0
        """Of both."""
        self._limit = 0
        """Of these bytes, up to the next look."""
        self.full = False
        """Whether a batch waits for room in Redis."""

    @property
    def putting(self) -> Collection[int]:
        """Batches whose bytes are on their way."""
        return self._puts.keys()

    @property
    def puts(self) -> list[Future[bool]]:
        """Each is done when a batch's bytes are in Redis."""
        return [put.done for put in self._puts.values()]

    def look(self, out: dict[int, int], producers: int) -> None:
        """Take in what is published.

        Args:
            out: the batches that are published and have no shard → their bytes.
            producers: that are alive, and share the room in Redis.
        """
        self.out = out
        self._bytes = sum(out.values()) + sum(put.made.size for put in self._puts.values())
        self._limit = share_of_bytes(self._budget, self._bytes, producers)

    def drop(self, batch: int) -> None:
        """Forget a batch that is no longer published."""
        self._bytes -= self.out.pop(batch)

    def put(self, batch: int, made: Made) -> bool:
        """Have a batch's bytes put into Redis, unless there is no room for them. An empty Redis takes any batch.

        Returns:
            Whether there was room.
        """
        self.full = self._bytes > 0 and self._bytes + made.size > self._limit
        if not self.full:
            self._puts[batch] = _Put(made, made.put(self._producer))
            self._bytes += made.size
        return not self.full

    def announce(self) -> None:
        """Send the messages of the batches whose bytes are in Redis by now.

        Raises:
            UserError: Redis did not take the bytes or the message within the ledger's patience.
        """
        for batch, put in [(batch, put) for batch, put in self._puts.items() if put.done.done()]:
            if self._was_published(put):
                self.send(batch)
            self.out[batch] = put.made.size  # this producer's, or another's who has claimed it since
            del self._puts[batch]

    def _was_published(self, put: _Put) -> bool:
        """Whether it was this put that published a batch. A put that failed is repeated here, with the ledger's
        patience: so many puts that fail at once are told in one line."""
        if put.done.exception():
            return self._ledger.connection.ask(lambda redis: put.made.put(self._producer).result())
        return put.done.result()

    def send(self, batch: int) -> None:
        """Send a batch's message, and wait for a Redis that does not answer or is full.

        Raises:
            UserError: Redis did not take the message within the ledger's patience.
        """
        arguments = (self._job.key, batch)
        try:
            self._ledger.connection.patiently(
                self._celery.send_task, TASK, args=arguments, queue=self._queue, retry=False
            )
        except _REFUSED as error:
            raise UserError(
                f"Redis at {redis_address()} took no message ({message_of(error)})",
                "a Redis server with free memory must run there",
                "start it, and run the same command again: the job goes on where it was",
            ) from None

    def take_back(self) -> None:
        """Take out of a job that was cancelled what was published since, or is just being put into Redis."""
        wait(self.puts)
        self._ledger.forget(self._job, also={*self.out, *self._puts})


def byte_budget(ledger: ProducerLedger) -> int:
    """Bytes of batches that may be in Redis at once: ``EMBEDMILL_OUTSTANDING_BYTES``, and at most half of Redis's
    ``maxmemory``. Over that limit even an acknowledgement fails, and with it the worker."""
    limit = ledger.connection.memory_limit()
    return min(settings().outstanding_bytes, limit // 2) if limit else settings().outstanding_bytes


def share_of_bytes(budget: int, out: int, producers: int) -> int:
    """Bytes of batches up to which a producer fills Redis until its next look: those that are there now, and its share
    of the room that is left. With a budget of 100, of which 40 are used, and 3 producers it is 60.

    Args:
        budget: bytes, for all producers.
        out: bytes that are in Redis.
        producers: that are alive.
    """
    return min(budget, out + max(0, budget - out) // max(1, producers))
