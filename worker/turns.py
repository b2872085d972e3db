"""Whose turn it is on a GPU: processes that share one compute one batch after the other.

Two that compute at once are given the GPU in slices of time, and each change of process costs: on an H200 a batch took
7 % longer so. One after the other need leave the GPU no less busy: a turn ends before the last of its work does.
"""

import fcntl
import os
import re
import tempfile
import time
from types import TracebackType
from typing import Self

_PATIENCE = 10.0
"""Seconds after which it is anybody's turn: a turn saves time, and nothing depends on it. Far longer than a batch."""
_EVERY = 0.0005
"""Seconds between two looks whether the turn has come. A turn's last work goes on for longer than that."""


class Turns:
    """A ``with`` block of it is a turn. A process that dies ends its own.

    Args:
        gpu: what tells the GPU from the machine's others: its PCI bus id.
    """

    def __init__(self, gpu: str) -> None:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        # Of a GPU that is cut into several, whose turns are not one another's. CUDA uses the first that is named.
        part = named.split(",")[0] if "MIG" in named else ""
        name = re.sub(r"\W+", "-", f"embedmill-{os.getuid()}-{gpu}{part}")
        path = f"{tempfile.gettempdir()}/{name}.lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_EVERY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Nothing of it is left open."""
        os.close(self._file)
