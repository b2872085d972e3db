"""Vectors that are not computed: those of earlier jobs, and of rows with the same text."""

import tempfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.job import Job
from contract.origins import Hashes, Int32, of_column
from contract.reuse import load_sources, read_unchanged
from contract.shard import ShardInfo, own_columns
from contract.store import Location
from contract.vector_columns import vectors_of
from contract.vectors import Layout, RowVectors
from worker.rows import EmbeddedBatch

_MOST_BYTES = 8 << 30
"""Of vectors of earlier jobs that lie in files which are gone with this process."""

_Any = TypeVar("_Any", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Taken:
    """The vectors that rows of a batch take from earlier jobs."""

    vectors: RowVectors | None
    """In row order; None for no rows."""
    n_tokens: Int32
    """Of these rows."""
    infos: tuple[ShardInfo, ...]
    """The footers of the shards that they are from."""
    rows: Mapping[str, int]
    """An earlier job's id → how many are from it."""


_NOTHING = Taken(None, np.empty(0, np.int32), (), {})


@dataclass(frozen=True, eq=False)
class _Unpacked:
    """A shard of an earlier job, in memory that is mapped to a file without a name."""

    info: ShardInfo
    hashes: Hashes
    n_tokens: Int32
    place: npt.NDArray[np.intp]
    """Of each row its index in ``vectors``; -1 for a row without a vector."""
    vectors: RowVectors

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.vectors.values.nbytes + (0 if self.vectors.indices is None else self.vectors.indices.nbytes)

    def places(self, shard: Location, rows: Int32, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Where in ``vectors`` the vectors of these rows are.

        Args:
            shard: this one's file.
            rows: ``[n]``, indices in the shard.
            hashes: of the texts that they must have, ``[n, 2]``.

        Raises:
            ValueError: a row is not there, has another text, or has no vector.
        """
        there = (rows >= 0) & (rows < len(self.hashes))
        if not there.all() or not np.array_equal(self.hashes[rows], hashes) or (self.place[rows] < 0).any():
            raise ValueError(f"vectors cannot be taken from {shard}: its rows have other texts by now, or no vector")
        return self.place[rows]


class EarlierJobs:
    """Takes vectors from the shards of earlier jobs. Each is read once, as long as there is room for it."""

    def __init__(self) -> None:
        self._shards: OrderedDict[Location, _Unpacked] = OrderedDict()

    def take(self, job: Job, batch: Batch, layout: Layout) -> Taken:
        """The vectors of the rows of a batch that are in earlier jobs.

        Args:
            job: the batch's.
            batch: with a row for each text.
            layout: what a row has.

        Raises:
            ValueError: an earlier job has no such rows, or a shard of it is not as its worker wrote it.
            UserError: an earlier job is gone, or is another one by now.
            OSError: a shard of it cannot be read, or there is no space to unpack it.
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
            shard = self._unpacked(source, earlier, job, layout)
            at = shard.places(source.shard(earlier), some.row[wanted], some.hashes[wanted])
            vectors.append(shard.vectors.at(at))
            n_tokens[wanted] = shard.n_tokens[some.row[wanted]]
            order.append(wanted)
            infos.append(shard.info)
            counts[source.id] += len(wanted)
        return Taken(RowVectors.joined(vectors, np.concatenate(order)), n_tokens, tuple(infos), counts)

    def _unpacked(self, source: Job, number: int, job: Job, layout: Layout) -> _Unpacked:
        shard = source.shard(number)
        if shard not in self._shards:
            folder = str(job.staging) if job.staging.local else None
            self._shards[shard] = _unpack(shard, (source.id, number, source.fingerprint), layout, folder)
        self._shards.move_to_end(shard)
        while len(self._shards) > 1 and sum(one.bytes for one in self._shards.values()) > _MOST_BYTES:
            self._shards.popitem(last=False)
        return self._shards[shard]


def _source(sources: list[Job], number: int, batch: int) -> Job:
    if number not in range(len(sources)) or batch not in range(sources[number].batches):
        raise ValueError(f"its rows take vectors of batch {batch} of earlier job {number}, and there is none")
    return sources[number]


def _unpack(shard: Location, origin: tuple[str, int, str], layout: Layout, folder: str | None) -> _Unpacked:
    """A shard, compared with what its footer says of it.

    Args:
        shard: its file.
        origin: the job's id, the batch's number and the engine's fingerprint that it must have.
        layout: what its rows have.
        folder: where there is space; None for the system's temporary folder.

    Raises:
        ValueError: it is another one, or is not as its worker wrote it.
        OSError: it cannot be read, or there is no space.
    """
    names = [name for name in own_columns(layout) if name not in ("row_id", "truncated")]
    try:
        info, table = read_unchanged(shard, names)
        if (info.job, info.batch, info.engine) != origin:
            raise ValueError(f"it was made for batch {info.batch} of job {info.job} by engine {info.engine}")
        has_vector = table.column(names[0]).is_valid().to_numpy()
        place = np.where(has_vector, np.cumsum(has_vector) - 1, -1)
        hashes, n_tokens = of_column(table.column("text_hash").combine_chunks()), table.column("n_tokens").to_numpy()
        vectors = vectors_of(table)
    except (KeyError, ValueError) as error:
        raise ValueError(f"vectors cannot be taken from {shard}: {error}") from None
    values, indices = _in_file(vectors.values, folder), vectors.indices
    indices = None if indices is None else _in_file(indices, folder)
    return _Unpacked(info, hashes, n_tokens, place, replace(vectors, values=values, indices=indices))


def _in_file(values: npt.NDArray[_Any], folder: str | None) -> npt.NDArray[_Any]:
    """The same values, mapped from a file without a name: the system may drop them from memory, and removes them when
    this process ends, however it ends."""
    if not values.size:
        return values
    with tempfile.TemporaryFile(dir=folder) as file:
        np.ascontiguousarray(values).tofile(file)
        return np.memmap(file, values.dtype, "r", shape=values.shape)


def complete(batch: Batch, found: EmbeddedBatch, taken: Taken) -> tuple[Batch, EmbeddedBatch]:
    """A batch with what its rows take: vectors of earlier jobs, and those of rows with the same text.

    Args:
        batch: with a row for each text.
        found: the vectors of the rows that were computed.
        taken: those that come from earlier jobs.

    Returns:
        The batch with the ``n_tokens`` of all rows, and the vectors of all rows.
    """
    origins = batch.origins
    if origins is None or not (origins.taken.any() or origins.repeated.any()):
        return batch, found
    n_tokens = batch.n_tokens.copy()
    n_tokens[origins.taken] = taken.n_tokens
    place = np.full(len(batch), -1)
    computed = batch.lengths > 0
    computed[list(found.errors)] = False
    place[computed] = np.arange(len(found.vectors))
    place[origins.taken] = len(found.vectors) + np.arange(len(taken.n_tokens))
    rows = np.where(origins.repeated, origins.firsts, np.arange(len(batch)))
    place, n_tokens = place[rows], n_tokens[rows]
    errors = {row: found.errors[first] for row, first in enumerate(rows.tolist()) if first in found.errors}
    parts = [part for part in (found.vectors, taken.vectors) if part is not None and len(part)] or [found.vectors]
    together = RowVectors.joined(parts, np.arange(sum(map(len, parts))))
    vectors = together.at(place[place >= 0])
    return replace(batch, n_tokens=n_tokens), replace(found, vectors=vectors, errors=errors)
