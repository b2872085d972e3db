"""What to tell the user of a Redis that refuses, however long one waits."""

import ssl

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    ResponseError,
)

from contract.errors import UserError
from contract.settings import settings

_CLUSTER = (MovedError, AskError, ClusterCrossSlotError, ClusterDownError)


def redis_address() -> str:
    """The Redis's URL without a user or password, fit for a message."""
    return settings().redis.shown


def message_of(error: BaseException | None) -> str:
    """What Redis answered, without the command, which may hold a batch's bytes, and redis-py's view of Sentinels."""
    return str(error).rpartition("of pipeline caused error: ")[2].partition(" : <redis.client.Redis")[0]


def refusal(error: BaseException | None) -> UserError | None:
    """What to tell the user of an error that stays however long one waits; None for one that passes."""
    if isinstance(error, _CLUSTER):
        return UserError(
            f"Redis at {redis_address()} is a Redis Cluster ({message_of(error)})",
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
    return _untrusted(error)


def _untrusted(error: BaseException | None) -> UserError | None:
    """A certificate that is refused is somewhere among the causes of what redis-py raises."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UserError(
                f"Redis at {redis_address()} is not trusted ({error.verify_message})",
                f"expected a certificate for this host name by an authority of {settings().redis_ca or 'this system'}",
                "set EMBEDMILL_REDIS_CA to the file of the authority that signed it",
            )
        error = error.__cause__ or error.__context__
    return None


def tls_hint(error: BaseException) -> str:
    """A server that speaks only TLS hangs up on whoever does not."""
    hung_up = any(words in str(error) for words in ("closed by server", "reset by peer"))
    return "; if it speaks only TLS, the address begins with rediss://" if hung_up and not settings().redis.tls else ""
