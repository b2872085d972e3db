"""Options that several benchmarks have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_RECORDS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"

Option = Callable[[Any], Any]
"""A decorator of a command."""


def records_in(name: str, more: str = "") -> Option:
    """``--json``, the command's ``target``: by default this file of docs/benchmarks.

    Args:
        name: of the file.
        more: what else is to be said of it.
    """
    return click.option(
        "--json",
        "target",
        type=click.Path(path_type=Path, dir_okay=False),
        default=_RECORDS / name,
        help=f"Where the records go{more}.  [default: docs/benchmarks/{name}]",
    )


def repeat_option(default: int) -> Option:
    """``--repeat``, with this default."""
    return click.option(
        "--repeat",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Runs of each; medians count.",
    )
