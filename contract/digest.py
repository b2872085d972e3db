"""A digest of what a table holds, column by column, whatever way Arrow lays it out in memory.

The worker takes the digests of a shard's columns right before it writes them, and the verifier takes them again from
the file. A value that was changed after that, in any row, shows. XXH3 is no cryptographic hash: whoever changes a shard
on purpose can change the digest beside it too, and no hash in the same file could prevent that. It is chosen for its
speed: SHA-256 took a quarter of the time of writing the shard.
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
    """The digest of a column that is given in parts; where it is cut into parts makes no difference.

    Of each level of nesting, values, lengths and the places of nulls go into hashes of their own. Two columns of one
    type have the same digest exactly if they hold the same values in the same order; a float by its bits, so that -0.0
    is not 0.0.
    """

    def __init__(self) -> None:
        self._levels: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()

    def update(self, values: pa.Array) -> None:
        """Take in the next part of the column."""
        self._take("", values)

    def hexdigest(self) -> str:
        whole = xxhash.xxh3_128(repr(sorted(self._counts.items())).encode())
        for path, level in sorted(self._levels.items()):
            whole.update(path.encode())
            whole.update(level.digest())
        return whole.hexdigest()

    def _level(self, path: str) -> _Hash:
        return self._levels.setdefault(path, xxhash.xxh3_128())

    def _take(self, path: str, values: pa.Array) -> None:
        kind = values.type
        if isinstance(values, pa.ExtensionArray):
            self._take(path, values.storage)
            return
        if pa.types.is_dictionary(kind):
            self._take(path, values.dictionary_decode())
            return
        before = self._counts[path]
        self._counts[path] += len(values)
        if values.null_count:
            nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
            self._level(f"{path}?").update((nulls + before).astype("<i8"))
            values = values.drop_null()  # what lies under a null is nobody's value
        if pa.types.is_null(kind):
            return
        if pa.types.is_struct(kind):
            for number, field in enumerate(values.flatten()):
                self._take(f"{path}.{number}", field)
        elif pa.types.is_map(kind):
            self._lengths(
                path, pc.list_value_length(values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
            )
            self._take(f"{path}.key", pa.concat_arrays([values]).keys)
            self._take(f"{path}.item", pa.concat_arrays([values]).items)
        elif pa.types.is_fixed_size_list(kind):
            self._take(f"{path}[]", values.flatten())
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._lengths(path, pc.list_value_length(values))
            self._take(f"{path}[]", values.flatten())
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
    found = {}
    for name in table.column_names:
        digest = ColumnDigest()
        for part in table.column(name).chunks:
            digest.update(part)
        found[name] = digest.hexdigest()
    return found


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
