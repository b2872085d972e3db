"""A digest is of the values, not of how they lie in memory."""

import io
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.digest import ColumnDigest, digests_of


def digest(*parts: pa.Array) -> str:
    found = ColumnDigest()
    for part in parts:
        found.update(part)
    return found.hexdigest()


VECTORS = pa.list_(pa.float32(), 3)
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int": (pa.int64(), [1, None, -3, 4]),
    "bool": (pa.bool_(), [True, None, False, True]),
    "float": (pa.float64(), [0.5, None, float("nan"), -0.0]),
    "half": (pa.float16(), [np.float16(0.5), None, np.float16(2), np.float16(0)]),
    "text": (pa.string(), ["a", None, "", "日本"]),
    "large text": (pa.large_string(), ["a", None, "", "日本"]),
    "bytes": (pa.binary(), [b"a", None, b"", b"\xff"]),
    "fixed bytes": (pa.binary(2), [b"ab", None, b"cd", b"\0\0"]),
    "decimal": (pa.decimal128(9, 2), [Decimal("1.50"), None, Decimal("-7.25"), Decimal(0)]),
    "date": (pa.date32(), [date(2026, 1, 2), None, date(1, 1, 1), date(9999, 12, 31)]),
    "time": (pa.timestamp("us", "UTC"), [datetime(2026, 1, 2, tzinfo=UTC), None] * 2),
    "duration": (pa.duration("s"), [timedelta(seconds=1), None, timedelta(0), timedelta(days=9)]),
    "null": (pa.null(), [None] * 4),
    "list": (pa.list_(pa.string()), [["a", None], None, [], ["b"]]),
    "large list": (pa.large_list(pa.int8()), [[1], None, [], [2, 3]]),
    "vectors": (VECTORS, [[1, 2, 3], None, [4, 5, 6], [0, 0, 0]]),
    "token vectors": (pa.list_(VECTORS), [[[1, 2, 3]], None, [], [[4, 5, 6], [7, 8, 9]]]),
    "struct": (
        pa.struct([("a", pa.int32()), ("b", pa.string())]),
        [{"a": 1, "b": "x"}, None, {"a": None, "b": ""}] * 2,
    ),
    "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1)], None, [], [("b", None), ("c", 3)]]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", None, "b", "a"]),
}
every_type = pytest.mark.parametrize(("kind", "values"), COLUMNS.values(), ids=COLUMNS.keys())


def column(kind: pa.DataType, values: list[Any]) -> pa.Array:
    return (
        pa.array(values, kind.value_type).dictionary_encode()
        if pa.types.is_dictionary(kind)
        else pa.array(values, kind)
    )


@every_type
def test_cuts_slices_and_a_file_make_no_difference(kind: pa.DataType, values: list[Any]) -> None:
    whole = column(kind, values)
    expected = digest(whole)
    for cut in range(len(whole) + 1):
        assert digest(whole.slice(0, cut), whole.slice(cut)) == expected
    padded = pa.concat_arrays([whole, whole, whole]) if not pa.types.is_dictionary(kind) else whole
    assert digest(padded.slice(len(whole) if len(padded) > len(whole) else 0, len(whole))) == expected
    file = io.BytesIO()
    pq.write_table(pa.table({"it": whole}), file, compression="zstd", row_group_size=2)
    assert digests_of(pq.read_table(file)) == {"it": expected}


@every_type
def test_any_other_value_order_or_null_has_another_digest(kind: pa.DataType, values: list[Any]) -> None:
    if pa.types.is_null(kind):
        assert digest(column(kind, values)) != digest(column(kind, values[1:]))
        return
    found = {digest(column(kind, values)): values}
    for place in range(len(values)):
        for other in (None, *values):
            changed = [*values[:place], other, *values[place + 1 :]]
            one = digest(column(kind, changed))
            assert repr(found.setdefault(one, changed)) == repr(changed)
    for changed in (values[1:], values[:-1], [*values, None], [*values, values[0]]):
        assert digest(column(kind, changed)) not in found


def test_what_lies_under_a_null_does_not_matter() -> None:
    flat = pa.array(np.arange(6, dtype=np.float32))
    other = pa.array(np.array([0, 1, 2, 9, 9, 9], np.float32))
    mask = pa.array([False, True])
    left, right = (pa.FixedSizeListArray.from_arrays(values, type=VECTORS, mask=mask) for values in (flat, other))
    assert digest(left) == digest(right)
    assert digest(left) != digest(pa.FixedSizeListArray.from_arrays(flat, type=VECTORS))


def test_one_bit_of_one_value_in_many_shows() -> None:
    chance = random.Random(3)
    vectors = np.random.default_rng(3).normal(size=(64, 24)).astype(np.float32)
    kind = pa.list_(pa.float32(), 24)
    before = digest(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind))
    for _ in range(50):
        changed = vectors.copy()
        changed.view(np.uint32)[chance.randrange(64), chance.randrange(24)] ^= 1 << chance.randrange(32)
        assert digest(pa.FixedSizeListArray.from_arrays(pa.array(changed.reshape(-1)), type=kind)) != before
    changed = vectors.copy()
    changed[[3, 9]] = vectors[[9, 3]]
    assert digest(pa.FixedSizeListArray.from_arrays(pa.array(changed.reshape(-1)), type=kind)) != before
