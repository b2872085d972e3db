"""Finds the rows of earlier jobs by their texts' hashes.

The hashes lie in files, sorted and memory-mapped: what is in memory at once is a part of them, however many there are.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.errors import UserError, reason
from contract.job import Job
from contract.origins import Hashes, Origins, of_column
from contract.reuse import load_sources, read_unchanged

_PART = 1 << 22
"""Rows of a file, about: 128 MiB while it is sorted."""
_SIDE_BY_SIDE = 16
"""Shards that are read at once: an object store takes its time for each."""

_PLACE = [("low", "<u8"), ("job", "<i4"), ("batch", "<i4"), ("row", "<i4")]
_ENTRY = np.dtype([("high", "<u8"), *_PLACE])
"""A row: the two halves of its text's hash, and where it lies."""


class _Part(NamedTuple):
    """The entries of a file, sorted: the file has the one column after the other."""

    high: npt.NDArray[np.uint64]
    place: npt.NDArray[np.void]

    @classmethod
    def opened(cls, file: Path) -> "_Part":
        rows = file.stat().st_size // _ENTRY.itemsize
        high = np.memmap(file, "<u8", "r", shape=(rows,))
        return cls(high, np.memmap(file, np.dtype(_PLACE), "r", high.nbytes, (rows,)))

    @classmethod
    def sort(cls, file: Path) -> None:
        """Bring a file of entries in any order into this form; those with the same hash keep their order."""
        entries = np.fromfile(file, _ENTRY)
        entries = entries[np.argsort(entries["high"], kind="stable")]
        with file.open("wb") as target:
            entries["high"].tofile(target)
            entries[[name for name, _ in _PLACE]].astype(np.dtype(_PLACE)).tofile(target)


class Index:
    """Where the vectors of texts are. Pickled it is its folder's name.

    Args:
        folder: its files, of which each has the entries whose hashes begin alike, sorted.
        bits: the first ones of a hash that say which file.
    """

    def __init__(self, folder: Path, bits: int) -> None:
        self._folder, self._bits = folder, bits
        self._open: dict[int, _Part | None] = {}

    def __reduce__(self) -> tuple[type["Index"], tuple[Path, int]]:
        return Index, (self._folder, self._bits)

    def find(self, hashes: Hashes) -> Origins:
        """Where the vectors of texts with these hashes are."""
        found = Origins.of(hashes)
        columns = {name: getattr(found, name).copy() for name in ("job", "batch", "row")}
        parts, known = _parts(hashes[:, 0], self._bits), hashes.any(axis=1)
        for part in np.unique(parts[known]).tolist():
            rows, entries = np.flatnonzero((parts == part) & known), self._part(part)
            if entries is None:
                continue
            at = np.minimum(np.searchsorted(entries.high, hashes[rows, 0]), len(entries.high) - 1)
            places = entries.place[at]
            there = (entries.high[at] == hashes[rows, 0]) & (places["low"] == hashes[rows, 1])
            for name, values in columns.items():
                values[rows[there]] = places[name][there]
        return Origins(hashes, **columns)

    def _part(self, part: int) -> _Part | None:
        """None where there are no entries."""
        if part not in self._open:
            file = _file(self._folder, part)
            self._open[part] = _Part.opened(file) if file.exists() else None
        return self._open[part]


@contextlib.contextmanager
def index_of(job: Job) -> Iterator[Index | None]:
    """The index of all rows of which a job may take vectors, gone when the ``with`` block ends; None where it takes
    from no job.

    Raises:
        UserError: an earlier job is gone, is of no use to this one, or has a shard that is not as it was written.
    """
    sources = load_sources(job)
    if not sources or len(job.committed()) == job.batches:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="embedmill-") as folder:
        yield built(sources, Path(folder))


def built(sources: Sequence[Job], folder: Path) -> Index:
    """An index of all rows of these jobs that have a text and a vector. Of two rows with the same text it has the one
    of the job that comes first.

    Args:
        sources: the jobs, of which the shards that are there are read.
        folder: an empty one for the index.

    Raises:
        UserError: a shard is not as its worker wrote it.
    """
    bits = (sum(source.rows for source in sources) // _PART).bit_length()
    for number, source in enumerate(sources):
        for entries in _entries_of(source):
            entries["job"] = number
            parts = _parts(entries["high"], bits)
            for part in np.unique(parts).tolist():
                with _file(folder, part).open("ab") as file:
                    entries[parts == part].tofile(file)
    for path in folder.iterdir():
        _Part.sort(path)
    return Index(folder, bits)


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part}.entries"


def _parts(high: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """Which part each hash belongs to."""
    return high >> np.uint64(64 - bits) if bits else np.zeros_like(high)


def _entries_of(source: Job) -> Iterator[npt.NDArray[np.void]]:
    """The entries of each shard of a job, in the shards' order; some are in memory at once."""
    left = iter(sorted(source.committed()))
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        while some := list(itertools.islice(left, _SIDE_BY_SIDE)):
            yield from pool.map(lambda batch: _of_shard(source, batch), some)


def _of_shard(source: Job, batch: int) -> npt.NDArray[np.void]:
    shard, names = source.shard(batch), ["text_hash", "n_tokens", "error"]
    try:
        _, table = read_unchanged(shard, names)
        hashes = of_column(table.column("text_hash").combine_chunks())
    except (OSError, ValueError) as error:
        raise UserError(
            f"vectors cannot be taken from {shard} ({reason(error)})",
            "expected a shard as its worker wrote it",
            f"have it made again: python -m verify {source.folder}, then python -m producer retry {source.folder}; "
            "or leave out --reuse",
        ) from None
    has_vector = table.column("n_tokens").to_numpy() > 0
    has_vector &= table.column("error").is_null().to_numpy() & hashes.any(axis=1)
    rows = np.flatnonzero(has_vector)
    entries = np.zeros(len(rows), _ENTRY)
    entries["high"], entries["low"] = hashes[rows].T
    entries["batch"], entries["row"] = batch, rows
    return entries
