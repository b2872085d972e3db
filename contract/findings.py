"""Counts of what is wrong, with the first offenders by name: memory stays the same however many there are."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

_NAMED = 20
"""Offenders that are kept by name; all are counted."""


@dataclass(frozen=True)
class Findings:
    """Offending row ids or files: how many there are, and the first 20 of them, for display only.

    Whatever acts on files, such as ``python -m producer retry``, takes ``Verdict.at_fault``, which is complete.
    """

    count: int = 0
    first: tuple[int | str, ...] = ()

    @classmethod
    def of(cls, offenders: Sequence[int] | Sequence[str]) -> "Findings":
        return cls(len(offenders), tuple(offenders[:_NAMED]))

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(self.count + other.count, (self.first + other.first)[:_NAMED])

    def __str__(self) -> str:
        """Such as ``2 (17, 23)``; of more than 20 the first 20 and an ellipsis."""
        if not self.count:
            return "none"
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count:,} ({', '.join(map(str, self.first))}{more})"


NONE = Findings()


@dataclass(frozen=True)
class Tally:
    """Base of figures about one shard or several: two add up, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def findings(self) -> dict[str, Findings]:
        """The fields that hold findings, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Findings)}
