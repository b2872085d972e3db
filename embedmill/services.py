"""The services that run for one command alone: a Redis that nobody else can reach, and a worker."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from contract.errors import UserError
from contract.settings import put
from embedmill.environment import python, python_path
from embedmill.processes import process, redis_server


class Worker:
    """The worker's process.

    Args:
        running: the process.
        log: its log.
    """

    def __init__(self, running: "subprocess.Popen[bytes]", log: Path) -> None:
        self._running, self.log = running, log

    def check(self) -> None:
        """Check that it still runs.

        Raises:
            UserError: it does not; with the last line of its log.
        """
        if (status := self._running.poll()) is None:
            return
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        said = (errors or lines or ["it said nothing"])[-1].removeprefix("Error: ")
        raise UserError(f"the worker ended with status {status} ({said})", hint="run the same command again to go on")


@contextlib.contextmanager
def private_redis(folder: Path) -> Iterator[None]:
    """A Redis for this process and its child processes: on the loopback interface, with a random password, without a
    file on the disk.

    Args:
        folder: for its log; this user's alone.
    """
    with redis_server(folder, password=secrets.token_hex(16)) as url:
        put(redis_url=url)
        yield


@contextlib.contextmanager
def worker(folder: Path) -> Iterator[Worker]:
    """A worker with one child for the CPU, or four for each GPU. It starts in the background.

    Args:
        folder: for its log, and where it runs.

    Yields:
        The worker, which is killed when the ``with`` block ends. What it has finished is committed by then; what it has
        not is computed again by the next run.
    """
    log = folder / "worker.log"
    with process(python("-m", "embedmill.worker"), log, env=python_path(), cwd=folder, patience=0) as running:
        yield Worker(running, log)
