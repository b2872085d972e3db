"""What ``embedmill embed`` starts before it imports its own libraries.

The import of PyTorch is the longest step of a small job, and takes one core. Meanwhile the command imports what it
needs itself, reads its options and starts the services.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from embedmill.children import children

_STARTS_NOTHING = {"--help", "--dry-run"}


def is_run(words: Sequence[str]) -> bool:
    """Whether the words after ``embedmill embed`` can be those of a run, which builds an engine or verifies a job."""
    return not _STARTS_NOTHING & set(words) and any(word.split("=")[0] == "--model" for word in words)


class Early:
    """A run's folder, and the processes that are to build its engine and to verify its job.

    Args:
        came: what ``listen`` gave.
    """

    def __init__(self, came: list[int]) -> None:
        self.came = came
        self._processes = contextlib.ExitStack()
        self._keeps = False
        self.folder = Path(tempfile.mkdtemp(prefix="embedmill-"))
        """For logs and temporary files; this user's alone."""
        try:
            begun = self._processes.enter_context(children(self.folder, "build", "verify"))
        except BaseException:
            self.close()
            raise
        self.builder, self.verifier = begun

    def keep(self) -> None:
        """Keep the folder: something that the user is told names a log in it."""
        self._keeps = True

    def end(self) -> None:
        """End the processes."""
        self._processes.close()

    def close(self) -> None:
        """End the processes, and remove the folder."""
        self.end()
        if not self._keeps:
            shutil.rmtree(self.folder, ignore_errors=True)


def listen() -> list[int]:
    """Have SIGTERM and SIGHUP do what Ctrl-C does: a ``KeyboardInterrupt``, on whose way every process is ended.

    Returns:
        The signals that came.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        os.kill(os.getpid(), signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    return came
