"""The messages that a producer sends: how one is sent, and how many bytes of batches may wait for workers."""

from collections.abc import Callable

import kombu.exceptions

from contract.errors import UserError
from contract.job import Job
from contract.redis.connection import WAITED_FOR
from contract.redis.keys import queue_of
from contract.redis.messages import TASK, celery_client, direct_queue
from contract.redis.producing import ProducerLedger
from contract.redis.refusals import message_of, redis_address
from contract.settings import settings

_REFUSED = (kombu.exceptions.OperationalError, OSError, *WAITED_FOR)
"""What Celery raises where Redis does not take a message: Kombu's own errors and, for some, redis-py's."""


def message_sender(job: Job, ledger: ProducerLedger) -> Callable[[int], None]:
    """A function that sends a batch's message, and waits for a Redis that does not answer or is full.

    It raises a ``UserError`` where Redis did not take the message within the ledger's patience.
    """
    celery, queue = celery_client(), direct_queue(queue_of(job.key))

    def send(batch: int) -> None:
        try:
            ledger.connection.patiently(celery.send_task, TASK, args=(job.key, batch), queue=queue, retry=False)
        except _REFUSED as error:
            raise UserError(
                f"Redis at {redis_address()} took no message ({message_of(error)})",
                "a Redis server with free memory must run there",
                "start it, and run the same command again: the job goes on where it was",
            ) from None

    return send


def byte_budget(ledger: ProducerLedger) -> int:
    """Bytes of batches that may be in Redis at once: ``EMBEDMILL_OUTSTANDING_BYTES``, and at most half of Redis's
    ``maxmemory``. Over that limit even an acknowledgement fails, and with it the worker."""
    limit = ledger.connection.memory_limit()
    return min(settings().outstanding_bytes, limit // 2) if limit else settings().outstanding_bytes
