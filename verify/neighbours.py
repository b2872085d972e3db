"""The nearest rows of some rows by cosine, exactly: every row is compared with each of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from verify.two_jobs import Chunk

_Floats = npt.NDArray[np.float32]


class Neighbours(NamedTuple):
    """Of ``n`` queries, the nearest first."""

    cosines: _Floats
    """``[n, most]``."""
    rows: npt.NDArray[np.int64]
    """``[n, most]``: row ids."""


class Chunked(Protocol):
    """A job that is read chunk by chunk."""

    def chunks(self) -> Iterator[Chunk]:
        """All rows, once."""
        ...


def unit(vectors: _Floats) -> _Floats:
    """Vectors of Euclidean norm 1; a zero stays one."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def nearest(
    side: Chunked, queries: Sequence[int], vectors: _Floats, allowed: npt.NDArray[np.bool_], most: int
) -> Neighbours:
    """The rows nearest to each query, the nearest first, of equals the one that comes first; never the query itself.

    Args:
        side: the job.
        queries: ``n`` row ids.
        vectors: ``[n, elements]``, theirs.
        allowed: ``[rows]``: which rows count, of those that have a vector; more than ``most`` of them.
        most: rows for each query.
    """
    mine, own = unit(vectors), np.array(queries, np.int64)
    best = Neighbours(np.empty((len(own), 0), np.float32), np.empty((len(own), 0), np.int64))
    for chunk in side.chunks():
        rows = np.arange(chunk.rows.start, chunk.rows.stop, dtype=np.int64)
        inside = allowed[rows] & chunk.there
        rows = rows[inside]
        cosines = mine @ unit(chunk.vectors[inside]).T
        cosines[own[:, None] == rows] = -np.inf
        best = _merged(best, cosines, rows, most)
    return best


def cosines_to(side: Chunked, vectors: _Floats, rows: npt.NDArray[np.int64]) -> _Floats:
    """Cosines of queries and chosen rows.

    Args:
        side: the job.
        vectors: ``[n, elements]``, the queries'.
        rows: ``[n, k]``: of each query the row ids, which have a vector.

    Returns:
        ``[n, k]``.
    """
    mine, found = unit(vectors), np.zeros(rows.shape, np.float32)
    for chunk in side.chunks():
        queries, places = np.nonzero((rows >= chunk.rows.start) & (rows < chunk.rows.stop))
        theirs = unit(chunk.vectors[rows[queries, places] - chunk.rows.start])
        found[queries, places] = np.einsum("ij,ij->i", mine[queries], theirs)
    return found


def _merged(best: Neighbours, cosines: _Floats, rows: npt.NDArray[np.int64], most: int) -> Neighbours:
    """The nearest of those that were found before and of these."""
    all_cosines = np.hstack([best.cosines, cosines])
    all_rows = np.hstack([best.rows, np.broadcast_to(rows, cosines.shape)])
    if all_cosines.shape[1] <= most:
        return Neighbours(all_cosines, all_rows)
    # Rows before come first in the array, so a stable sort takes of equals the first; it sees what reaches the limit.
    limit = np.partition(all_cosines, -most, axis=1)[:, -most]
    picked = np.empty((len(all_cosines), most), np.intp)
    for query, (found, least) in enumerate(zip(all_cosines, limit, strict=True)):
        candidates = np.flatnonzero(found >= least)
        picked[query] = candidates[np.argsort(-found[candidates], kind="stable")[:most]]
    return Neighbours(np.take_along_axis(all_cosines, picked, axis=1), np.take_along_axis(all_rows, picked, axis=1))
