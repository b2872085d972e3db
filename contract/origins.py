"""Which text each row of a batch has, and where a vector that is there already is taken from.

Two rows have the same text if the first 128 bits of the SHA-256 of their texts are the same. The hash is a
cryptographic one, so that nobody can write a text that takes another one's vector.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.words import count

Int32 = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
"""``[n, 2]``: the first 16 bytes of each text's SHA-256 as two numbers; both 0 for a row without a text."""

BYTES = 16
"""Of a hash."""

HERE = -1
"""The number of the earlier job of a row whose vector is not taken from any."""


def hashes_of(texts: Sequence[str | None]) -> Hashes:
    """The hashes of ``n`` texts, each without a prefix; None for a row without a text."""
    nothing = bytes(BYTES)
    # Half of a surrogate pair, which a Python string can hold and UTF-8 cannot, is hashed as it is.
    parts = [
        nothing if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:BYTES]
        for text in texts
    ]
    return np.frombuffer(b"".join(parts), "<u8").reshape(-1, 2)


def to_fixed(hashes: Hashes) -> pa.Array:
    """The hashes as they travel in a batch: 16 bytes each, zeros for a row without a text."""
    data = np.ascontiguousarray(hashes, "<u8")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), len(hashes), [None, pa.py_buffer(data)])


def of_fixed(column: pa.Array) -> Hashes:
    """The inverse of ``to_fixed``."""
    if not len(column):
        return np.empty((0, 2), np.uint64)
    return np.frombuffer(column.buffers()[1] or b"", "<u8", 2 * len(column), BYTES * column.offset).reshape(-1, 2)


def to_column(hashes: Hashes) -> pa.Array:
    """A shard's ``text_hash``: binary, null for a row without a text."""
    there = pa.array(hashes.any(axis=1))
    ends = np.arange(len(hashes) + 1, dtype=np.int32) * BYTES
    data = np.ascontiguousarray(hashes, "<u8")
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(hashes), [there.buffers()[1], pa.py_buffer(ends), pa.py_buffer(data)]
    )


def of_column(column: pa.Array) -> Hashes:
    """The inverse of ``to_column``.

    Raises:
        ValueError: a value is no hash.
    """
    hashes = np.zeros((len(column), 2), np.uint64)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    values = b"".join(column.drop_null().to_pylist())
    if len(values) != BYTES * int(there.sum()):
        found, texts = count(len(values), "byte"), count(int(there.sum()), "text")
        raise ValueError(f"text_hash has {found} for {texts}; {BYTES} a text are expected")
    hashes[there] = np.frombuffer(values, "<u8").reshape(-1, 2)
    return hashes


@dataclass(frozen=True, eq=False)
class Origins:
    """Of each of ``n`` rows of a batch its text's hash, and where its vector comes from."""

    hashes: Hashes
    """``[n, 2]``"""
    job: Int32
    """``[n]``: the number of the earlier job in ``Job.sources`` that has the row's vector; ``HERE`` for none."""
    batch: Int32
    """``[n]``: the number of the batch there."""
    row: Int32
    """``[n]``: the index of the row in that batch's shard."""

    @classmethod
    def of(cls, hashes: Hashes) -> "Origins":
        """Of rows whose vectors are in no earlier job."""
        zeros = np.zeros(len(hashes), np.int32)
        return cls(hashes, np.full(len(hashes), HERE, np.int32), zeros, zeros)

    @classmethod
    def unknown(cls, rows: int) -> "Origins":
        """Of rows of which no text is known."""
        return cls.of(np.zeros((rows, 2), np.uint64))

    @classmethod
    def joined(cls, parts: "Sequence[Origins]") -> "Origins":
        """The rows of one after the other's."""
        columns = ([getattr(part, name) for part in parts] for name in ("hashes", "job", "batch", "row"))
        return cls(*map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: npt.NDArray[np.intp]) -> "Origins":
        """Only the rows of these indices, in this order."""
        return Origins(self.hashes[rows], self.job[rows], self.batch[rows], self.row[rows])

    @property
    def taken(self) -> npt.NDArray[np.bool_]:
        """``[n]``: whether the row takes its vector from an earlier job."""
        return self.job != HERE

    @property
    def firsts(self) -> npt.NDArray[np.intp]:
        """``[n]``: the first row with the same text; a row whose text is not known is alone."""
        _, index, inverse = np.unique(self.hashes[:, 0], return_index=True, return_inverse=True)
        first = index[inverse]
        same = (self.hashes == self.hashes[first]).all(axis=1) & self.hashes.any(axis=1)
        return np.where(same, first, np.arange(len(self)))

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """``[n]``: whether the row has the text of an earlier row of the batch, whose vector it gets."""
        return ~self.taken & (self.firsts != np.arange(len(self)))
