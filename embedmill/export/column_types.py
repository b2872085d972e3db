"""Which type of PostgreSQL a kept column becomes."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
from psycopg.types.json import Jsonb

_TYPES: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "bool"),
    (pa.types.is_uint64, "numeric"),
    (pa.types.is_integer, "int8"),
    (pa.types.is_floating, "float8"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_binary, "bytea"),
    (pa.types.is_large_binary, "bytea"),
    (pa.types.is_date32, "date"),
    (pa.types.is_decimal, "numeric"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None, "timestamptz"),
    (pa.types.is_timestamp, "timestamp"),
)

_jsonb = partial(Jsonb, dumps=partial(json.dumps, default=str, allow_nan=False))


class Column(NamedTuple):
    """A column of the table."""

    name: str
    kind: str
    """PostgreSQL's type; ``jsonb`` for lists, structs and whatever else."""

    def values(self, column: pa.ChunkedArray) -> list[Any]:
        """What psycopg writes for each row.

        Raises:
            ValueError: the type does not hold one of them, such as a nanosecond.
        """
        kind = column.type
        if pa.types.is_timestamp(kind):
            column = column.cast(pa.timestamp("us", kind.tz))
        values: list[Any] = column.to_pylist()
        return [None if value is None else _jsonb(value) for value in values] if self.kind == "jsonb" else values


def column_of(field: pa.Field) -> Column:
    """The column for a kept one."""
    return Column(field.name, next((name for fits, name in _TYPES if fits(field.type)), "jsonb"))
