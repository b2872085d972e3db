"""Where Redis is: at one server, at a socket of this machine, or where Sentinels say. For redis-py and for Kombu."""

import re
import socket
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote

import redis
from redis.exceptions import AuthenticationError, ResponseError
from redis.sentinel import Sentinel

from contract.errors import UserError

_LOGIN = r"(?:(?P<user>[^/?#;@:\[\]\s]*)(?::(?P<password>[^/?#;@\[\]\s]*))?@)?"
_HOST = r"(?P<host>\[[0-9a-fA-F:.]+\]|[^/?#;@:\[\]\s]*)(?::(?P<port>\d{1,5}))?(?:/(?P<database>\d*))?"
_SERVER = re.compile(rf"(?P<scheme>rediss?)://{_LOGIN}{_HOST}")
_SOCKET = re.compile(rf"redis\+socket://{_LOGIN}(?P<path>/[^?#;@\s]+)(?:\?virtual_host=(?P<database>\d+))?")
_SENTINEL = re.compile(rf"sentinel://{_LOGIN}{_HOST}")

_T = TypeVar("_T")

_EXPECTED = (
    "expected rediss://user:password@host:port/number, redis://…, redis+socket:///path or "
    "sentinel://host:port;sentinel://host:port/number and nothing after it, the password percent-encoded"
)


@dataclass(frozen=True)
class Login:
    """Who Redis is told that we are; None for nobody, or no password."""

    user: str | None
    password: str | None

    @property
    def options(self) -> dict[str, Any]:
        """For redis-py."""
        return {"username": self.user, "password": self.password}

    @property
    def in_url(self) -> str:
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        return f"{quote(self.user or '', safe='')}{password}@" if self.user or password else ""


@dataclass(frozen=True)
class Watch:
    """How Sentinels are asked."""

    master: str = "mymaster"
    """The name under which they watch Redis."""
    login: Login = Login(None, None)
    """Who the Sentinels, and not Redis, are told that we are."""
    tls: bool = False
    """Whether Sentinels and Redis speak TLS."""


class Address(Protocol):
    """What every kind of address can do. ``options`` are redis-py's: timeouts, and ``ssl_…`` where ``tls``."""

    @property
    def shown(self) -> str:
        """Without a user or password, fit for a message."""

    @property
    def tls(self) -> bool: ...

    @property
    def broker(self) -> str:
        """Kombu's URL."""

    def transport_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """What Kombu must know beside the URL and ``options``."""

    def client(self, options: dict[str, Any]) -> redis.Redis: ...

    def fault(self, options: dict[str, Any]) -> UserError | None:
        """Ask whoever is there, where Redis does not answer, whether waiting makes sense; None if it may."""


@dataclass(frozen=True)
class Server:
    """``redis://`` and ``rediss://``: one server."""

    scheme: str
    host: str
    port: int
    login: Login
    database: str
    """A number; empty where none was given."""

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}" + f"/{self.database}" * bool(self.database)

    @property
    def tls(self) -> bool:
        return self.scheme == "rediss"

    @property
    def broker(self) -> str:
        return f"{self.scheme}://{self.login.in_url}{_bracketed(self.host)}:{self.port}/{self.database or 0}"

    def transport_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {}

    def client(self, options: dict[str, Any]) -> redis.Redis:
        return redis.Redis.from_url(self.broker, **options)

    def fault(self, options: dict[str, Any]) -> UserError | None:
        """A server without TLS just does not answer to ``rediss://``."""
        if not self.tls:
            return None
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as plain:
                plain.sendall(b"PING\r\n")
                answer = plain.recv(64)
        except OSError:
            return None
        if not answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED")):
            return None
        return UserError(
            f"Redis at {self.shown} does not speak TLS",
            "rediss:// is for one that does",
            "set EMBEDMILL_REDIS_URL to redis://… with the same host, port, user and password",
        )


@dataclass(frozen=True)
class Socket:
    """``redis+socket://``: a server on this machine, at a socket in its file system."""

    path: str
    login: Login
    database: str
    tls: bool = False

    @property
    def shown(self) -> str:
        return f"redis+socket://{self.path}" + f"?virtual_host={self.database}" * bool(self.database)

    @property
    def broker(self) -> str:
        return f"redis+socket://{self.login.in_url}{quote(self.path)}?virtual_host={self.database or 0}"

    def transport_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {}

    def client(self, options: dict[str, Any]) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.path, db=int(self.database or 0), **self.login.options, **options)

    def fault(self, options: dict[str, Any]) -> UserError | None:
        return None


@dataclass(frozen=True)
class Sentinels:
    """``sentinel://``: Sentinels, which say where Redis is now, also after another server has taken its place."""

    hosts: tuple[tuple[str, int], ...]
    login: Login
    database: str
    watch: Watch

    @property
    def shown(self) -> str:
        hosts = ";".join(f"sentinel://{_bracketed(host)}:{port}" for host, port in self.hosts)
        return hosts + f"/{self.database}" * bool(self.database)

    @property
    def tls(self) -> bool:
        return self.watch.tls

    @property
    def broker(self) -> str:
        # Kombu goes from one to the next when a connection fails, and takes user, password and number of that one.
        end = f"/{self.database or 0}"
        return ";".join(f"sentinel://{self.login.in_url}{_bracketed(host)}:{port}{end}" for host, port in self.hosts)

    def transport_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"master_name": self.watch.master, "sentinel_kwargs": self._to_sentinels(options)}

    def client(self, options: dict[str, Any]) -> redis.Redis:
        sentinels = self._sentinels(options)
        of_redis = {"db": int(self.database or 0), "ssl": self.tls, **self.login.options, **options}
        master: redis.Redis = sentinels.master_for(self.watch.master, **of_redis)  # type: ignore[no-untyped-call]
        return master

    def fault(self, options: dict[str, Any]) -> UserError | None:
        """Sentinels may refuse this user, or watch no Redis of this name."""
        watched: set[str] = set()
        answered = False
        for sentinel in self._sentinels(options).sentinels:
            try:
                watched |= {str(name) for name in sentinel.sentinel_masters()}
                answered = True
            except (AuthenticationError, ResponseError) as error:
                return UserError(
                    f"a Sentinel at {self.shown} refuses this user ({error})",
                    "expected its password, which may be another one than Redis's, and its user if it has any",
                    "set EMBEDMILL_SENTINEL_PASSWORD, and EMBEDMILL_SENTINEL_USER",
                )
            except (redis.RedisError, OSError):
                continue
        if not answered or self.watch.master in watched:
            return None
        return UserError(
            f"the Sentinels at {self.shown} watch {', '.join(sorted(watched)) or 'nothing'}, not {self.watch.master}",
            "expected the name of a Redis that they watch",
            "set EMBEDMILL_REDIS_MASTER to it",
        )

    def _sentinels(self, options: dict[str, Any]) -> Sentinel:
        return Sentinel(self.hosts, sentinel_kwargs=self._to_sentinels(options))  # type: ignore[no-untyped-call]

    def _to_sentinels(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, **self.watch.login.options, "ssl": self.tls}


def parse(url: str, watch: Watch = Watch()) -> Address:
    """What ``EMBEDMILL_REDIS_URL`` says.

    Args:
        url: as Kombu takes it. With several Sentinels, user, password and number are said at one of them, or at each.
        watch: for Sentinels.

    Raises:
        ValueError: it is no such URL. A query (``?ssl_cert_reqs=none``) would overrule the checks of TLS, in redis-py
            and in Kombu, and a semicolon is a second server to Kombu. A bare slash or ``#`` in a password ends the
            address early, and messages would show it.
    """
    if found := _SERVER.fullmatch(url):
        return Server(found["scheme"], *_host(found, 6379), _login(found), found["database"] or "")
    if found := _SOCKET.fullmatch(url):
        return Socket(unquote(found["path"]), _login(found), found["database"] or "")
    parts = [_SENTINEL.fullmatch(part) for part in url.split(";")]
    sentinels = [part for part in parts if part]
    if len(sentinels) < len(parts):
        raise ValueError(_EXPECTED)
    login = _said_once({_login(part) for part in sentinels} - {Login(None, None)}, Login(None, None))
    database = _said_once({part["database"] or "" for part in sentinels} - {""}, "")
    return Sentinels(tuple(_host(part, 26379) for part in sentinels), login, database, watch)


def _said_once(said: set[_T], otherwise: _T) -> _T:
    if len(said) > 1:
        raise ValueError("expected the same user, password and number for each Sentinel: they are Redis's")
    return said.pop() if said else otherwise


def _host(found: re.Match[str], default_port: int) -> tuple[str, int]:
    port = int(found["port"] or default_port)
    if not 0 < port < 65536:
        raise ValueError("expected a port from 1 to 65535")
    return unquote(found["host"].strip("[]")) or "localhost", port


def _login(found: re.Match[str]) -> Login:
    user, password = found["user"], found["password"]
    return Login(unquote(user) if user else None, unquote(password) if password else None)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
