import base64

import numpy as np
import pyarrow as pa
import pytest

from contract.batch import Batch
from tests.contract.samples import a_batch

WIRE = base64.b64decode(
    """
/////7gCAAAQAAAAAAAKAA4ABgAFAAgACgAAAAABBAAQAAAAAAAKAAwAAAAEAAgACgAAAMAAAAAEAAAAAwAAAHgAAABEAAAABAAAAJz///8gAA
AABAAAABAAAABmZWRjYmE5ODc2NTQzMjEwAAAAABAAAABlbWJlZG1pbGwuZW5naW5lAAAAANj///8QAAAABAAAAAEAAAA3AAAADwAAAGVtYmVk
bWlsbC5iYXRjaAAIAAwABAAIAAgAAAAkAAAABAAAABcAAABqYXJnb24tdHJhaW4tMDEyMzQ1Njc4OQANAAAAZW1iZWRtaWxsLmpvYgAAAAUAAA
CQAQAAFAEAAKgAAAA8AAAABAAAAJT+//8AAAACEAAAABwAAAAEAAAAAAAAAAgAAABuX3Rva2VucwAAAACI/v//AAAAASAAAADI/v//AAAAEBQA
AAAkAAAABAAAAAEAAAAgAAAADgAAAHRva2VuX3R5cGVfaWRzAAA2////BAAAAAD///8AAAACEAAAABgAAAAEAAAAAAAAAAQAAABpdGVtAAAAAP
D+//8AAAABIAAAADD///8AAAAQFAAAACQAAAAEAAAAAQAAACAAAAAOAAAAYXR0ZW50aW9uX21hc2sAAJ7///8EAAAAaP///wAAAAIQAAAAGAAA
AAQAAAAAAAAABAAAAGl0ZW0AAAAAWP///wAAAAEgAAAAmP///wAAABAUAAAAJAAAAAQAAAABAAAAIAAAAAkAAABpbnB1dF9pZHMABgAIAAQABg
AAAAQAAADQ////AAAAAhAAAAAYAAAABAAAAAAAAAAEAAAAaXRlbQAAAADA////AAAAASAAAAAQABQACAAAAAcADAAAABAAEAAAAAAAAAIQAAAA
IAAAAAQAAAAAAAAABgAAAHJvd19pZAAACAAMAAgABwAIAAAAAAAAAUAAAAD/////uAEAABQAAAAAAAAADAAYAAYABQAIAAwADAAAAAADBAAcAA
AA6AAAAAAAAAAAAAAADAAcABAABAAIAAwADAAAAPgAAAAcAAAAFAAAAAMAAAAAAAAAAAAAAAQABAAEAAAADQAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAACoAAAAAAAAAMAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAADgAAAAAAAAAaAAAAAAAAAAAAAAAAAAAAGgAAA
AAAAAAAAAAAAAAAABoAAAAAAAAADAAAAAAAAAAmAAAAAAAAAAAAAAAAAAAAJgAAAAAAAAAAAAAAAAAAACYAAAAAAAAACIAAAAAAAAAwAAAAAAA
AAAAAAAAAAAAAMAAAAAAAAAAIwAAAAAAAAAAAAAACAAAAAMAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAAA
MAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAAAAAAAAAAAGAAA
AAAAAAAEIk0YYECCEwAAACIOAAEAEg8HAJAAEAAAAAAAAAAAAAAAAAAAAAAAMAAAAAAAAAAEIk0YYECCIQAAAKICAAAAOQAAAAMAAQAAEABXYw
AAAGIUAAMCAFAAAAAAAAAAAAAwAAAAAAAAAAQiTRhgQIIZAAAARAEAAAAEAAACAAQMAAQIAAcCAFAAAAAAAAAAAAAwAAAAAAAAAAQiTRhgQIIL
AAAAHwABABdQAAAAAAAAAAAAAAAAAAAADAAAAAAAAAAEIk0YYECCDAAAgAMAAAAJAAAAAAAAAAAAAAAAAAAAAP////8AAAAA
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
    ]
)


def assert_same(found: Batch, expected: Batch) -> None:
    assert (found.job, found.number, found.engine) == (expected.job, expected.number, expected.engine)
    for name in ("row_id", "input_ids", "attention_mask", "token_type_ids", "n_tokens"):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_the_bytes_on_the_wire_mean_these_arrays() -> None:
    assert_same(Batch.from_bytes(WIRE), a_batch())


def test_the_bytes_are_the_documented_arrow_stream() -> None:
    with pa.ipc.open_stream(a_batch().to_bytes()) as stream:
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
    }


def test_the_buffers_are_lz4_frames() -> None:
    assert a_batch().to_bytes().count(b"\x04\x22\x4d\x18") == 5  # the frame's magic number, once a column


@pytest.mark.parametrize(("rows", "length"), [(1, 2), (3, 512), (1000, 7), (0, 4)])
def test_what_was_packed_comes_out(rows: int, length: int) -> None:
    random = np.random.default_rng(rows)
    ids, mask, types = random.integers(-(2**31), 2**31, (3, rows, length), np.int32)
    row_id = random.integers(0, 2**62, rows)
    batch = Batch("job-ü", 2**40, "engine", row_id, ids, mask, types, random.integers(0, 2**31, rows, np.int32))
    assert_same(Batch.from_bytes(batch.to_bytes()), batch)


def test_arrays_that_are_views_are_packed_by_their_values() -> None:
    wide = np.arange(60, dtype=np.int32).reshape(3, 20)
    batch = Batch("job", 0, "e", np.arange(6)[::2], wide[:, ::5], wide[:, 1:5], wide.T[:4].T, wide[:, 0])
    assert_same(Batch.from_bytes(batch.to_bytes()), batch)


@pytest.mark.parametrize("payload", [b"", b"\0" * 64, b"ARROW1\0\0", b"PAR1", b"{}", b"\xff\xff\xff\xff\0\0\0\0"])
def test_other_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=f"^no batch, but {len(payload)} bytes: "):
        Batch.from_bytes(payload)


def test_a_batch_cut_anywhere_is_refused() -> None:
    end_of_stream = 8  # without the mark nothing is missing
    for size in range(len(WIRE) - end_of_stream):
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
        SCHEMA.append(pa.field("more", pa.int32())),
        SCHEMA.set(0, pa.field("row_id", pa.int32(), nullable=False)),
        SCHEMA.set(2, pa.field("attention_mask", pa.list_(pa.int32()), nullable=False)),
        SCHEMA.set(3, pa.field("token_type_ids", pa.list_(LIST.value_field, 5), nullable=False)),
        pa.schema([("text", pa.string())]),
    ],
    ids=["a column less", "a column more", "narrow row ids", "ragged mask", "another length", "something else"],
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
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
    return sink.getvalue().to_pybytes()


def test_lengths_are_the_tokens_after_truncation() -> None:
    assert a_batch().lengths.tolist() == [3, 4, 0]
    assert a_batch().lengths.dtype == np.int32


def test_padding_costs_next_to_nothing_on_the_wire() -> None:
    rows, length, real = 1024, 512, 20
    ids = np.zeros((rows, length), np.int32)
    ids[:, :real] = np.random.default_rng(0).integers(0, 30_000, (rows, real))
    mask = (np.arange(length) < real).astype(np.int32) * np.ones((rows, 1), np.int32)
    batch = Batch("j", 0, "e", np.arange(rows), ids, mask, np.zeros_like(ids), np.full(rows, real, np.int32))
    assert len(batch.to_bytes()) < 2 * ids[:, :real].nbytes  # 160 kB, where the arrays have 6 MB
