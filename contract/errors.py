"""The one error a user is shown."""

from typing import TYPE_CHECKING

import click

from contract.entry import INTERRUPTED

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(click.ClickException):
    """Something the user can fix. Click prints it as one line, ``Error: …``, and exits with status 1.

    Args:
        found: what was found.
        expected: what was expected instead; empty where ``found`` says it all.
        hint: what to do about it, most often a command.
    """

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__("; ".join(part for part in (found, expected, hint) if part))


class Interrupted(UserError):
    """Ctrl-C, and how to go on. The exit status is the one that shells have for it."""

    exit_code = INTERRUPTED


_LONGEST = 300
"""Characters of an exception's message that are shown: a few lines in a terminal."""


def reason(error: BaseException) -> str:
    """All that an exception says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, for libraries whose further lines are of no use to a user; its type
    where it says nothing."""
    return str(error).strip().partition("\n")[0].strip()[:_LONGEST] or type(error).__name__


def first_fault(error: "ValidationError") -> str:
    """What is wrong first in a record that pydantic refuses, such as ``plans.0.sm: field required``."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), " ".join(first["msg"].split()).lower()]))
