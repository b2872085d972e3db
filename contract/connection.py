"""The connection to Redis: patient with one that does not answer or is full, plain with one that refuses."""

import logging
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import kombu.exceptions
import redis
import tenacity
from kombu.entity import Exchange, Queue
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ResponseError,
)
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

CELERY_VARIABLES = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
    "CELERY_CONFIG_MODULE",
    "CELERY_LOADER",
    "CELERY_CUSTOM_WORKER_POOL",
)
"""Variables that Celery puts before what its app says; ``celery -b`` and ``--config`` set them too. Messages would go
to another server, past the checks of ``rediss://``."""

_CLUSTER = (MovedError, AskError, ClusterCrossSlotError, ClusterDownError)

_SAID_EVERY = 60.0
"""Seconds between two lines about a Redis that does not answer."""

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


def ignore_celery_variables() -> dict[str, str]:
    """Have Celery see none of ``CELERY_VARIABLES`` in this process; returns those that were set."""
    return {name: os.environ.pop(name) for name in CELERY_VARIABLES if name in os.environ}


def ignored(name: str) -> str:
    """What is to be said of such a variable."""
    return f"{name} is ignored: EMBEDMILL_REDIS_URL says where Redis is, embedmill says all else"


def celery_client() -> "Celery":
    """Celery on this Redis for those who are no worker: to send, and to ask."""
    from celery import Celery  # here: who reads shards needs none of it

    for name in ignore_celery_variables():
        _log.warning(ignored(name))
    client = Celery(broker=settings().redis_url, set_as_current=False)
    client.conf.update(task_ignore_result=True, broker_use_ssl=tls_options() or None, broker_transport_options=SOCKET)
    return client


def direct_queue(name: str) -> Queue:
    """The Celery queue that is the Redis list of this name, without an exchange, of which Redis would keep a record."""
    return Queue(name, Exchange(""), routing_key=name, no_declare=True)


def client(timeout: float = SOCKET["socket_timeout"]) -> redis.Redis:
    """redis-py on this Redis, which never tries again by itself.

    Args:
        timeout: seconds that an answer, or a connection, may take.
    """
    # Retries are ours alone: redis-py's own ten would keep silent for a minute.
    times = {"socket_timeout": timeout, "socket_connect_timeout": min(timeout, SOCKET["socket_connect_timeout"])}
    return redis.Redis.from_url(
        settings().redis_url, retry=Retry(NoBackoff(), 0), **{**SOCKET, **times}, **tls_options()
    )


class Connection:
    """Every call waits for a Redis that does not answer, or is full, and says so in the log.

    Args:
        patience: seconds after which a call gives up on a Redis that does not answer; None to wait for ever.
    """

    def __init__(self, patience: float | None) -> None:
        self._redis = client(SOCKET["socket_timeout"])
        self.patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=_give_up_after(patience),
            before_sleep=self._say_waiting,
            reraise=True,
        )
        """Calls what asks Redis, by redis-py or by Kombu, as often as waiting may help."""
        self._said: float | None = None
        """When it was last said that Redis does not answer, by the monotonic clock; None while it answers."""
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
            answer = self.patiently(ask)
            self._said = None
            return answer
        except (ResponseError, *UNREACHABLE) as error:
            if refusal := _refusal(error):
                raise refusal from None
            if plain := _plain(error):
                raise plain from None
            if isinstance(error, ResponseError):
                raise  # of a key that somebody else put something into
            raise UserError(
                f"no answer from Redis at {redis_address()} for {self.patience:.0f} s ({said(error)})",
                "a Redis server must run there",
                "start one (redis-server), or set EMBEDMILL_REDIS_URL" + _tls_hint(error),
            ) from None

    def knock(self) -> None:
        """Ask once, without patience, whether waiting for this Redis makes sense.

        Raises:
            UserError: it refuses this user, it is a cluster, or it is not the one that its certificate should say.
        """
        try:
            self._redis.exists("embedmill:jobs", "embedmill:workers")  # of two slots, which a cluster refuses
        except redis.RedisError as error:
            if refusal := _refusal(error) or _plain(error):
                raise refusal from None

    def _say_waiting(self, state: tenacity.RetryCallState) -> None:
        """Once an outage, and then now and then."""
        if self._said is not None and time.monotonic() - self._said < _SAID_EVERY:
            return
        again, self._said = self._said is not None, time.monotonic()
        error = _inner(state.outcome.exception() if state.outcome else None)
        what = "is full; waiting for workers to make room" if isinstance(error, OutOfMemoryError) else "does not answer"
        for_long = f", for {state.seconds_since_start or 0:.0f} s now" if again else ""
        _log.warning("Redis at %s %s (%s); trying again%s", redis_address(), what, said(error), for_long)

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
    if isinstance(error, _CLUSTER):
        return UserError(
            f"Redis at {redis_address()} is a Redis Cluster ({said(error)})",
            "expected a single server, with or without replicas: Celery's messages lie on one",
            "set EMBEDMILL_REDIS_URL to a Redis with cluster mode off",
        )
    if isinstance(error, NoPermissionError):
        return UserError(
            f"Redis at {redis_address()} refuses this user ({error})",
            "expected a user with the rights of deploy/redis-users.acl",
            "give it those, and run ACL LOAD",
        )
    if isinstance(error, AuthenticationError):
        scheme, _, rest = redis_address().partition("://")
        return UserError(
            f"Redis at {redis_address()} refuses this user ({error})",
            "expected its password, and its name unless that is default; percent-encoded",
            f"set EMBEDMILL_REDIS_URL to {scheme}://:PASSWORD@{rest} or {scheme}://USER:PASSWORD@{rest}",
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


def _plain(error: BaseException) -> UserError | None:
    """What to tell the user where ``rediss://`` is for a server without TLS, which just does not answer to it."""
    url = urlsplit(settings().redis_url)
    if url.scheme != "rediss" or not isinstance(error, UNREACHABLE):
        return None
    try:
        with socket.create_connection((url.hostname or "localhost", url.port or 6379), timeout=2) as plain:
            plain.sendall(b"PING\r\n")
            answer = plain.recv(64)
    except OSError:
        return None
    if not answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED")):
        return None
    return UserError(
        f"Redis at {redis_address()} does not speak TLS",
        "rediss:// is for one that does",
        "set EMBEDMILL_REDIS_URL to redis://… with the same host, port, user and password",
    )


def _tls_hint(error: BaseException) -> str:
    """A server that speaks only TLS hangs up on whoever does not."""
    hung_up = any(words in str(error) for words in ("closed by server", "reset by peer"))
    plain = urlsplit(settings().redis_url).scheme == "redis"
    return "; if it speaks only TLS, the address begins with rediss://" if hung_up and plain else ""


def _give_up_after(patience: float | None) -> Any:
    """A full Redis is waited for without end: workers make room."""
    if patience is None:
        return tenacity.stop_never
    after = tenacity.stop_after_delay(patience)

    def stop(state: tenacity.RetryCallState) -> bool:
        error = _inner(state.outcome.exception() if state.outcome else None)
        return not isinstance(error, OutOfMemoryError) and after(state)

    return stop
