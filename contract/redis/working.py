"""The workers' side of the ledger: they fetch batches, count attempts, and give batches up."""

import hashlib

from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError, ResponseError

from contract.job import JobKey
from contract.redis.connection import UNREACHABLE
from contract.redis.keys import batch_key, key_of
from contract.redis.ledger import NOTHING, DeadBatch, Ledger, Outstanding, parsed
from contract.settings import settings
from contract.words import count


class AlteredBatch(Exception):
    """A batch's bytes are not those that its producer published."""


class WorkerLedger(Ledger):
    """What ``Ledger`` knows, and what only workers change."""

    def fetch(self, key: JobKey, batch: int) -> bytes | None:
        """A batch's bytes, which are the published ones; None if they are not, or no longer, there.

        Raises:
            AlteredBatch: there are other bytes; they are not read if they are more than expected.
        """
        entry = self.connection.ask(lambda redis: redis.hget(key_of(key, "out"), str(batch)))
        try:
            size = int(self.connection.ask(lambda redis: redis.strlen(batch_key(key, batch))))
        except ResponseError as error:  # a list, a hash: whatever somebody put there
            raise AlteredBatch(str(error)) from None
        if not entry or not size:
            return None
        expected = parsed(Outstanding, entry) or NOTHING
        if size != expected.size or size > settings().batch_bytes:
            raise AlteredBatch(
                f"{count(size, 'byte')}, expected {expected.size:,} and at most {settings().batch_bytes:,} "
                "(EMBEDMILL_BATCH_BYTES)"
            )
        payload = self.connection.ask(lambda redis: redis.get(batch_key(key, batch)))
        if not isinstance(payload, bytes):  # gone since
            return None
        if hashlib.sha256(payload).hexdigest() != expected.sha256:
            raise AlteredBatch(f"another SHA-256 than the {expected.sha256} that was published")
        return payload

    def begin_attempt(self, key: JobKey, batch: int) -> int:
        """Count one more attempt at a batch; returns how many that makes."""
        try:
            return int(self.connection.ask_once(lambda redis: redis.hincrby(key_of(key, "attempts"), str(batch), 1)))
        except OutOfMemoryError:
            return 1  # Redis is full, and what frees it is to embed this batch: it must not wait for space to count
        except UNREACHABLE:
            return int(self.connection.ask(lambda redis: redis.hincrby(key_of(key, "attempts"), str(batch), 1)))

    def end_attempt(self, key: JobKey, batch: int) -> None:
        """Take an attempt back: it was this worker that failed, and not the batch."""
        self.connection.ask(lambda redis: redis.hincrby(key_of(key, "attempts"), str(batch), -1))

    def search(self, key: JobKey, batch: int) -> bytes | str | None:
        """How far the search for a batch's bad row is; None if there is none."""
        return self.connection.ask(lambda redis: redis.hget(key_of(key, "search"), str(batch)))

    def save_search(self, key: JobKey, batch: int, state: str) -> None:
        self.connection.ask(lambda redis: redis.hset(key_of(key, "search"), str(batch), state))

    def bury(self, key: JobKey, batch: int, record: DeadBatch) -> None:
        """Set a batch aside as dead."""

        def fill(pipeline: Pipeline) -> None:
            pipeline.hset(key_of(key, "dead"), str(batch), record.model_dump_json())
            pipeline.hdel(key_of(key, "out"), str(batch))
            pipeline.delete(batch_key(key, batch))

        self.connection.pipeline(fill)
