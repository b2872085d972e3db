"""Imports libraries, and forks the programs that ``tests/forking.py`` asks for. It runs as a script, imports nothing of
embedmill and has no thread, so that what is forked is as good as started."""

import ctypes
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parent
PATH = [one for one in sys.path if one not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
_PDEATHSIG = 1  # PR_SET_PDEATHSIG


def module_at(file: Path) -> ModuleType:
    """A module by its file: its package is not to be imported here."""
    spec = importlib.util.spec_from_file_location(f"_{file.stem}", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_all(names: Sequence[str]) -> None:
    gc.disable()
    with module_at(TESTS.parent / "contract" / "deferred.py").deferred("sklearn.metrics"):  # as all programs do
        for name in names:
            importlib.import_module(name)
    gc.freeze()
    threads = {
        file.read_text().strip()
        for file in Path("/proc/self/task").glob("*/comm")
        if file.parent.name != str(os.getpid())
    }
    if threads - {"jemalloc_bg_thd"}:  # jemalloc takes care of it
        raise SystemExit(f"a library has started a thread, which would be lacking in what is forked: {threads}")


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork what is asked for. Returns in the forked processes alone, in each its request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the others of the group
    while True:
        message, files, _, _ = socket.recv_fds(connection, 2**20, 64)
        if not message:
            os._exit(0)
        if not (between := os.fork()):
            if os.fork():
                os._exit(0)
            return begin(json.loads(message), files, connection)
        for file in files:
            os.close(file)
        os.waitpid(between, 0)


def begin(request: dict[str, Any], files: list[int], connection: socket.socket) -> dict[str, Any]:
    """Become a child of the process that asked. What is forked for others to be forked from it goes on serving."""
    while os.getppid() != request["parent"]:
        time.sleep(0.0005)
    pid = str(os.getpid()).encode()
    if "import" in request:
        import_all(request["import"])
        connection.send(pid)
        connection.close()
        return serve(socket.socket(fileno=files[0]))
    become(request, files)
    connection.send(pid)
    connection.close()
    return request


def become(request: dict[str, Any], files: list[int]) -> None:
    """Make this process what was asked for."""
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, 200) for file in files]
    for file in files:
        os.close(file)
    for source, target in zip(high, request["files"], strict=True):
        os.dup2(source, target)
        os.close(source)
    if request["session"]:
        os.setsid()
    if request["dies"]:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != request["parent"]:
            os._exit(1)
    os.chdir(request["cwd"])


def show(words: list[str], env: dict[str, str]) -> None:
    """Have ``ps`` show this command line and environment, where it finds this process's first ones."""
    begin, end, *of_environment = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:49])
    for texts, (first, last) in ((words, (begin, end)), ([f"{a}={b}" for a, b in env.items()], of_environment)):
        shown = b"".join(os.fsencode(text) + b"\0" for text in texts)[: last - first - 1]
        ctypes.memmove(first, shown.ljust(last - first, b"\0"), last - first)


def run(request: dict[str, Any]) -> None:
    """Be ``python -m NAME``."""
    words, env = request["words"], request["env"]
    os.environ.clear()
    os.environ.update(env)
    show(words, env)
    path = [one for one in env.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*([] if request["safe"] else [request["cwd"]]), *path, *PATH]
    sys.orig_argv = words
    sys.argv = words[1 + request["safe"] + 1 :]
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    runpy.run_module(request["name"], run_name="__main__", alter_sys=True)


def nest(request: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Have a fork server of its own, so that what it starts are its children. Returns in what is forked from that,
    too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        for file in request["files"][3:]:
            os.close(file)
        null = os.open(os.devnull, os.O_RDWR)
        for file in range(3):
            os.dup2(null, file)
        os.chdir("/")
        return serve(theirs)
    theirs.close()
    forking = module_at(TESTS / "forking.py")
    forking.server = forking.Server(ours, environment, request["libraries"])
    subprocess.Popen = forking.Popen  # type: ignore[misc]
    return request


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ROOM"}
    connection = socket.socket(fileno=int(sys.argv[1]))
    import_all(sys.argv[2].split(","))
    request = serve(connection)
    if request["nested"]:
        request = nest(request, environment)
    run(request)


main()
