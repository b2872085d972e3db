"""Of each row of a batch: which text it has, and which earlier job has that text's vector.

Two rows have the same text if the first 128 bits of the SHA-256 of their texts are equal. The hash is cryptographic, so
nobody can write a text that is given another text's vector.
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

NO_JOB = -1
"""In place of an earlier job's number: the row takes no vector."""


def hashes_of(texts: Sequence[str | None]) -> Hashes:
    """The hashes of ``n`` texts without their prefix; None for a row without a text."""
    nothing = bytes(BYTES)
    # Half of a surrogate pair, which a Python string can hold and UTF-8 cannot, is hashed as it is.
    parts = [
        nothing if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:BYTES]
        for text in texts
    ]
    return np.frombuffer(b"".join(parts), "<u8").reshape(-1, 2)


def fixed_of_hashes(hashes: Hashes) -> pa.Array:
    """The hashes as they travel in a batch: 16 bytes each, zeros for a row without a text."""
    data = np.ascontiguousarray(hashes, "<u8")
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), len(hashes), [None, pa.py_buffer(data)])


def hashes_of_fixed(column: pa.Array) -> Hashes:
    """The inverse of ``fixed_of_hashes``."""
    if not len(column):
        return np.empty((0, 2), np.uint64)
    return np.frombuffer(column.buffers()[1] or b"", "<u8", 2 * len(column), BYTES * column.offset).reshape(-1, 2)


def column_of_hashes(hashes: Hashes) -> pa.Array:
    """A shard's ``text_hash``: binary, null for a row without a text."""
    there = pa.array(hashes.any(axis=1))
    ends = np.arange(len(hashes) + 1, dtype=np.int32) * BYTES
    data = np.ascontiguousarray(hashes, "<u8")
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(hashes), [there.buffers()[1], pa.py_buffer(ends), pa.py_buffer(data)]
    )


def hashes_of_column(column: pa.Array) -> Hashes:
    """The inverse of ``column_of_hashes``.

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
    """Of each of ``n`` rows of a batch: its text's hash, and where its vector is taken from."""

    hashes: Hashes
    """``[n, 2]``"""
    job: Int32
    """``[n]``: the earlier job that has the row's vector, by its number in ``Job.sources``; ``NO_JOB`` for none."""
    batch: Int32
    """``[n]``: which of that job's batches has it."""
    row: Int32
    """``[n]``: the row's index in that batch's shard."""

    @classmethod
    def of(cls, hashes: Hashes) -> "Origins":
        """Rows with these texts, of which none takes its vector from an earlier job."""
        zeros = np.zeros(len(hashes), np.int32)
        return cls(hashes, np.full(len(hashes), NO_JOB, np.int32), zeros, zeros)

    @classmethod
    def unknown(cls, rows: int) -> "Origins":
        """Rows whose texts are not known."""
        return cls.of(np.zeros((rows, 2), np.uint64))

    @classmethod
    def joined(cls, parts: "Sequence[Origins]") -> "Origins":
        """The rows of several, one after the other."""
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
        return self.job != NO_JOB

    @property
    def firsts(self) -> npt.NDArray[np.intp]:
        """``[n]``: the first row of the batch with the same text; for a row without a known text the row itself."""
        _, index, inverse = np.unique(self.hashes[:, 0], return_index=True, return_inverse=True)
        first = index[inverse]
        same = (self.hashes == self.hashes[first]).all(axis=1) & self.hashes.any(axis=1)
        return np.where(same, first, np.arange(len(self)))

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """``[n]``: whether the row has the same text as an earlier row of the batch, and so gets that row's vector."""
        return ~self.taken & (self.firsts != np.arange(len(self)))
