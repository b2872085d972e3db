"""Digests of a table's columns: of their values, independent of Arrow's memory layout.

The worker takes the digests of a shard's columns right before it writes them, and the verifier takes them again from
the file, so a value that was changed in between, in any row, is found. XXH3 is chosen for its speed: SHA-256 took a
quarter of the time of writing the shard. It is no cryptographic hash, and need not be: whoever changes a shard on
purpose can change the digest beside it too.
"""

from collections import Counter
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


class ColumnDigest:
    """The digest of a column that is given in parts, however it is cut into them.

    Two columns of one type have the same digest if and only if they hold the same values in the same order. Floats go
    by their bits: -0.0 is not 0.0. Each level of nesting has three hashes: of ``[[1, 2], null, [3]]`` one takes the
    index of the null, 1; one the lengths, 2 and 1; and one the values 1, 2, 3.
    """

    def __init__(self) -> None:
        self._levels: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()

    def update(self, values: pa.Array) -> None:
        """Take in the next part of the column."""
        self._update("", values)

    def hexdigest(self) -> str:
        whole = xxhash.xxh3_128(repr(sorted(self._counts.items())).encode())
        for path, level in sorted(self._levels.items()):
            whole.update(path.encode())
            whole.update(level.digest())
        return whole.hexdigest()

    def _level(self, path: str) -> _Hash:
        return self._levels.setdefault(path, xxhash.xxh3_128())

    def _update(self, path: str, values: pa.Array) -> None:
        kind = values.type
        if isinstance(values, pa.ExtensionArray):
            self._update(path, values.storage)
            return
        if pa.types.is_dictionary(kind):
            self._update(path, values.dictionary_decode())
            return
        before = self._counts[path]
        self._counts[path] += len(values)
        if values.null_count:
            nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
            self._level(f"{path}?").update((nulls + before).astype("<i8"))
            values = values.drop_null()  # under a null there may be any value
        if pa.types.is_null(kind):
            return
        if pa.types.is_struct(kind):
            for number, field in enumerate(values.flatten()):
                self._update(f"{path}.{number}", field)
        elif pa.types.is_map(kind):
            self._lengths(
                path, pc.list_value_length(values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
            )
            self._update(f"{path}.key", pa.concat_arrays([values]).keys)
            self._update(f"{path}.item", pa.concat_arrays([values]).items)
        elif pa.types.is_fixed_size_list(kind):
            self._update(f"{path}[]", values.flatten())
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._lengths(path, pc.list_value_length(values))
            self._update(f"{path}[]", values.flatten())
        elif pa.types.is_boolean(kind):
            self._level(path).update(values.to_numpy(zero_copy_only=False).view(np.uint8))
        elif _is_text_or_bytes(kind):
            self._lengths(path, pc.binary_length(values.cast(pa.large_binary())))
            self._level(path).update(_bytes_of(values.cast(pa.large_binary())))
        else:
            self._level(path).update(_fixed_width(values))

    def _lengths(self, path: str, lengths: pa.Array) -> None:
        self._level(f"{path}#").update(lengths.to_numpy(zero_copy_only=False).astype("<i8"))


def digests_of(table: pa.Table) -> dict[str, str]:
    """The digest of each column of a table, by the column's name."""
    digests = {}
    for name in table.column_names:
        digest = ColumnDigest()
        for part in table.column(name).chunks:
            digest.update(part)
        digests[name] = digest.hexdigest()
    return digests


def _is_text_or_bytes(kind: pa.DataType) -> bool:
    tests = ("is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _bytes_of(values: pa.Array) -> memoryview:
    """All values' bytes, one after the other."""
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int64)
    return memoryview(data)[ends[values.offset] : ends[values.offset + len(values)]]


def _fixed_width(values: pa.Array) -> memoryview:
    """The bytes of numbers, dates, times, decimals or bytes of one length."""
    width = values.type.bit_width // 8
    data = values.buffers()[1]
    if data is None or not len(values):
        return memoryview(b"")
    return memoryview(data)[values.offset * width : (values.offset + len(values)) * width]
