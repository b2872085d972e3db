"""What a job is exported to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contract.errors import UserError
from embedmill.export.source import Floats, Rows, Source


class Target(Protocol):
    """A place that takes vectors, and finds the nearest ones by cosine. It knows by itself which rows it has."""

    setting: str
    """What says how thoroughly its index is searched, such as ``nprobes``."""
    settings: Sequence[int]
    """Values of that to be tried, the fastest first."""

    def __str__(self) -> str:
        """For messages; without a password."""
        ...

    def present(self) -> Mapping[int, int]:
        """How many rows of which batch it has."""
        ...

    def add(self, rows: Rows) -> None:
        """Take the rows of a shard that it does not have: all of them, or when interrupted none."""
        ...

    def build_index(self, say: Callable[[str], None]) -> str:
        """Make the index over all rows, unless it is there.

        Args:
            say: takes how far it is, if that can be known; called from any thread.

        Returns:
            Which one, such as ``IVF_FLAT, 316 partitions``.
        """
        ...

    def stored(self, vectors: Floats) -> Floats:
        """What it makes of vectors ``[n, elements]`` when it stores them."""
        ...

    def vectors(self, ids: npt.NDArray[np.int64]) -> Floats:
        """What it has stored for some rows, ``[n, elements]``; zeros for one that it does not have.

        Args:
            ids: ``[n]`` row ids.
        """
        ...

    def nearest(self, queries: Floats, most: int, setting: int) -> npt.NDArray[np.int64]:
        """The rows nearest to each query, by its index.

        Args:
            queries: ``[q, elements]``.
            most: rows for each.
            setting: how thoroughly.

        Returns:
            Row ids, ``[q, most]``, the nearest first; -1 where it finds fewer.
        """
        ...

    @property
    def usage(self) -> str:
        """How to open it, in one line."""
        ...


def ordered(ids: npt.NDArray[np.int64], found: npt.NDArray[np.int64], vectors: Floats) -> Floats:
    """Vectors in the order that was asked for; zeros for what was not found.

    Args:
        ids: ``[n]``: the order, with repetitions.
        found: ``[m]``: whose the vectors are, in any order.
        vectors: ``[m, elements]``.
    """
    result = np.zeros((len(ids), vectors.shape[1]), np.float32)
    if len(found):
        order = np.argsort(found)
        places = np.minimum(np.searchsorted(found, ids, sorter=order), len(found) - 1)
        there = found[order[places]] == ids
        result[there] = vectors[order[places[there]]]
    return result


def padded(found: Sequence[Sequence[int]], most: int) -> npt.NDArray[np.int64]:
    """Row ids, ``[q, most]``, with -1 where there are fewer."""
    result = np.full((len(found), most), -1, np.int64)
    for place, ids in enumerate(found):
        result[place, : len(ids)] = ids
    return result


def partitions(rows: int) -> int:
    """Cells of an IVF index: the square root of the rows, and at least 39 rows each, which k-means of FAISS asks
    for."""
    return max(1, min(round(rows**0.5), rows // 39))


def check_owner(where: str, found: str | None, source: Source) -> None:
    """See that a target is this job's.

    Args:
        where: the target.
        found: what ``owner`` gave when it was made; None if it was not made by an export.
        source: what is exported.

    Raises:
        UserError: it is another's.
    """
    if found != owner(source):
        raise UserError(
            f"{where} is {f'an export of {found}' if found else 'there, and no export of embedmill'}",
            f"this is one of {owner(source)}",
            "choose another place, or remove it",
        )


def owner(source: Source) -> str:
    """What a target is made from: the job, what its shards hold, and the kept columns."""
    names = source.columns.names
    return f"{source.job.id} ({source.content})" + (f" with {', '.join(names)}" if names else "")
