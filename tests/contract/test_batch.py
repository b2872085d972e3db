import base64
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from contract.batch import Batch, width
from contract.origins import Origins, hashes_of
from contract.tokens import TokenRows
from tests.contract.samples import a_batch

WIRE = base64.b64decode(
    """
/////5gDAAAQAAAAAAAKAA4ABgAFAAgACgAAAAABBAAQAAAAAAAKAAwAAAAEAAgACgAAAMAAAAAEAAAAAwAAAHgAAABEAAAABAAAAJz///8gAAAABAAAAB
AAAABmZWRjYmE5ODc2NTQzMjEwAAAAABAAAABlbWJlZG1pbGwuZW5naW5lAAAAANj///8QAAAABAAAAAEAAAA3AAAADwAAAGVtYmVkbWlsbC5iYXRjaAAI
AAwABAAIAAgAAAAkAAAABAAAABcAAABqYXJnb24tdHJhaW4tMDEyMzQ1Njc4OQANAAAAZW1iZWRtaWxsLmpvYgAAAAkAAABsAgAA8AEAAIQBAAAYAQAA4A
AAAKwAAAB0AAAAPAAAAAQAAADI/f//AAAAAhAAAAAcAAAABAAAAAAAAAAIAAAAZnJvbV9yb3cAAAAAvP3//wAAAAEgAAAA/P3//wAAAAIQAAAAHAAAAAQA
AAAAAAAACgAAAGZyb21fYmF0Y2gAAPD9//8AAAABIAAAADD+//8AAAACEAAAABwAAAAEAAAAAAAAAAgAAABmcm9tX2pvYgAAAAAk/v//AAAAASAAAABk/v
//AAAADxAAAAAcAAAABAAAAAAAAAAJAAAAdGV4dF9oYXNoAAAAyv7//xAAAACU/v//AAAAAhAAAAAcAAAABAAAAAAAAAAIAAAAbl90b2tlbnMAAAAAiP7/
/wAAAAEgAAAAyP7//wAAABAUAAAAJAAAAAQAAAABAAAAIAAAAA4AAAB0b2tlbl90eXBlX2lkcwAANv///wQAAAAA////AAAAAhAAAAAYAAAABAAAAAAAAA
AEAAAAaXRlbQAAAADw/v//AAAAASAAAAAw////AAAAEBQAAAAkAAAABAAAAAEAAAAgAAAADgAAAGF0dGVudGlvbl9tYXNrAACe////BAAAAGj///8AAAAC
EAAAABgAAAAEAAAAAAAAAAQAAABpdGVtAAAAAFj///8AAAABIAAAAJj///8AAAAQFAAAACQAAAAEAAAAAQAAACAAAAAJAAAAaW5wdXRfaWRzAAYACAAEAA
YAAAAEAAAA0P///wAAAAIQAAAAGAAAAAQAAAAAAAAABAAAAGl0ZW0AAAAAwP///wAAAAEgAAAAEAAUAAgAAAAHAAwAAAAQABAAAAAAAAACEAAAACAAAAAE
AAAAAAAAAAYAAAByb3dfaWQAAAgADAAIAAcACAAAAAAAAAFAAAAAAAAAAP////94AgAAFAAAAAAAAAAMABgABgAFAAgADAAMAAAAAAMEABwAAACIAQAAAA
AAAAAAAAAMABwAEAAEAAgADAAMAAAAeAEAABwAAAAUAAAAAwAAAAAAAAAAAAAABAAEAAQAAAAVAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAKgAAAAAA
AAAwAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAOAAAAAAAAABoAAAAAAAAAAAAAAAAAAAAaAAAAAAAAAAAAAAAAAAAAGgAAAAAAA
AAMAAAAAAAAACYAAAAAAAAAAAAAAAAAAAAmAAAAAAAAAAAAAAAAAAAAJgAAAAAAAAAIgAAAAAAAADAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAjAAAAAAAA
AOgAAAAAAAAAAAAAAAAAAADoAAAAAAAAACIAAAAAAAAAEAEAAAAAAAAAAAAAAAAAABABAAAAAAAAIwAAAAAAAAA4AQAAAAAAAAAAAAAAAAAAOAEAAAAAAA
AjAAAAAAAAAGABAAAAAAAAAAAAAAAAAABgAQAAAAAAACMAAAAAAAAAAAAAAAwAAAADAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAwAAAAAAAAA
AAAAAAAAAAADAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAA
MAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAYAAAAAAAAAAQiTRhgQIITAAAAIg4AAQAS
DwcAkAAQAAAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAQiTRhgQIIhAAAAogIAAAA5AAAAAwABAAAQAFdjAAAAYhQAAwIAUAAAAAAAAAAAADAAAAAAAAAABC
JNGGBAghkAAABEAQAAAAQAAAIABAwABAgABwIAUAAAAAAAAAAAADAAAAAAAAAABCJNGGBAggsAAAAfAAEAF1AAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAQi
TRhgQIIMAACAAwAAAAkAAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAEIk0YYECCCwAAAB8AAQAXUAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAABCJNGGBAggwAAI
D///////////////8AAAAAAAAAAAAMAAAAAAAAAAQiTRhgQIIMAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAEIk0YYECCDAAAgAAAAAAAAAAA
AAAAAAAAAAAAAAAAAP////8AAAAA
"""
)
"""``a_batch()`` as this version's first release wrote it. Batches of an older producer may wait in Redis: a change of
these bytes' meaning is a change of the format."""

LIST = pa.list_(pa.field("item", pa.int32(), nullable=False), 4)
SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("input_ids", LIST, nullable=False),
        pa.field("attention_mask", LIST, nullable=False),
        pa.field("token_type_ids", LIST, nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("text_hash", pa.binary(16), nullable=False),
        pa.field("from_job", pa.int32(), nullable=False),
        pa.field("from_batch", pa.int32(), nullable=False),
        pa.field("from_row", pa.int32(), nullable=False),
    ]
)

FROM = {"text_hash": [bytes(16)], "from_job": [-1], "from_batch": [0], "from_row": [0]}
"""The last columns of a row whose text nobody knows."""


def assert_same(found: Batch, expected: Batch) -> None:
    assert (found.job, found.number, found.engine) == (expected.job, expected.number, expected.engine)
    pairs = [(getattr(found, name), getattr(expected, name)) for name in ("row_id", "lengths", "n_tokens")]
    for left, right in [*pairs, (found.tokens.ids, expected.tokens.ids)]:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_the_bytes_on_the_wire_mean_these_arrays() -> None:
    assert_same(Batch.from_bytes(WIRE), a_batch())


def test_the_bytes_are_the_documented_arrow_stream() -> None:
    with pa.ipc.open_stream(a_batch().to_bytes(4, pad_id=0)) as stream:
        record = stream.read_next_batch()
        with pytest.raises(StopIteration):
            stream.read_next_batch()
    assert record.schema.equals(SCHEMA)
    assert record.schema.metadata == {
        b"embedmill.job": b"jargon-train-0123456789",
        b"embedmill.batch": b"7",
        b"embedmill.engine": b"fedcba9876543210",
    }
    assert record.to_pydict() == {
        "row_id": [14, 15, 16],
        "input_ids": [[2, 57, 3, 0], [2, 99, 98, 3], [0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0]] * 3,
        "n_tokens": [3, 9, 0],
        "text_hash": [bytes(16)] * 3,
        "from_job": [-1] * 3,
        "from_batch": [0] * 3,
        "from_row": [0] * 3,
    }


def test_where_vectors_come_from_is_on_the_wire() -> None:
    hashes = hashes_of(["a", "a", None])
    numbers = [np.array(values, np.int32) for values in ([0, 1, -1], [7, 0, 0], [2, 65_535, 0])]
    sent = replace(a_batch(), origins=Origins(hashes, *numbers))
    found = Batch.from_bytes(sent.to_bytes(4, pad_id=0)).origins
    assert found is not None
    assert sent.origins is not None
    for name in ("hashes", "job", "batch", "row"):
        assert np.array_equal(getattr(found, name), getattr(sent.origins, name))
    assert hashes[0].tobytes() == bytes.fromhex("ca978112ca1bbdcafac231b39a23dc4d")  # of sha256sum


def test_the_buffers_are_lz4_frames() -> None:
    assert a_batch().to_bytes(4, pad_id=0).count(b"\x04\x22\x4d\x18") == 9  # the frame's magic number, once a column


def random_batch(rows: int, longest: int) -> Batch:
    random = np.random.default_rng(rows)
    lengths = random.integers(0, longest + 1, rows, np.int32)
    tokens = TokenRows(random.integers(-(2**31), 2**31, lengths.sum(), np.int32), lengths)
    row_id, n_tokens = random.integers(0, 2**62, rows), random.integers(0, 2**31, rows, np.int32)
    return Batch("job-ü", 2**40, "engine", row_id, tokens, n_tokens)


@pytest.mark.parametrize(
    ("rows", "longest", "max_length"), [(1, 2, 2), (3, 512, 512), (1000, 7, 7), (0, 4, 4), (200, 8192, 8192)]
)
def test_what_was_packed_comes_out(rows: int, longest: int, max_length: int) -> None:
    batch = random_batch(rows, longest)
    assert_same(Batch.from_bytes(batch.to_bytes(max_length, pad_id=0)), batch)


def test_arrays_that_are_views_are_packed_by_their_values() -> None:
    wide = np.arange(40, dtype=np.int32).reshape(2, 20)
    batch = Batch("job", 0, "e", np.arange(6)[::3], TokenRows(wide[0, ::5], wide[:, 2]), wide[:, 1])
    batch = replace(batch, tokens=TokenRows(np.arange(48, dtype=np.int32)[::2], wide[:, 2]))
    assert_same(Batch.from_bytes(batch.to_bytes(22, pad_id=0)), batch)


def records(payload: bytes) -> list[pa.RecordBatch]:
    with pa.ipc.open_stream(payload) as stream:
        return list(stream)


def test_a_wide_batch_is_in_parts_and_none_of_its_rows_is_missing_where_it_is_cut_between_them() -> None:
    kept = pa.array([None, *(f"row {row}" for row in range(1, 200))])
    batch = replace(random_batch(200, 8192), kept={"a": kept, "b": kept.dictionary_encode()})
    payload = batch.to_bytes(8192, pad_id=0)
    parts = records(payload)
    assert len(parts) == 4
    assert {part.schema.field("input_ids").type.list_size for part in parts} == {8192}
    found = Batch.from_bytes(payload)
    assert_same(found, batch)
    assert {name: values.to_pylist() for name, values in found.kept.items()} == {"a": kept.to_pylist()} | {
        "b": kept.to_pylist()
    }
    sink = pa.BufferOutputStream()
    stream = pa.ipc.new_stream(sink, parts[0].schema)
    for part in parts[:3]:
        stream.write_batch(part)
    with pytest.raises(ValueError, match="its end is missing"):
        Batch.from_bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("max_length", "longest", "expected"),
    [
        *((512, longest, 512) for longest in (1, 3, 512)),
        *((4, 1, 4), (510, 510, 510), (513, 1, 128), (513, 129, 256), (513, 513, 513)),
        *((8192, 1, 128), (8192, 128, 128), (8192, 129, 256), (8192, 8065, 8192), (8194, 8193, 8194)),
    ],
)
def test_a_batch_is_as_wide_as_the_engine_takes_or_beyond_512_as_its_longest_row(
    max_length: int, longest: int, expected: int
) -> None:
    assert width(max_length, longest) == expected
    lengths = np.array([longest, 1], np.int32)
    batch = Batch("j", 0, "e", np.arange(2), TokenRows(np.ones(longest + 1, np.int32), lengths), lengths)
    (record,) = records(batch.to_bytes(max_length, pad_id=9))
    assert record.column("input_ids").to_pylist()[1] == [1] + [9] * (expected - 1)


def test_a_batch_of_which_no_row_is_computed_has_no_padding() -> None:
    assert width(512, 0) == width(8192, 0) == 1


@pytest.mark.parametrize("payload", [b"", b"\0" * 64, b"ARROW1\0\0", b"PAR1", b"{}", b"\xff\xff\xff\xff\0\0\0\0"])
def test_other_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=f"^no batch, but {len(payload)} bytes: "):
        Batch.from_bytes(payload)


def test_a_batch_cut_anywhere_is_refused() -> None:
    for size in range(len(WIRE)):
        with pytest.raises(ValueError, match="no batch"):
            Batch.from_bytes(WIRE[:size])


def test_a_flipped_bit_is_never_another_error_than_a_refusal() -> None:
    for place in range(0, len(WIRE)):
        damaged = bytearray(WIRE)
        damaged[place] ^= 0x80
        try:
            Batch.from_bytes(bytes(damaged))
        except ValueError as error:
            assert "no batch" in str(error)  # noqa: PT017 - some bits are padding and change nothing


@pytest.mark.parametrize(
    "schema",
    [
        SCHEMA.remove(4),
        SCHEMA.remove(8),
        SCHEMA.append(pa.field("more", pa.int32())),
        SCHEMA.set(0, pa.field("row_id", pa.int32(), nullable=False)),
        SCHEMA.set(2, pa.field("attention_mask", pa.list_(pa.int32()), nullable=False)),
        SCHEMA.set(3, pa.field("token_type_ids", pa.list_(LIST.value_field, 5), nullable=False)),
        pa.schema([("text", pa.string())]),
    ],
    ids=[
        "a column less",
        "another one less",
        "a column more",
        "narrow row ids",
        "ragged mask",
        "another length",
        "something else",
    ],
)
def test_a_stream_of_another_schema_is_refused(schema: pa.Schema) -> None:
    with pytest.raises(ValueError, match="no batch"):
        Batch.from_bytes(_stream(schema.with_metadata(_metadata())))


@pytest.mark.parametrize("key", ["embedmill.job", "embedmill.batch", "embedmill.engine"])
def test_a_stream_that_does_not_say_whose_it_is_is_refused(key: str) -> None:
    assert len(Batch.from_bytes(_stream(SCHEMA.with_metadata(_metadata())))) == 0
    with pytest.raises(ValueError, match=key):
        Batch.from_bytes(_stream(SCHEMA.with_metadata({k: v for k, v in _metadata().items() if k != key})))


def _metadata() -> dict[str, str]:
    return {"embedmill.job": "j", "embedmill.batch": "0", "embedmill.engine": "e"}


def _stream(schema: pa.Schema) -> bytes:
    return _stream_of(pa.RecordBatch.from_pylist([], schema=schema))


def _stream_of(record: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as stream:
        stream.write_batch(record)
    return sink.getvalue().to_pybytes()


def test_lengths_are_the_tokens_after_truncation() -> None:
    assert a_batch().lengths.tolist() == [3, 4, 0]
    assert a_batch().lengths.dtype == np.int32


def test_padding_costs_next_to_nothing_on_the_wire() -> None:
    rows, real = 1024, 20
    ids = np.random.default_rng(0).integers(0, 30_000, rows * real, np.int32)
    lengths = np.full(rows, real, np.int32)
    batch = Batch("j", 0, "e", np.arange(rows), TokenRows(ids, lengths), lengths)
    assert len(batch.to_bytes(512, pad_id=0)) < 2 * ids.nbytes  # 160 kB, where the arrays have 6 MB


@pytest.mark.parametrize("rows", [[[1, 0, 1, 0]], [[0, 1, 1, 1]]])
def test_padding_before_a_token_is_refused(rows: list[list[int]]) -> None:
    columns = {"row_id": [0], "input_ids": [[5] * 4], "attention_mask": rows, "token_type_ids": [[0] * 4]}
    record = pa.RecordBatch.from_pydict(columns | {"n_tokens": [3]} | FROM, schema=SCHEMA.with_metadata(_metadata()))
    with pytest.raises(ValueError, match="padding before a token"):
        Batch.from_bytes(_stream_of(record))


def test_token_types_that_no_row_has_are_refused() -> None:
    ones = [[1] * 4]
    columns = {"row_id": [0], "input_ids": ones, "attention_mask": ones, "token_type_ids": ones, "n_tokens": [4]}
    record = pa.RecordBatch.from_pydict(columns | FROM, schema=SCHEMA.with_metadata(_metadata()))
    with pytest.raises(ValueError, match="token_type_ids"):
        Batch.from_bytes(_stream_of(record))
