"""Starts ``embedmill.child``, gives tasks to the processes that it forks, and reads their events."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from contract.errors import UserError
from embedmill.environment import python, python_path
from embedmill.events import Event
from embedmill.processes import die_with_parent, end_group

_QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}
"""PyTorch's threads sleep while they wait for one another, unless the user has said otherwise. By default they spin:
where others use the cores too, ``encode()`` of 256 rows took 9.7 s of CPU time instead of 4.4 s, and twice as long."""

_EXIT = 3.0
"""Seconds that the processes have to exit once their tasks are done."""


class Child:
    """A process that waits for its task.

    Args:
        task: the pipe that takes the task.
        events: the pipe that gives its events.
        log: the file that has what its libraries print.
    """

    def __init__(self, task: IO[bytes], events: IO[bytes], log: Path) -> None:
        self._task, self._events, self._log = task, events, log
        self.state: Literal["open", "done", "cancelled"] = "open"
        """What has become of its task."""

    def send(self, request: dict[str, Any]) -> None:
        """Give it its task, which it begins once PyTorch is imported."""
        from contract.settings import settings  # here: a child is started before anything large is imported

        whole = json.dumps([str(settings().engines), request])
        with contextlib.suppress(BrokenPipeError), self._task as task:  # it is dead, which the other pipe tells
            task.write(f"{whole}\n".encode())

    def result(self, show: Callable[[Event], None], note: Callable[[str], None]) -> Any:
        """Wait for the result of its task.

        Args:
            show: takes the events.
            note: takes lines that the user should read.

        Raises:
            UserError: the child's, or it died.
        """
        for line in self._events:
            record = json.loads(line)
            if "event" in record:
                show(Event(**record["event"]))
            elif "note" in record:
                note(record["note"])
            elif "error" in record:
                raise UserError(*record["error"])
            elif "died" in record:
                raise self._died(f" (exit status {record['died']})", killed=record["died"] == -9)
            else:
                self.state = "done"
                return record["result"]
        raise self._died("", killed=False)  # together with its parent

    def cancel(self) -> None:
        """Cancel its task. The process ends once PyTorch is imported."""
        self._task.close()
        self.state = "cancelled"

    def _died(self, status: str, *, killed: bool) -> UserError:
        # Its parent's log is beside its own.
        logs = [log for log in (self._log, self._log.with_name(_LOG)) if log.is_file()]
        said = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").strip().splitlines()]
        last = f": {said[-1]}" if said else ""
        what = "most often the machine is out of memory" if killed else "that is not the data's fault; report it"
        return UserError(f"a process died{status}{last}", what, f"its log: {self._log}")


_LOG = "libraries.log"


@contextlib.contextmanager
def children(folder: Path, *tasks: Literal["build", "verify"]) -> Iterator[list[Child]]:
    """A child process for each task, all of them ended when the ``with`` block ends. PyTorch is imported once.

    Args:
        folder: for their logs and temporary files.
        tasks: what they do.
    """
    with contextlib.ExitStack() as stack:
        begun: list[Child] = []
        given: list[str] = []
        with contextlib.ExitStack() as theirs:
            inherited: list[int] = []
            for what in tasks:
                (reading, task), (events, writing) = os.pipe(), os.pipe()
                inherited += [reading, writing]
                theirs.callback(os.close, reading)
                theirs.callback(os.close, writing)
                log = folder / f"{what}.log"
                files = os.fdopen(task, "wb"), os.fdopen(events, "rb")
                for file in files:
                    stack.callback(_close, file)
                begun.append(Child(*files, log))
                given.append(f"{what}:{reading}:{writing}:{log}")
            started = _start(folder, given, inherited)
        stack.callback(_end, started, begun)
        yield begun


def _start(folder: Path, given: list[str], inherited: list[int]) -> "subprocess.Popen[bytes]":
    with (folder / _LOG).open("ab") as output:
        return subprocess.Popen(
            python("-m", "embedmill.child", *given),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_QUIET | os.environ | python_path() | {"TMPDIR": str(folder)},
            pass_fds=inherited,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _end(started: "subprocess.Popen[bytes]", begun: list[Child]) -> None:
    """End the processes. Where tasks are done they exit by themselves, their parent last."""
    states = {child.state for child in begun}
    if "done" in states and "open" not in states:
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(_EXIT)
    end_group(started, patience=0)


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        file.close()
