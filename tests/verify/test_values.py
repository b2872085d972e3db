"""Values of kept columns: taken out of Arrow without loss, and the same if and only if they are one value."""

import io
import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verify.values import TimeValue, same, value_at

NAN = float("nan")


def one(value: Any, kind: pa.DataType) -> Any:
    """A value as a reader takes it out of a column of this type."""
    return value_at(pa.array([value], kind), 0)


def test_values_that_are_one() -> None:
    zoned = pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ms", "UTC")
    alike = [
        (NAN, NAN), (-0.0, 0.0), (1, 1.0), (Decimal("1.0"), 1), ([1, (2,)], [1, (2,)]), (None, None), ("a", "a"),
        ({"a": 1, "b": None}, {"a": 1}), ({}, {"a": None}), ([NAN, {"a": [NAN]}], [NAN, {"a": [NAN]}]),
        (one(datetime(2026, 1, 1, tzinfo=UTC), zoned[0]), one(datetime(2026, 1, 1, tzinfo=UTC), zoned[1])),
        (one(1, pa.timestamp("s")), one(1000, pa.timestamp("ms"))),
        (one("a", pa.dictionary(pa.int8(), pa.string())), one("a", pa.string_view())),
    ]  # fmt: skip
    for first, second in alike:
        assert same(first, second), (first, second)
        assert same(second, first), (first, second)


def test_values_that_differ() -> None:
    day = date(2026, 1, 1)
    apart = [
        (1, True), (0, False), (1, "1"), (b"a", "a"), (None, NAN), (None, 0), ([1], [1, 2]), ({"a": 1}, {"b": 1}),
        ("", None), ([], None), ({}, None), ({"a": 1}, [("a", 1)]), ([True], [1]), (1, [1]), (2**53, 2**53 + 1),
        (float(2**53), 2**53 + 1), (Decimal("0.1"), 0.1), (NAN, 0.0), ({"a": {"b": 1}}, {"a": {"b": 2}}),
        (one(0, pa.timestamp("us")), one(0, pa.timestamp("us", "UTC"))),
        (one(day, pa.date32()), one(datetime(2026, 1, 1), pa.timestamp("s"))),
        (one(5, pa.time64("ns")), one(5, pa.duration("ns"))),
        (one(5, pa.time64("ns")), one(6, pa.time64("ns"))),
    ]  # fmt: skip
    for first, second in apart:
        assert not same(first, second), (first, second)
        assert not same(second, first), (first, second)


def test_times_keep_their_nanoseconds_and_years_that_python_does_not_know() -> None:
    assert one(2**62, pa.timestamp("ns")) == TimeValue("timestamp", 2**62)
    assert one(10**15, pa.timestamp("s")) == TimeValue("timestamp", 10**24)
    assert one(10**7, pa.int32()) == 10**7
    assert value_at(pa.array([10**7], pa.int32()).cast(pa.date32()), 0) == TimeValue("date", 10**7 * 86_400 * 10**9)
    late = pa.array([[10**9 + number for number in range(50)]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))
    changed = pa.array([[10**9 + number + (number == 25) for number in range(50)]], pa.list_(pa.int32()))
    assert not same(value_at(late, 0), value_at(changed.cast(late.type), 0))


def test_a_string_that_is_no_utf_8_is_its_bytes() -> None:
    broken = pa.array([b"\xff", b"\xfe"]).view(pa.string())
    assert [value_at(broken, index) for index in range(2)] == [b"\xff", b"\xfe"]


LEAVES: dict[str, tuple[pa.DataType, Callable[[random.Random], Any]]] = {
    "int8": (pa.int8(), lambda chance: chance.randrange(-128, 128)),
    "uint64": (pa.uint64(), lambda chance: chance.choice([0, 2**53 + 1, 2**64 - 1, chance.randrange(2**64)])),
    "float16": (pa.float16(), lambda chance: chance.randrange(-2048, 2048) / 8),
    "float32": (pa.float32(), lambda chance: chance.choice([NAN, float("inf"), chance.randrange(2**24) / 64])),
    "float64": (pa.float64(), lambda chance: chance.choice([NAN, -float("inf"), 5e-324, chance.random()])),
    "bool": (pa.bool_(), lambda chance: chance.random() < 0.5),
    "string": (pa.string(), lambda chance: "".join(chance.choices("aé🙂\0 ", k=chance.randrange(6)))),
    "binary": (pa.binary(), lambda chance: chance.randbytes(chance.randrange(5))),
    "decimal": (pa.decimal128(20, 3), lambda chance: Decimal(chance.randrange(-(10**15), 10**15)).scaleb(-3)),
    "date": (pa.date32(), lambda chance: chance.randrange(-(2**31), 2**31)),
    "time": (pa.time64("ns"), lambda chance: chance.randrange(86_400 * 10**9)),
    "timestamp": (pa.timestamp("us"), lambda chance: chance.randrange(-(2**62), 2**62)),
    "instant": (pa.timestamp("ns", "UTC"), lambda chance: chance.randrange(-(2**62), 2**62)),
    "duration": (pa.duration("ms"), lambda chance: chance.randrange(2**62)),
}


def draw_type(chance: random.Random, depth: int = 2) -> pa.DataType:
    kind = chance.choice([*LEAVES, *(("list", "large list", "fixed list", "struct", "map") if depth else ())])
    if kind in LEAVES:
        return LEAVES[kind][0]
    inner = draw_type(chance, depth - 1)
    return {
        "list": pa.list_(inner),
        "large list": pa.large_list(inner),
        "fixed list": pa.list_(inner, 2),
        "struct": pa.struct([("a", inner), ("b", pa.int8())]),
        "map": pa.map_(pa.string(), inner),
    }[kind]


def draw_value(chance: random.Random, kind: pa.DataType, nulls: float = 0.1) -> Any:
    """A value that ``pa.array`` makes one of this type of."""
    if chance.random() < nulls:
        return None
    if pa.types.is_map(kind):
        return [(str(key), draw_value(chance, kind.item_type)) for key in range(chance.randrange(3))]
    if pa.types.is_struct(kind):
        return {field.name: draw_value(chance, field.type) for field in kind}
    if pa.types.is_nested(kind):
        size = kind.list_size if pa.types.is_fixed_size_list(kind) else chance.randrange(4)
        return [draw_value(chance, kind.value_type) for _ in range(size)]
    return next(draw for leaf, draw in LEAVES.values() if leaf == kind)(chance)


def written_and_read(column: pa.Array) -> pa.Array:
    file = io.BytesIO()
    pq.write_table(pa.table({"column": column}), file)
    return pq.read_table(file)["column"]


def cases(number: int) -> Iterator[tuple[random.Random, pa.DataType]]:
    for seed in range(number):
        chance = random.Random(seed)
        yield chance, draw_type(chance)


def test_drawn_values_of_drawn_types_are_the_same_exactly_if_they_are_equal() -> None:
    compared = differing = 0
    for chance, kind in cases(400):
        drawn = [draw_value(chance, kind) for _ in range(8)]
        column = pa.array(drawn, kind)
        again = written_and_read(column)
        values = [value_at(column, index) for index in range(len(drawn))]
        for index, value in enumerate(values):
            assert same(value, value_at(again, index)), (kind, drawn[index])
        for first, second in combinations(range(len(drawn)), 2):
            equal = repr(drawn[first]) == repr(drawn[second])
            assert same(values[first], values[second]) == equal, (kind, drawn[first], drawn[second])
            compared, differing = compared + 1, differing + (not equal)
    assert compared > differing > compared / 2


def changed(chance: random.Random, value: Any, kind: pa.DataType) -> Any:
    """The value with one leaf of it drawn anew; None becomes a value."""
    if value is None or not value or not pa.types.is_nested(kind):
        return draw_value(chance, kind, nulls=0)
    if pa.types.is_struct(kind):
        name = chance.choice(list(value))
        return value | {name: changed(chance, value[name], kind.field(name).type)}
    at = chance.randrange(len(value))
    if pa.types.is_map(kind):
        return [*value[:at], (value[at][0], changed(chance, value[at][1], kind.item_type)), *value[at + 1 :]]
    return [*value[:at], changed(chance, value[at], kind.value_type), *value[at + 1 :]]


@pytest.mark.parametrize("seed", range(4))
def test_one_leaf_that_was_changed_is_seen(seed: int) -> None:
    chance = random.Random(seed)
    seen = 0
    for _ in range(200):
        kind = draw_type(chance)
        value = draw_value(chance, kind)
        other = changed(chance, value, kind)
        if repr(value) != repr(other):
            assert not same(one(value, kind), one(other, kind)), (kind, value, other)
            seen += 1
    assert seen > 100


def test_two_fields_of_one_name_are_both_compared() -> None:
    kind = pa.struct([("a", pa.int64()), ("a", pa.int64())])

    def twins(first: int, second: int) -> Any:
        arrays = [pa.array([first]), pa.array([second])]
        return value_at(pa.StructArray.from_arrays(arrays, fields=list(kind)), 0)

    assert same(twins(1, 2), twins(1, 2))
    assert not same(twins(1, 2), twins(9, 2))
    assert not same(twins(1, 2), twins(1, 9))
