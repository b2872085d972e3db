"""What single options of the commands mean, and what of them is refused."""

import re
from collections.abc import Sequence
from typing import Any

import click

from contract.errors import UserError
from contract.job import NAME
from contract.shard import own_columns
from contract.store import location
from contract.template import of_column, parse
from contract.vectors import Layout


class Folder(click.Path):
    """A folder, or an object store's URI."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            folder = location(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)
        if folder.local:
            super().convert(value, parameter, context)  # fails for what is no folder
        return folder


def in_utf8(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What a job's record can hold: an argument may be any bytes."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("expected UTF-8") from None
    return value


def job_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A name that can begin a folder's name."""
    if value is not None and not re.fullmatch(NAME, value):
        raise click.BadParameter("expected 1 to 64 letters a to z, digits and hyphens, such as reviews-minilm")
    return value


def separator_of(value: str | None) -> str | None:
    """The character that ``--separator`` names.

    Raises:
        UserError: it is none that can separate fields.
    """
    separator = {"tab": "\t", "\\t": "\t"}.get(value or "", value)
    if separator is not None and (len(separator) != 1 or not separator.isascii() or separator in '"\r\n'):
        raise UserError(f"--separator {value!r} cannot separate fields", "expected one ASCII character, or tab")
    return separator


def columns_of(names: str | None) -> tuple[str, ...]:
    """The columns that ``--keep-columns`` names.

    Raises:
        UserError: a shard has a column of this name.
    """
    columns = tuple(dict.fromkeys(name for part in (names or "").split(",") if (name := part.strip())))
    refuse_taken(columns, "pooled")
    return columns


def refuse_taken(columns: Sequence[str], layout: Layout) -> None:
    """Refuse columns of the dataset whose names a shard of this layout has.

    Raises:
        UserError: there is one.
    """
    if taken := [name for name in columns if name in own_columns(layout)]:
        raise UserError(f"a shard has a column {taken[0]} of its own", hint="leave it out of --keep-columns")


def template_of(column: str | None, text: str | None) -> str | None:
    """The template of a row's text that ``--text-column`` or ``--text`` gives; None where both are left out.

    Raises:
        UserError: both are given, or ``--text`` is no template.
    """
    if column is not None and text is not None:
        raise UserError("--text and --text-column exclude each other", hint="leave one of them out")
    if column is not None:
        return of_column(column)
    try:
        if text is not None:
            parse(text)
    except ValueError as error:
        raise UserError(f"--text {text!r} is no template: {error}", hint="--text '{title}\\n{body}'") from None
    return text
