"""A record with lists that are added to over time: an entry that this version cannot use spoils nothing but itself.

Such an entry stays in the file, and whoever opens the record can say what is wrong with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from contract.errors import first_fault


@dataclass(frozen=True)
class Unusable:
    """One such entry."""

    field: str
    """Of the record; it holds a list."""
    entry: Any
    """As it stands in the file."""
    reason: str


class GrowingRecord(BaseModel):
    """Base of a record of which some fields are lists of records."""

    LISTS: ClassVar[Mapping[str, type[BaseModel]]]
    """Those fields, and what their entries must be."""

    _unusable: tuple[Unusable, ...] = PrivateAttr(default=())
    """The entries of these fields that are in the file and not in the fields."""

    @model_validator(mode="wrap")
    @classmethod
    def _set_aside(cls, record: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(record, dict):
            return validate(record)
        left, unusable = dict(record), list[Unusable]()
        for field, kind in cls.LISTS.items():
            if isinstance(entries := record.get(field), list | tuple):
                left[field] = _usable(field, kind, entries, unusable)
        found = validate(left)
        found._unusable = tuple(unusable)
        return found

    @model_serializer(mode="wrap")
    def _with_unusable(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        record: dict[str, Any] = write(self)
        for one in self._unusable:
            record[one.field] = [*record[one.field], one.entry]
        return record

    def with_entries(self, field: str, entries: tuple[BaseModel, ...]) -> Self:
        """The record with other entries in one of its lists; what could not be used there is gone."""
        now = self.model_copy(update={field: entries})
        now._unusable = tuple(one for one in self._unusable if one.field != field)
        return now


def _usable(field: str, kind: type[BaseModel], entries: Iterable[Any], unusable: list[Unusable]) -> list[BaseModel]:
    """The entries that are valid; the others are added to ``unusable``."""
    usable = []
    for entry in entries:
        try:
            usable.append(kind.model_validate(entry))
        except ValidationError as error:
            unusable.append(Unusable(field, entry, first_fault(error)))
    return usable
