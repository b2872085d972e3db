"""The nearest rows of some rows by cosine, exactly: every row is compared with each of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from verify.two_jobs import Chunk

_Floats = npt.NDArray[np.float32]


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
) -> npt.NDArray[np.int64]:
    """The rows nearest to each query, the nearest first, of equals the one that comes first; never the query itself.

    Args:
        side: the job.
        queries: ``n`` row ids.
        vectors: ``[n, elements]``, theirs.
        allowed: ``[rows]``: which rows count, of those that have a vector; more than ``most`` of them.
        most: rows for each query.

    Returns:
        Row ids, ``[n, most]``.
    """
    mine, own = unit(vectors), np.array(queries, np.int64)
    best = np.full((len(own), 0), 0, np.float32), np.full((len(own), 0), 0, np.int64)
    for chunk in side.chunks():
        rows = np.arange(chunk.rows.start, chunk.rows.stop, dtype=np.int64)
        inside = allowed[rows] & chunk.there
        rows = rows[inside]
        cosines = mine @ unit(chunk.vectors[inside]).T
        cosines[own[:, None] == rows] = -np.inf
        best = _merged(best, cosines, rows, most)
    return best[1]


def _merged(
    best: tuple[_Floats, npt.NDArray[np.int64]], cosines: _Floats, rows: npt.NDArray[np.int64], most: int
) -> tuple[_Floats, npt.NDArray[np.int64]]:
    """The nearest of those that were found before and of these."""
    all_cosines = np.hstack([best[0], cosines])
    all_rows = np.hstack([best[1], np.broadcast_to(rows, cosines.shape)])
    if all_cosines.shape[1] <= most:
        return all_cosines, all_rows
    # Rows before come first in the array, so a stable sort takes of equals the first; it sees what reaches the limit.
    limit = np.partition(all_cosines, -most, axis=1)[:, -most]
    picked = np.empty((len(all_cosines), most), np.intp)
    for query, (found, least) in enumerate(zip(all_cosines, limit, strict=True)):
        candidates = np.flatnonzero(found >= least)
        picked[query] = candidates[np.argsort(-found[candidates], kind="stable")[:most]]
    return np.take_along_axis(all_cosines, picked, axis=1), np.take_along_axis(all_rows, picked, axis=1)
