"""Which processes a program left."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def processes_of(folder: Path) -> list[str]:
    """The command lines of the live processes but this one that have to do with this folder.

    A Redis server writes its title over its command line and environment, but works in the folder.
    """
    found = []
    for process in (one for one in psutil.process_iter() if one.pid != os.getpid()):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = " ".join(process.cmdline())
            if str(folder) in " ".join([command, process.cwd(), *process.environ().values()]):
                found.append(command)
    return found


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
