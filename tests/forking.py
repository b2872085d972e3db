"""``python -m NAME`` as a fork of a process that has imported the libraries already.

A Python that imports Celery or PyTorch takes one to eight seconds of CPU time for that alone, and the tests start
hundreds. So ``Popen`` has the programs of ``_LIBRARIES`` forked from ``tests/fork_server.py``, which is started once.
What is forked is a process as any other: a child of the one that asked for it, with the command line, environment,
folder and files that were asked for, and it runs the real ``__main__``. It shares modules of third-party libraries
alone. What an ``embedmill`` that was forked starts itself is forked likewise.

Libraries read variables as they are imported. So a program is forked only if its environment differs in none but those
of ``_MAY_DIFFER``. Every other is started as always, and so is each in a test that is marked ``cold``: a test of the
start itself, or the one of each program that shows that it starts.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LIGHT = (
    *("celery.bin.worker", "celery.apps.worker", "celery.worker.consumer", "celery.concurrency.prefork"),
    *("celery.app.amqp", "celery.app.control", "celery.app.events", "kombu.transport.redis", "redis.sentinel"),
    *("pydantic_settings", "numpy", "pyarrow.parquet", "pyarrow.dataset", "datasets", "tokenizers"),
    *("obstore.store", "click", "rich.console", "rich.progress", "orjson", "xxhash", "tenacity"),
)
_HEAVY = ("sentence_transformers", "onnx", "matplotlib.figure", "duckdb", "jinja2")
_LIBRARIES = {
    **dict.fromkeys(["celery", "worker", "producer"], ()),
    **dict.fromkeys(["embedmill", "embedmill.child"], _HEAVY),
}
"""What the programs that are forked need beside ``_LIGHT``."""

_MAY_DIFFER = (
    "EMBEDMILL_",
    "CHAOS_",
    "AWS_",
    "PYTEST_",
    "XDG_CACHE_HOME",
    "TMPDIR",
    "REMAP_SIGTERM",
    "KMP_",
    "TORCHINDUCTOR_",
)
"""How variables begin that no library of those reads as it is imported, except ``REMAP_SIGTERM``. The fork server has
the one that a worker needs; a worker without it begins anew, and of the other programs none reads it."""

_ROOT = Path(__file__).resolve().parent.parent
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_libc = ctypes.CDLL(None)
_lock = threading.Lock()
_plain = subprocess.Popen
_environment: dict[str, str] = {}
server: "Server | None" = None
cold = False


def install() -> None:
    """Have programs forked from now on, by a server with the environment of now."""
    _environment.update(os.environ)
    subprocess.Popen = Popen  # type: ignore[misc]


class Server:
    """A fork server of this process.

    Args:
        connection: to it.
        environment: that it imported its libraries in.
        libraries: beside ``_LIGHT``.
    """

    def __init__(self, connection: socket.socket, environment: dict[str, str], libraries: Sequence[str] = ()) -> None:
        self._connection, self._libraries = connection, tuple(libraries)
        self.environment = environment
        self._more: dict[tuple[str, ...], Server] = {}

    @classmethod
    def start(cls) -> "Server":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The last argument and the variable make room for others, which ``ps`` is to see.
        script = str(_ROOT / "tests" / "fork_server.py")
        command = [sys.executable, "-P", script, str(theirs.fileno()), ",".join(_LIGHT), " " * 8192]
        env = _environment | {"REMAP_SIGTERM": "SIGQUIT", "ROOM": " " * 65536}
        with theirs:
            _plain(
                command,
                env=env,
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        return cls(ours, _environment)

    def takes(self, env: dict[str, str]) -> bool:
        differing = {name for name, _ in self.environment.items() ^ env.items()} - {"ROOM"}
        if env.get("PYTHONPATH") == str(_ROOT):  # which has none of the libraries
            differing -= {"PYTHONPATH"}
        return not [name for name in differing if not name.startswith(_MAY_DIFFER)]

    def fork(self, request: dict[str, Any], files: Sequence[int], libraries: tuple[str, ...] = ()) -> int:
        """Have a process forked, which becomes a child of this one; its number."""
        if libraries and libraries != self._libraries:
            if libraries not in self._more:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self.fork({"import": libraries}, [theirs.fileno()])
                self._more[libraries] = Server(ours, self.environment, libraries)
            return self._more[libraries].fork(request, files)
        _libc.prctl(_SUBREAPER, 1)  # its own parent ends at once, and it comes to this one
        try:
            socket.send_fds(self._connection, [json.dumps(request | {"parent": os.getpid()}).encode()], files)
            return int(self._connection.recv(64))
        finally:
            _libc.prctl(_SUBREAPER, 0)


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen``, with such programs forked."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore[no-untyped-def]
        global server
        words = list(map(os.fspath, args)) if isinstance(args, list | tuple) else [""]
        safe = words[1:2] == ["-P"]
        python, dash_m, name = [*words[:1], *words[1 + safe : 3 + safe], "", "", ""][:3]
        whole = dict(os.environ if env is None else env)
        shell, identity, (new_session, group) = rest[2], rest[10:14], rest[14:]
        dies = getattr(preexec_fn, "__name__", None) == "die_with_parent"
        usual = (executable, shell, *identity, group) == (None, False, None, None, None, -1, -1)
        usual = usual and (dies or preexec_fn is None) and all(isinstance(one, str) for one in (*words, *whole))
        with _lock:
            known = usual and (python, dash_m) == (sys.executable, "-m") and name in _LIBRARIES
            # The kernel ends what is forked when the thread ends that started the server.
            if known and server is None and not cold and threading.current_thread() is threading.main_thread():
                server = Server.start()
            if cold or not known or server is None or not server.takes(whole):
                super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # type: ignore[misc]
                return
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[3:9]
            streams = [given if given >= 0 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
            request = {
                "name": name, "words": words, "safe": safe, "env": whole, "cwd": os.path.abspath(cwd or "."),
                "files": [0, 1, 2, *pass_fds], "session": new_session, "dies": dies,
                "nested": name == "embedmill", "libraries": _LIBRARIES[name],
            }  # fmt: skip
            self.pid = server.fork(request, [*streams, *pass_fds], _LIBRARIES[name])
            self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
