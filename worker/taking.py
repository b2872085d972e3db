"""Vectors that are not computed: they are taken from earlier jobs, or from a row with the same text."""

import tempfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.job import Job
from contract.origins import Hashes, Int32, hashes_of_column
from contract.reuse import load_sources, read_unchanged
from contract.shard import ShardInfo, own_columns
from contract.store import Location
from contract.vector_columns import vectors_of
from contract.vectors import Layout, RowVectors
from worker.rows import EmbeddedBatch

_MOST_BYTES = 8 << 30
"""Of the earlier vectors that are kept for further batches."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Taken:
    """The vectors that the rows of a batch take from earlier jobs."""

    vectors: RowVectors | None
    """In row order; None if no row takes one."""
    n_tokens: Int32
    """Of these rows."""
    infos: tuple[ShardInfo, ...]
    """The footers of the shards that they were taken from."""
    rows: Mapping[str, int]
    """An earlier job's id → how many were taken from it."""


_NOTHING = Taken(None, np.empty(0, np.int32), (), {})


@dataclass(frozen=True, eq=False)
class _EarlierShard:
    """A shard of an earlier job, its vectors memory-mapped."""

    info: ShardInfo
    hashes: Hashes
    n_tokens: Int32
    index: npt.NDArray[np.intp]
    """``[n]``: each row's index in ``vectors``; -1 for a row without a vector."""
    vectors: RowVectors

    @property
    def bytes(self) -> int:
        """Of the vectors."""
        return self.vectors.values.nbytes + (0 if self.vectors.indices is None else self.vectors.indices.nbytes)

    def indices_of(self, shard: Location, rows: Int32, hashes: Hashes) -> npt.NDArray[np.intp]:
        """The indices in ``vectors`` of these rows' vectors.

        Args:
            shard: the shard's file.
            rows: ``[n]``, indices of rows in the shard.
            hashes: ``[n, 2]``, of the texts that these must have.

        Raises:
            ValueError: a row is not there, has another text, or has no vector.
        """
        there = (rows >= 0) & (rows < len(self.hashes))
        if not there.all() or not np.array_equal(self.hashes[rows], hashes) or (self.index[rows] < 0).any():
            raise ValueError(f"vectors cannot be taken from {shard}: its rows have other texts by now, or no vector")
        return self.index[rows]


class EarlierJobs:
    """Takes vectors from the shards of earlier jobs. Each shard is read once, and kept while there is room."""

    def __init__(self) -> None:
        self._shards: OrderedDict[Location, _EarlierShard] = OrderedDict()

    def take(self, job: Job, batch: Batch, layout: Layout) -> Taken:
        """The vectors that the rows of a batch take from earlier jobs.

        Args:
            job: the batch's.
            batch: with a row for each text.
            layout: what a row has.

        Raises:
            ValueError: an earlier job has no such rows, or a shard of it is not as its worker wrote it.
            UserError: an earlier job is gone, or its folder holds another job.
            OSError: a shard cannot be read, or there is no disk space for its vectors.
        """
        origins = batch.origins
        if origins is None or not origins.taken.any():
            return _NOTHING
        sources, rows = load_sources(job), np.flatnonzero(origins.taken)
        some, n_tokens = origins.take(rows), np.zeros(len(rows), np.int32)
        vectors, order, infos = [], [], []
        counts: Counter[str] = Counter()
        for number, earlier in sorted(set(zip(some.job.tolist(), some.batch.tolist(), strict=True))):
            wanted = np.flatnonzero((some.job == number) & (some.batch == earlier))
            source = _source(sources, number, earlier)
            shard = self._shard(source, earlier, job, layout)
            at = shard.indices_of(source.shard(earlier), some.row[wanted], some.hashes[wanted])
            vectors.append(shard.vectors.at(at))
            n_tokens[wanted] = shard.n_tokens[some.row[wanted]]
            order.append(wanted)
            infos.append(shard.info)
            counts[source.id] += len(wanted)
        return Taken(RowVectors.joined(vectors, np.concatenate(order)), n_tokens, tuple(infos), counts)

    def _shard(self, source: Job, number: int, job: Job, layout: Layout) -> _EarlierShard:
        shard = source.shard(number)
        if shard not in self._shards:
            folder = str(job.staging) if job.staging.local else None
            self._shards[shard] = _read(shard, (source.id, number, source.fingerprint), layout, folder)
        self._shards.move_to_end(shard)
        while len(self._shards) > 1 and sum(one.bytes for one in self._shards.values()) > _MOST_BYTES:
            self._shards.popitem(last=False)
        return self._shards[shard]


def _source(sources: list[Job], number: int, batch: int) -> Job:
    if number not in range(len(sources)) or batch not in range(sources[number].batches):
        raise ValueError(f"its rows take vectors of batch {batch} of earlier job {number}, and there is none")
    return sources[number]


def _read(shard: Location, origin: tuple[str, int, str], layout: Layout, folder: str | None) -> _EarlierShard:
    """Read a shard of an earlier job, and check it against its footer.

    Args:
        shard: its file.
        origin: the job's id, the batch's number and the engine's fingerprint that its footer must have.
        layout: what its rows have.
        folder: for the vectors; None for the system's temporary folder.

    Raises:
        ValueError: it is another shard, or is not as its worker wrote it.
        OSError: it cannot be read, or there is no disk space for its vectors.
    """
    names = [name for name in own_columns(layout) if name not in ("row_id", "truncated")]
    try:
        info, table = read_unchanged(shard, names)
        if (info.job, info.batch, info.engine) != origin:
            raise ValueError(f"it was made for batch {info.batch} of job {info.job} by engine {info.engine}")
        has_vector = table.column(names[0]).is_valid().to_numpy()
        index = np.where(has_vector, np.cumsum(has_vector) - 1, -1)
        hashes = hashes_of_column(table.column("text_hash").combine_chunks())
        n_tokens = table.column("n_tokens").to_numpy()
        vectors = vectors_of(table)
    except (KeyError, ValueError) as error:
        raise ValueError(f"vectors cannot be taken from {shard}: {error}") from None
    values, indices = _in_unlinked_file(vectors.values, folder), vectors.indices
    indices = None if indices is None else _in_unlinked_file(indices, folder)
    return _EarlierShard(info, hashes, n_tokens, index, replace(vectors, values=values, indices=indices))


def _in_unlinked_file(values: npt.NDArray[_Number], folder: str | None) -> npt.NDArray[_Number]:
    """The same values, memory-mapped from an unlinked file: the kernel may evict them from memory, and frees the disk
    space when this process ends, however it ends."""
    if not values.size:
        return values
    with tempfile.TemporaryFile(dir=folder) as file:
        np.ascontiguousarray(values).tofile(file)
        return np.memmap(file, values.dtype, "r", shape=values.shape)


def complete(batch: Batch, found: EmbeddedBatch, taken: Taken) -> tuple[Batch, EmbeddedBatch]:
    """Put the vectors that were computed, those of earlier jobs and those of repeated texts into row order.

    Args:
        batch: with a row for each text.
        found: the vectors that were computed.
        taken: the vectors of earlier jobs.

    Returns:
        The batch with every row's ``n_tokens``, and the vectors of all its rows.
    """
    origins = batch.origins
    if origins is None or not (origins.taken.any() or origins.repeated.any()):
        return batch, found
    n_tokens = batch.n_tokens.copy()
    n_tokens[origins.taken] = taken.n_tokens
    index = np.full(len(batch), -1)
    computed = batch.lengths > 0
    computed[list(found.errors)] = False
    index[computed] = np.arange(len(found.vectors))
    index[origins.taken] = len(found.vectors) + np.arange(len(taken.n_tokens))
    rows = np.where(origins.repeated, origins.firsts, np.arange(len(batch)))
    index, n_tokens = index[rows], n_tokens[rows]
    errors = {row: found.errors[first] for row, first in enumerate(rows.tolist()) if first in found.errors}
    parts = [part for part in (found.vectors, taken.vectors) if part is not None and len(part)] or [found.vectors]
    together = RowVectors.joined(parts, np.arange(sum(map(len, parts))))
    vectors = together.at(index[index >= 0])
    return replace(batch, n_tokens=n_tokens), replace(found, vectors=vectors, errors=errors)
