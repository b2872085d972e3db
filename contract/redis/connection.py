"""The connection to Redis: patient with one that does not answer or is full, plain with one that refuses."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import kombu.exceptions
import redis
import tenacity
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError
from redis.retry import Retry

from contract.errors import UserError
from contract.redis.refusals import message_of, redis_address, refusal, tls_hint
from contract.settings import settings

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)

WAITED_FOR = (*UNREACHABLE, OutOfMemoryError)
"""A Redis over its ``maxmemory`` takes data again once workers have settled batches."""

SOCKET = {"socket_timeout": 30, "socket_connect_timeout": 5, "socket_keepalive": True}
"""redis-py's options, by seconds; Kombu's transport takes the same."""

_PING_SECONDS = 5.0
"""A server without TLS never answers a TLS client: it is told after this, not after the 30 s of ``SOCKET``."""

_LOG_EVERY = 60.0
"""Seconds between two lines about a Redis that does not answer."""

_log = logging.getLogger("embedmill.redis")

_Answer = TypeVar("_Answer")


def tls_options() -> dict[str, Any]:
    """For a Redis with TLS: the server's certificate and name are always checked. Empty for one without.

    The names are redis-py's; Celery's ``broker_use_ssl`` takes the same. In both, what a URL's query says would go
    before this: ``settings`` takes no URL with such a query.
    """
    if not settings().redis.tls:
        return {}
    authority = settings().redis_ca
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True} | (
        {"ssl_ca_certs": str(authority)} if authority else {}
    )


def client_options(timeout: float = SOCKET["socket_timeout"]) -> dict[str, Any]:
    """redis-py's options for this Redis: times, TLS, and that it never tries again by itself.

    Args:
        timeout: seconds that an answer, or a connection, may take.
    """
    # Retries are ours alone: redis-py's own ten would keep silent for a minute.
    times = {"socket_timeout": timeout, "socket_connect_timeout": min(timeout, SOCKET["socket_connect_timeout"])}
    return {**SOCKET, **times, **tls_options(), "retry": Retry(NoBackoff(), 0)}


def client(timeout: float = SOCKET["socket_timeout"]) -> redis.Redis:
    """redis-py on this Redis. ``timeout`` as in ``client_options``."""
    return settings().redis.client(client_options(timeout))


def text(answer: bytes | str) -> str:
    """A name that Redis answered with, which may be any bytes."""
    return answer if isinstance(answer, str) else answer.decode(errors="replace")


class Script:
    """A Lua script: Redis runs it in one step.

    Args:
        lua: its text.
    """

    def __init__(self, lua: str) -> None:
        self._lua, self._sha = lua, hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run it.

        Raises:
            RedisError: of any kind; ``OutOfMemoryError`` for a Redis that is full, which before 7.0 says otherwise what
                a script met.
        """
        try:
            try:
                return client.evalsha(self._sha, len(keys), *keys, *arguments)
            except NoScriptError:
                client.script_load(self._lua)
                return client.evalsha(self._sha, len(keys), *keys, *arguments)
        except ResponseError as error:
            if "OOM command not allowed" in str(error):
                raise OutOfMemoryError(str(error)) from None
            raise


class Connection:
    """Every question waits for a Redis that does not answer, or is full, and says so in the log.

    Args:
        patience: seconds after which a question gives up on a Redis that does not answer; None to wait for ever.
    """

    def __init__(self, patience: float | None) -> None:
        self._redis = client(SOCKET["socket_timeout"])
        self.patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=_give_up_after(patience),
            before_sleep=self._log_waiting,
            reraise=True,
        )
        """Calls what asks Redis, by redis-py or by Kombu, as often as waiting may help."""
        self._logged: float | None = None
        """When it was last logged that Redis does not answer, by the monotonic clock; None while it answers."""
        self._patience = patience

    def ask(self, question: Callable[[redis.Redis], _Answer]) -> _Answer:
        """One command: ``connection.ask(lambda redis: redis.get(key))``.

        Raises:
            UserError: Redis did not answer within the patience, or refuses this user.
            ResponseError: the key holds something of another type.
        """
        return self._answer(lambda: question(self._redis))

    def ask_once(self, question: Callable[[redis.Redis], _Answer]) -> _Answer:
        """As ``ask``, without patience.

        Raises:
            RedisError: of any kind.
        """
        return question(self._redis)

    def pipeline(self, fill: Callable[[Pipeline], object]) -> list[Any]:
        """Several commands in one round trip, in order; returns their answers. Raises as ``ask``.

        No transaction: a Redis over its ``maxmemory`` refuses even deletions inside one.
        """

        def execute() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipeline:
                fill(pipeline)
                return pipeline.execute()

        return self._answer(execute)

    def ping(self, *, at_once: bool = False) -> None:
        """Ask once, without patience, whether waiting for this Redis makes sense.

        Args:
            at_once: whether it must answer now.

        Raises:
            UserError: it refuses this user, it is a cluster, it is not the one that its certificate should say, or
            Sentinels know of none; or it does not answer ``at_once``.
        """
        try:
            client(_PING_SECONDS).exists("embedmill:jobs", "embedmill:workers")  # of two slots, which a cluster refuses
        except redis.RedisError as error:
            if told := refusal(error) or (_fault() if isinstance(error, UNREACHABLE) else None):
                raise told from None
            if at_once and isinstance(error, UNREACHABLE):
                raise _no_answer("", error) from None

    def memory_limit(self) -> int:
        """Redis's ``maxmemory`` in bytes; 0 for none, or where this user may not ask."""
        try:
            return int(self._redis.info("memory").get("maxmemory", 0))
        except (ResponseError, *UNREACHABLE):
            return 0

    def _answer(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            answer = self.patiently(ask)
        except ResponseError as error:
            raise refusal(error) or error from None
        except UNREACHABLE as error:
            raise refusal(error) or _fault() or _no_answer(f" for {self._patience:.0f} s", error) from None
        self._logged = None
        return answer

    def _log_waiting(self, state: tenacity.RetryCallState) -> None:
        """Once an outage, and then now and then."""
        if self._logged is not None and time.monotonic() - self._logged < _LOG_EVERY:
            return
        again, self._logged = self._logged is not None, time.monotonic()
        error = _inner(state.outcome.exception() if state.outcome else None)
        what = "is full; waiting for workers to make room" if isinstance(error, OutOfMemoryError) else "does not answer"
        since = f", for {state.seconds_since_start or 0:.0f} s now" if again else ""
        _log.warning("Redis at %s %s (%s); trying again%s", redis_address(), what, message_of(error), since)


def _no_answer(waited: str, error: redis.RedisError) -> UserError:
    return UserError(
        f"no answer from Redis at {redis_address()}{waited} ({message_of(error)})",
        "a Redis server must run there",
        "start one (redis-server), or set EMBEDMILL_REDIS_URL" + tls_hint(error),
    )


def _fault() -> UserError | None:
    return settings().redis.fault(client_options(_PING_SECONDS))


def _may_pass(error: BaseException) -> bool:
    """Whether waiting may help. A refused password or certificate is a ConnectionError to redis-py, like any other."""
    inner = _inner(error)
    return isinstance(inner, (*WAITED_FOR, OSError, kombu.exceptions.OperationalError)) and refusal(inner) is None


def _inner(error: BaseException | None) -> BaseException | None:
    """redis-py's error, where Kombu has put it into one of its own."""
    return (error.__cause__ or error) if isinstance(error, kombu.exceptions.OperationalError) else error


def _give_up_after(patience: float | None) -> Any:
    """A full Redis is waited for without end: workers make room."""
    if patience is None:
        return tenacity.stop_never
    after = tenacity.stop_after_delay(patience)

    def stop(state: tenacity.RetryCallState) -> bool:
        error = _inner(state.outcome.exception() if state.outcome else None)
        return not isinstance(error, OutOfMemoryError) and after(state)

    return stop
