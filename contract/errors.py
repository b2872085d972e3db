"""The one error a user is shown."""

import click

from contract.entry import INTERRUPTED


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


def reason(error: BaseException) -> str:
    """What an exception says, on one line that is no longer than a few in a terminal."""
    return " ".join(str(error).split())[:300] or type(error).__name__
