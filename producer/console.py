"""The lines that the commands print: results on stdout, what they do on stderr."""

from rich.console import Console

STDOUT, STDERR = Console(markup=False), Console(stderr=True, markup=False)


def print_line(text: str) -> None:
    """A result, on stdout as it is, however long."""
    STDOUT.print(text, highlight=False, soft_wrap=True)


def print_note(text: str) -> None:
    """What a command does, on stderr as it is, however long."""
    STDERR.print(text, highlight=False, soft_wrap=True)
