"""The commands, as a process of its own or in this one, and waiting for what another process does.

A process takes half a second to ten seconds of CPU time before it does anything. So it is started where it is what the
test is about: its exit status and its last lines, a signal, an environment, or once for each command.
"""

import importlib
import subprocess
import sys
import time
from collections.abc import Callable

from click.testing import CliRunner, Result

from contract.settings import settings


def run(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """``python -m`` these words, in a process of its own; it must end with this exit status."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=200,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def called(name: str, *arguments: object, expect: int = 0) -> Result:
    """The same in this process, which has imported what the command needs, and with the settings that a new process
    would have. An exception that the command does not turn into an exit status is the test's."""
    settings.cache_clear()
    command = importlib.import_module(f"{name}.command").main
    words = [str(argument) for argument in arguments]
    told = CliRunner().invoke(command, words, prog_name=f"python -m {name}", catch_exceptions=False)
    assert told.exit_code == expect, told.output
    return told


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
