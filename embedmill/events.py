"""The events of a run: small records that also go from process to process, each as a line of JSON."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

Step = Literal["engine", "vectors", "verification", "copy", "index", "check"]

STEPS: tuple[Step, ...] = ("engine", "vectors", "verification")
"""Those of ``embedmill embed``."""

EXPORT_STEPS: tuple[Step, ...] = ("copy", "index", "check")
"""Those of ``embedmill export``."""


@dataclass(frozen=True)
class Event:
    """An event: how far a step is."""

    step: Step
    text: str = ""
    """What is done now."""
    done: int = 0
    """Rows."""
    total: int | None = None
    """Rows; None while it is not known, or where a step has none."""
    tokens: int = 0
    """Tokens that this run has embedded."""
    ended: bool = False


class Sender:
    """Writes records into a pipe.

    Args:
        descriptor: the pipe's writing end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)  # the pipe ends with this process, not with one that it starts

    def event(self, event: Event) -> None:
        self.send(event=asdict(event))

    def error(self, found: str, expected: str = "", hint: str = "") -> None:
        """What ended the process: the parts of a ``UserError``."""
        self.send(error=[found, expected, hint])

    def send(self, **record: Any) -> None:
        line = f"{json.dumps(record)}\n".encode()
        while line:
            line = line[os.write(self._descriptor, line) :]
