"""Values of a dataset's columns, taken out of Arrow without loss, and compared."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@dataclass(frozen=True)
class TimeValue:
    """A date, time, timestamp or duration. Python's own have no nanoseconds, and no year after 9999."""

    kind: str
    """``date``, ``time``, ``timestamp``, ``timestamp with zone`` or ``duration``."""
    nanoseconds: int
    """Since 1970, since midnight, or of the duration."""


def value_at(values: pa.Array | pa.ChunkedArray, index: int) -> Any:
    """One value as Python has it: numbers, str, bytes, list, dict of a struct (list of pairs where
    two fields have one name), list of pairs of a map, ``TimeValue``.

    A string that is no UTF-8 is given as bytes.
    """
    return _python(values[index])


def _python(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ExtensionScalar) or pa.types.is_dictionary(kind):
        return _python(scalar.value)
    if pa.types.is_struct(kind):
        pairs = [(field.name, _python(scalar[number])) for number, field in enumerate(kind)]
        fields = dict(pairs)
        return fields if len(fields) == len(pairs) else pairs  # Arrow lets two fields have one name
    if pa.types.is_map(kind):
        return [(_python(pair[0]), _python(pair[1])) for pair in scalar.values]
    if pa.types.is_nested(kind):
        return scalar.as_py() if _is_number(kind.value_type) else [_python(value) for value in scalar.values]
    if pa.types.is_temporal(kind):
        return _time(scalar)
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _time(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if pa.types.is_date32(kind):
        return TimeValue("date", scalar.value * 86_400 * 10**9)
    if pa.types.is_date64(kind):
        return TimeValue("date", scalar.value * 10**6)
    if pa.types.is_interval(kind):  # months, days and nanoseconds, which Python has as they are
        return scalar.as_py()
    name = "time" if pa.types.is_time(kind) else "duration" if pa.types.is_duration(kind) else "timestamp"
    zone = " with zone" if pa.types.is_timestamp(kind) and kind.tz else ""
    return TimeValue(name + zone, scalar.value * _NANOSECONDS[kind.unit])


def same(first: Any, second: Any) -> bool:
    """Whether two values of two readers are one value of the dataset.

    NaN is NaN, and -0.0 is 0.0. A number goes by its value: 1, 1.0 and Decimal("1.00") are the same, and True is no
    number. A field that one struct lacks is the same as a null one, since JSON objects may leave it out. Everything
    else must have one type: the text "a" is not the bytes b"a", and a date is not a timestamp at midnight.
    """
    if first is None or second is None:
        return first is second
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (first != first and second != second)
    if isinstance(first, int | float | Decimal) and isinstance(second, int | float | Decimal):
        return first == second
    if type(first) is not type(second):
        return False
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return all(same(first.get(name), second.get(name)) for name in first.keys() | second.keys())
    return bool(first == second)
