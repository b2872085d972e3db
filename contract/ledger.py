"""What Redis holds of a job: only the way to the shards, never the truth about them.

embedmill:<job>:job          the Job, JSON                        set by the producer
embedmill:<job>:batch:<n>    the Batch, bytes                     set by the producer, deleted once committed
embedmill:<job>:attempts     hash: batch -> times started         counted by the workers
embedmill:<job>:dead         hash: batch -> error                 set by a worker that gave a batch up
embedmill                    Celery's queue: {job, batch number}  QUEUE below
"""

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

import redis
import tenacity
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.errors import UserError
from contract.job import Job
from contract.settings import settings

QUEUE = "embedmill"
"""The Celery queue, which is a Redis list of this name."""

TASK = "worker.embed_batch"
"""The Celery task's name; its arguments are the job's id and the batch's number."""

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, redis.OutOfMemoryError)
"""What is waited for. A Redis over its ``maxmemory`` takes data again once workers have settled batches."""

_log = logging.getLogger("embedmill.redis")


def redis_address() -> str:
    """The Redis's URL without a user or password, fit for a message."""
    url = urlsplit(settings().redis_url)
    return f"{url.scheme}://{url.hostname}:{url.port or 6379}{url.path}"


class Ledger:
    """A job's keys. Every call waits for a Redis that does not answer and says so in the log.

    Args:
        patience: seconds after which a call gives up; None to wait for ever.
    """

    def __init__(self, patience: float | None) -> None:
        # Retries are ours alone: redis-py's own ten would keep silent for a minute.
        self._redis = redis.Redis.from_url(
            settings().redis_url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=30,
            socket_connect_timeout=5,
            socket_keepalive=True,
        )
        self._patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UNREACHABLE),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=tenacity.stop_never if patience is None else tenacity.stop_after_delay(patience),
            before_sleep=_say_waiting,
            reraise=True,
        )
        self.patience = patience

    def call(self, command: str, *arguments: object) -> object:
        """One Redis command, by the name of redis-py's method.

        Raises:
            UserError: Redis did not answer within the patience.
        """
        try:
            return self._patiently(getattr(self._redis, command), *arguments)
        except UNREACHABLE as error:
            raise UserError(
                f"no answer from Redis at {redis_address()} for {self.patience:.0f} s ({error})",
                "a Redis server must run there",
                "start one (redis-server), or set EMBEDMILL_REDIS_URL",
            ) from None

    def announce(self, job: Job) -> None:
        """Let workers know the job."""
        self.call("set", _key(job.id, "job"), job.model_dump_json())

    def job(self, job_id: str) -> Job | None:
        """The job of this id; None if nobody announced it or its record is not a job's."""
        found = self.call("get", _key(job_id, "job"))
        try:
            return Job.model_validate_json(found) if isinstance(found, bytes) else None
        except ValidationError:
            return None

    def put(self, job_id: str, batch: int, payload: bytes) -> None:
        self.call("set", _batch_key(job_id, batch), payload)

    def fetch(self, job_id: str, batch: int) -> bytes | None:
        """A batch's bytes; None if they are not, or no longer, there."""
        found = self.call("get", _batch_key(job_id, batch))
        return found if isinstance(found, bytes) else None

    def size(self, job_id: str, batch: int) -> int:
        """The length of a batch's bytes; 0 if they are not there."""
        return int(str(self.call("strlen", _batch_key(job_id, batch))))

    def settle(self, job_id: str, batch: int) -> None:
        """Forget a batch that has its shard."""
        self.call("delete", _batch_key(job_id, batch))
        self.call("hdel", _key(job_id, "attempts"), batch)

    def begin_attempt(self, job_id: str, batch: int) -> int:
        """Count one more attempt at a batch; returns how many that makes."""
        return int(str(self.call("hincrby", _key(job_id, "attempts"), batch, 1)))

    def bury(self, job_id: str, batch: int, error: str) -> None:
        """Set a batch aside as dead, with the reason."""
        self.call("hset", _key(job_id, "dead"), batch, error)

    def dead(self, job_id: str) -> dict[int, str]:
        """The dead batches and their errors."""
        found = self.call("hgetall", _key(job_id, "dead"))
        return {int(key): value.decode() for key, value in found.items()} if isinstance(found, dict) else {}

    def revive(self, job_id: str, batches: Iterable[int]) -> None:
        """Let dead batches be tried again from the first attempt."""
        if numbers := list(batches):
            self.call("hdel", _key(job_id, "dead"), *numbers)
            self.call("hdel", _key(job_id, "attempts"), *numbers)

    def messages(self) -> int:
        """Messages that wait in Celery's queue or that a worker holds, of every job. Kombu's names."""
        return int(str(self.call("llen", QUEUE))) + int(str(self.call("hlen", "unacked")))


def _key(job_id: str, what: str) -> str:
    return f"embedmill:{job_id}:{what}"


def _batch_key(job_id: str, batch: int) -> str:
    return _key(job_id, f"batch:{batch}")


def _say_waiting(state: tenacity.RetryCallState) -> None:
    _log.warning(
        "Redis at %s does not answer (%s); trying again", redis_address(), state.outcome and state.outcome.exception()
    )
