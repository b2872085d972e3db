"""The connection to Redis: patient with one that does not answer or is full, plain with one that refuses."""

import logging
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import kombu.exceptions
import redis
import tenacity
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ResponseError
from redis.retry import Retry

from contract.errors import UserError
from contract.settings import settings

if TYPE_CHECKING:
    from celery import Celery

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)

WAITED_FOR = (*UNREACHABLE, OutOfMemoryError)
"""A Redis over its ``maxmemory`` takes data again once workers have settled batches."""

SOCKET = {"socket_timeout": 30, "socket_connect_timeout": 5, "socket_keepalive": True}
"""redis-py's options, by seconds; Kombu's transport takes the same."""

_log = logging.getLogger("embedmill.redis")


def redis_address() -> str:
    """The Redis's URL without a user or password, fit for a message."""
    url = urlsplit(settings().redis_url)
    return f"{url.scheme}://{url.hostname}:{url.port or 6379}{url.path}"


def tls_options() -> dict[str, Any]:
    """For ``rediss://``: the server's certificate and name are always checked. Empty for ``redis://``.

    The names are redis-py's; Celery's ``broker_use_ssl`` takes the same. In both, what a URL's query says would go
    before this: ``settings`` takes no URL with a query.
    """
    if urlsplit(settings().redis_url).scheme != "rediss":
        return {}
    authority = settings().redis_ca
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True} | (
        {"ssl_ca_certs": str(authority)} if authority else {}
    )


def celery_client() -> "Celery":
    """Celery on this Redis for those who are no worker: to send, and to ask."""
    from celery import Celery  # here: who reads shards needs none of it

    client = Celery(broker=settings().redis_url, set_as_current=False)
    client.conf.update(task_ignore_result=True, broker_use_ssl=tls_options() or None, broker_transport_options=SOCKET)
    return client


class Connection:
    """Every call waits for a Redis that does not answer, or is full, and says so in the log.

    Args:
        patience: seconds after which a call gives up on a Redis that does not answer; None to wait for ever.
    """

    def __init__(self, patience: float | None) -> None:
        # Retries are ours alone: redis-py's own ten would keep silent for a minute.
        self._redis = redis.Redis.from_url(
            settings().redis_url,
            retry=Retry(NoBackoff(), 0),
            **SOCKET,
            **tls_options(),
        )
        self.patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=_give_up_after(patience),
            before_sleep=_say_waiting,
            reraise=True,
        )
        """Calls what asks Redis, by redis-py or by Kombu, as often as waiting may help."""
        self.patience = patience

    def call(self, command: str, *arguments: object, **options: object) -> Any:
        """One Redis command, by the name of redis-py's method.

        Raises:
            UserError: Redis did not answer within the patience, or refuses this user.
        """
        return self._answered(lambda: getattr(self._redis, command)(*arguments, **options))

    def together(self, *commands: tuple[object, ...]) -> list[Any]:
        """Several commands in one round trip, in order. Raises as ``call``.

        No transaction: a Redis over its ``maxmemory`` refuses even deletions inside one.
        """

        def execute() -> list[Any]:
            with self._redis.pipeline(transaction=False) as pipe:
                for name, *arguments in commands:
                    getattr(pipe, str(name))(*arguments)
                return pipe.execute()

        return self._answered(execute)

    def _answered(self, ask: Any) -> Any:
        try:
            return self.patiently(ask)
        except (ResponseError, *UNREACHABLE) as error:
            if refusal := _refusal(error):
                raise refusal from None
            if isinstance(error, ResponseError):
                raise  # of a key that somebody else put something into
            raise UserError(
                f"no answer from Redis at {redis_address()} for {self.patience:.0f} s ({said(error)})",
                "a Redis server must run there",
                "start one (redis-server), or set EMBEDMILL_REDIS_URL",
            ) from None

    def knock(self) -> None:
        """Ask once, without patience, whether waiting for this Redis makes sense.

        Raises:
            UserError: it refuses this user, or it is not the one that its certificate should say.
        """
        try:
            self._redis.ping()
        except redis.RedisError as error:
            if refusal := _refusal(error):
                raise refusal from None

    def memory_limit(self) -> int:
        """Redis's ``maxmemory`` in bytes; 0 for none, or where this user may not ask."""
        try:
            return int(self._redis.info("memory").get("maxmemory", 0))
        except (ResponseError, *UNREACHABLE):
            return 0


def _passes(error: BaseException) -> bool:
    """Whether waiting may help. A refused password or certificate is a ConnectionError to redis-py, like any other."""
    inner = _inner(error)
    return isinstance(inner, (*WAITED_FOR, OSError, kombu.exceptions.OperationalError)) and _refusal(inner) is None


def _inner(error: BaseException | None) -> BaseException | None:
    """redis-py's error, where Kombu has put it into one of its own."""
    return (error.__cause__ or error) if isinstance(error, kombu.exceptions.OperationalError) else error


def said(error: BaseException | None) -> str:
    """What Redis said, without the command, which may hold a batch's bytes."""
    return str(error).rpartition("of pipeline caused error: ")[2]


def _refusal(error: BaseException | None) -> UserError | None:
    """What to tell the user of an error that stays however long one waits; None for one that passes."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return UserError(
            f"Redis at {redis_address()} refuses this user ({error})",
            "expected a user with the rights of deploy/redis-users.acl",
            "set EMBEDMILL_REDIS_URL to rediss://USER:PASSWORD@HOST:PORT/0",
        )
    if isinstance(error, ResponseError) and str(error).startswith("DENIED"):
        return UserError(
            f"Redis at {redis_address()} is in protected mode, and refuses whoever is on another machine",
            "expected one that takes this machine's connections",
            "give it users with passwords, as deploy/redis-users.acl does, and protected-mode no",
        )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UserError(
                f"Redis at {redis_address()} is not trusted ({cause.verify_message})",
                f"expected a certificate for this host name by an authority of {settings().redis_ca or 'this system'}",
                "set EMBEDMILL_REDIS_CA to the file of the authority that signed it",
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _give_up_after(patience: float | None) -> Any:
    """A full Redis is waited for without end: workers make room."""
    if patience is None:
        return tenacity.stop_never
    after = tenacity.stop_after_delay(patience)

    def stop(state: tenacity.RetryCallState) -> bool:
        error = _inner(state.outcome.exception() if state.outcome else None)
        return not isinstance(error, OutOfMemoryError) and after(state)

    return stop


def _say_waiting(state: tenacity.RetryCallState) -> None:
    error = _inner(state.outcome.exception() if state.outcome else None)
    what = "is full; waiting for workers to make room" if isinstance(error, OutOfMemoryError) else "does not answer"
    _log.warning("Redis at %s %s (%s); trying again", redis_address(), what, said(error))
