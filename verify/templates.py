"""A row's text by the job's template: a second implementation, independent of ``contract.template``."""

from collections.abc import Iterator, Sequence
from typing import Any

from verify.readers import Record


def parts_of(template: str) -> list[tuple[str, str | None]]:
    r"""A job's ``text`` cut into pairs: a literal, and the column that follows it; None after the last literal.

    ``"{a}: {b.c}\n"`` gives ``("", "a"), (": ", "b.c"), ("\n", None)``. The syntax is that of ``contract.template``,
    parsed here a second time.
    """
    found: list[tuple[str, str | None]] = []
    literal, letters = "", iter(template)
    for letter in letters:
        if letter == "\\":
            literal += {"n": "\n", "t": "\t"}.get(following := next(letters), following)
        elif letter == "}":
            literal += next(letters)
        elif letter == "{":
            name = _name(letters)
            if name is None:
                literal += "{"
            else:
                found.append((literal, name))
                literal = ""
        else:
            literal += letter
    return [*found, (literal, None)]


def _name(letters: Iterator[str]) -> str | None:
    """The column's name up to its closing brace; None where the brace is doubled and so means itself."""
    name = ""
    for letter in letters:
        if letter == "{" and not name:
            return None
        if letter == "}":
            return name
        name += next(letters) if letter == "\\" else letter
    raise ValueError("a brace is not closed")


def text_of(template: Sequence[tuple[str, str | None]], record: Record) -> str | None:
    """A row's text; None where all of its columns are null. Bytes that are no UTF-8 become U+FFFD."""
    values = [None if column is None else _text(_value(record, column)) for _, column in template]
    if all(value is None for value in values):
        return None
    return "".join(
        literal + ("" if value is None else value) for (literal, _), value in zip(template, values, strict=True)
    )


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _value(record: Record, column: str) -> Any:
    """A column's value, or that of a dotted path into it; None where anything on the way is null or not there."""
    if column in record:
        return record[column]
    found: Any = record
    for part in column.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
