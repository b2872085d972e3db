"""An index of earlier jobs' rows by the hashes of their texts.

It lies in sorted files that are memory-mapped, so only a part of it is in memory, however many rows there are.
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
from contract.origins import Hashes, Origins, hashes_of_column
from contract.reuse import load_sources, read_unchanged

_PART = 1 << 22
"""Rows of a file, about. While it is sorted, its rows take 128 MiB of memory."""
_CONCURRENT = 16
"""Shards that are read at once: an object store takes its time for each."""

_PLACE = [("low", "<u8"), ("job", "<i4"), ("batch", "<i4"), ("row", "<i4")]
_ENTRY = np.dtype([("high", "<u8"), *_PLACE])
"""A row of an earlier job: the two halves of its text's hash, and where the row is."""


class _Part(NamedTuple):
    """The entries of one file, sorted by ``high``. The file has one column after the other."""

    high: npt.NDArray[np.uint64]
    place: npt.NDArray[np.void]

    @classmethod
    def opened(cls, file: Path) -> "_Part":
        rows = file.stat().st_size // _ENTRY.itemsize
        high = np.memmap(file, "<u8", "r", shape=(rows,))
        return cls(high, np.memmap(file, np.dtype(_PLACE), "r", high.nbytes, (rows,)))

    @classmethod
    def sort(cls, file: Path) -> None:
        """Sort a file of unsorted entries into this form. Entries with the same hash keep their order."""
        entries = np.fromfile(file, _ENTRY)
        entries = entries[np.argsort(entries["high"], kind="stable")]
        with file.open("wb") as target:
            entries["high"].tofile(target)
            entries[[name for name, _ in _PLACE]].astype(np.dtype(_PLACE)).tofile(target)


class Index:
    """Finds which row of which earlier job has a text's vector. Pickled, it is its folder's name.

    Args:
        folder: of the index's files; a file has the entries of all hashes with the same first bits.
        bits: how many first bits of a hash decide its file.
    """

    def __init__(self, folder: Path, bits: int) -> None:
        self._folder, self._bits = folder, bits
        self._open: dict[int, _Part | None] = {}

    def __reduce__(self) -> tuple[type["Index"], tuple[Path, int]]:
        return Index, (self._folder, self._bits)

    def find(self, hashes: Hashes) -> Origins:
        """Where the vectors of the texts with these hashes are, ``[n, 2]``."""
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
        """The entries of one file, opened on first use; None where the index has no such file."""
        if part not in self._open:
            file = _file(self._folder, part)
            self._open[part] = _Part.opened(file) if file.exists() else None
        return self._open[part]


@contextlib.contextmanager
def index_of(job: Job) -> Iterator[Index | None]:
    """The index of all rows whose vectors a job may take; None for a job that takes no vectors, or has all its shards.
    It is gone when the ``with`` block ends.

    Raises:
        UserError: an earlier job is gone or does not fit, or one of its shards is not as its worker wrote it.
    """
    sources = load_sources(job)
    if not sources or len(job.committed()) == job.batches:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="embedmill-") as folder:
        yield build_index(sources, Path(folder))


def build_index(sources: Sequence[Job], folder: Path) -> Index:
    """Index all rows of these jobs that have a text and a vector. Of several rows with the same text, that of the first
    job is found.

    Args:
        sources: the jobs, whose committed shards are read.
        folder: an empty folder for the index.

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
    """The number of each hash's file."""
    return high >> np.uint64(64 - bits) if bits else np.zeros_like(high)


def _entries_of(source: Job) -> Iterator[npt.NDArray[np.void]]:
    """The entries of each of a job's shards, in the shards' order. Those of a few shards are in memory at once."""
    left = iter(sorted(source.committed()))
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        while some := list(itertools.islice(left, _CONCURRENT)):
            yield from pool.map(lambda batch: _entries_of_shard(source, batch), some)


def _entries_of_shard(source: Job, batch: int) -> npt.NDArray[np.void]:
    shard, names = source.shard(batch), ["text_hash", "n_tokens", "error"]
    try:
        _, table = read_unchanged(shard, names)
        hashes = hashes_of_column(table.column("text_hash").combine_chunks())
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
