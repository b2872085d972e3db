"""Starts ``embedmill.child`` and listens to it."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from contract.errors import UserError
from embedmill.environment import python, python_path
from embedmill.events import Event
from embedmill.processes import die_with_parent, end_group

_QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}
"""PyTorch's threads sleep while they wait for one another, unless the user has said otherwise. By default they spin:
where others use the cores too, ``encode()`` of 256 rows took 9.7 s of CPU time instead of 4.4 s, and twice as long."""

_EXIT = 3.0
"""Seconds that a child has to exit once its task is done."""


class Child:
    """A child process that waits for its task.

    Args:
        process: its process, with a pipe to its stdin.
        events: the pipe that it writes into.
        log: what its libraries print.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", events: int, log: Path) -> None:
        self._process, self._events, self._log = process, events, log
        self._finished = False

    def run(self, request: dict[str, Any], show: Callable[[Event], None], note: Callable[[str], None]) -> Any:
        """Have the task done.

        Args:
            request: the task.
            show: takes the events.
            note: takes lines that the user should read.

        Returns:
            The result.

        Raises:
            UserError: the child's, or it died.
        """
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError), self._process.stdin as task:  # it is dead: the pipe below ends
                task.write(f"{json.dumps(request)}\n".encode())
        with open(self._events, "rb", closefd=False) as lines:
            for line in lines:
                record = json.loads(line)
                if "event" in record:
                    show(Event(**record["event"]))
                elif "note" in record:
                    note(record["note"])
                elif "error" in record:
                    raise UserError(*record["error"])
                else:
                    self._finished = True
                    return record["result"]
        raise self._died()

    def end(self) -> None:
        """End the process: by itself if it has done its task, so that its libraries remove their temporary files."""
        if self._finished:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT)
        end_group(self._process, patience=0)

    def _died(self) -> UserError:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        status = self._process.wait()
        last = f": {said[-1]}" if said else ""
        what = "most often the machine is out of memory" if status == -9 else "that is not the data's fault; report it"
        return UserError(f"a process died (exit status {status}){last}", what, f"its log: {self._log}")


@contextlib.contextmanager
def child(what: Literal["build", "verify"], log: Path) -> Iterator[Child]:
    """A child process, gone when the ``with`` block ends.

    Args:
        what: it does.
        log: where its output goes; what its libraries leave behind when it is killed lies beside it.
    """
    reading, writing = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        try:
            with log.open("ab") as output:
                started = subprocess.Popen(
                    python("-m", "embedmill.child", what, str(writing)),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=_QUIET | os.environ | python_path() | {"TMPDIR": str(log.parent)},
                    pass_fds=[writing],
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        finally:
            os.close(writing)
        begun = Child(started, reading, log)
        stack.callback(begun.end)
        yield begun
