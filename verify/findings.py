"""What was found wrong, counted in full and named in part, so that a report stays short and memory constant."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

_KEPT = 20
"""Offenders that are named; all are counted."""


@dataclass(frozen=True)
class Findings:
    """Offending row ids or files: how many, and the first of them. True if there are any."""

    count: int = 0
    first: tuple[int | str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[int] | Sequence[str]) -> "Findings":
        return cls(len(found), tuple(found[:_KEPT]))

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(self.count + other.count, (self.first + other.first)[:_KEPT])

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count:,} ({', '.join(map(str, self.first))}{more})" if self else "none"


NONE = Findings()


@dataclass(frozen=True)
class Tally:
    """Base of figures about one shard or several: two add up, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def findings(self) -> dict[str, Findings]:
        """The fields that hold findings."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Findings)}
