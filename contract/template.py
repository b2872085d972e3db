r"""Templates: how the text of a row is made of its columns.

``{body}`` stands for the value of a column, ``{doc.text}`` for a field of a nested one; a column that is literally
named so wins. All else stands for itself, but for ``\n`` (a line end), ``\t`` (a tab), ``\\`` (a backslash), and
``{{`` and ``}}`` (braces). Inside a name, a backslash makes a brace or a backslash part of it.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_TOKEN = re.compile(
    r"(?P<brace>\{\{|\}\})|\{(?P<name>(?:[^{}\\]|\\.)*)\}|\\(?P<escape>.)|(?P<plain>[^{}\\]+)", re.DOTALL
)
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


class Template(NamedTuple):
    """Literals and columns in turn: ``literals[0]``, the value of ``columns[0]``, ``literals[1]``, …"""

    literals: tuple[str, ...]
    """One more than there are columns."""
    columns: tuple[str, ...]
    """Names or dotted paths; one may come twice."""

    def render(self, values: Mapping[str, str | None]) -> str | None:
        """A row's text.

        Args:
            values: column → its value. A null column is an empty string; where all are null, the row has no text.
        """
        if all(values[name] is None for name in self.columns):
            return None
        filled = (values[name] or "" for name in self.columns)
        rest = "".join(value + literal for value, literal in zip(filled, self.literals[1:], strict=True))
        return self.literals[0] + rest

    @property
    def plain(self) -> str | None:
        """The column whose value is the text as it is; None where there is more to it."""
        return self.columns[0] if self.literals == ("", "") else None

    @property
    def shown(self) -> str:
        """For people: the column's name, or the template with its line ends and tabs escaped."""
        if self.plain is not None:
            return self.plain
        parts = [_quoted(self.literals[0])]
        for name, literal in zip(self.columns, self.literals[1:], strict=True):
            parts += [of_column(name), _quoted(literal)]
        return "".join(parts)


def parse(text: str) -> Template:
    """The template that ``text`` spells.

    Raises:
        ValueError: it spells none.
    """
    literals, columns, position = [""], [], 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"the brace or backslash at character {position + 1} has no counterpart; {{{{ is a brace")
        if (name := token["name"]) is not None:
            if not name:
                raise ValueError("{} names no column")
            columns.append(re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL))
            literals.append("")
        elif (escape := token["escape"]) is not None:
            if escape not in _ESCAPES:
                raise ValueError(rf"\{escape} is no escape; there are \n, \t and \\")
            literals[-1] += _ESCAPES[escape]
        else:
            literals[-1] += token["brace"][0] if token["brace"] else token["plain"]
        position = token.end()
    if not columns:
        raise ValueError("it names no column, so every row would have the same text")
    return Template(tuple(literals), tuple(columns))


def of_column(name: str) -> str:
    """The template that is one column's value as it is."""
    return "{" + re.sub(r"([\\{}])", r"\\\1", name) + "}"


def _quoted(literal: str) -> str:
    escaped = literal.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return escaped.replace("{", "{{").replace("}", "}}")
