"""The vectors of some rows: what computes them gives these, and what writes a shard takes them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from contract.form import Quantized

Layout = Literal["pooled", "tokens", "sparse"]
"""What a row has.

pooled     one vector
tokens     a vector for each of its tokens, or of those that the model keeps
sparse     one vector, of which only the elements that are not zero are kept
"""


@dataclass(frozen=True, eq=False)
class RowVectors:
    """The vectors of ``n`` rows, one row's after the other's."""

    layout: Layout
    values: Quantized
    """``[m, width]``, float32 as an engine gives them; of sparse vectors their elements, ``[m, 1]``."""
    counts: npt.NDArray[np.intp]
    """``[n]``: how many of ``values`` each row has."""
    indices: npt.NDArray[np.int32] | None = None
    """``[m]``, of sparse vectors alone: which element of its row's vector each value is, ascending in a row."""

    @classmethod
    def pooled(cls, values: Quantized) -> "RowVectors":
        """Of rows that have one each: ``[n, width]``."""
        return cls("pooled", values, np.ones(len(values), np.intp))

    @classmethod
    def of_tokens(cls, values: Quantized, counts: npt.NDArray[np.integer]) -> "RowVectors":
        """Of rows that have one for each token: ``[m, width]``, and how many each row has, ``[n]``."""
        return cls("tokens", values, counts.astype(np.intp))

    @classmethod
    def sparse(cls, dense: npt.NDArray[np.float32]) -> "RowVectors":
        """Of ``[n, width]`` what is not zero; what is no number is kept."""
        rows, indices = np.nonzero(dense)
        counts = np.bincount(rows, minlength=len(dense))
        return cls("sparse", dense[rows, indices][:, None], counts, indices.astype(np.int32))

    @classmethod
    def joined(cls, parts: "list[RowVectors]", order: npt.NDArray[np.intp]) -> "RowVectors":
        """Rows of several, one after the other.

        Args:
            parts: of one layout and width, at least one.
            order: ``[n]``: the place of each of their rows in the result.
        """
        counts = np.concatenate([part.counts for part in parts])
        by_place = np.argsort(np.repeat(order, counts), kind="stable")
        indices = [part.indices for part in parts if part.indices is not None]
        return cls(
            parts[0].layout,
            np.concatenate([part.values for part in parts])[by_place],
            counts[np.argsort(order)],
            np.concatenate(indices)[by_place] if indices else None,
        )

    def __len__(self) -> int:
        """``n``."""
        return len(self.counts)

    @property
    def owners(self) -> npt.NDArray[np.intp]:
        """``[m]``: the row of each value."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, wanted: npt.NDArray[np.bool_]) -> "RowVectors":
        """Only these rows.

        Args:
            wanted: ``[n]``.
        """
        return replace(self._of_values(np.repeat(wanted, self.counts)), counts=self.counts[wanted])

    def at(self, rows: npt.NDArray[np.intp]) -> "RowVectors":
        """The rows of these indices, in this order; one may come several times."""
        counts = self.counts[rows]
        shift = (np.cumsum(self.counts) - self.counts)[rows] - (np.cumsum(counts) - counts)
        places = np.arange(counts.sum()) + np.repeat(shift, counts)
        indices = None if self.indices is None else self.indices[places]
        return replace(self, values=self.values[places], counts=counts, indices=indices)

    def without(self, dropped: npt.NDArray[np.bool_]) -> "RowVectors":
        """The same rows without some of their values.

        Args:
            dropped: ``[m]``.
        """
        counts = np.bincount(self.owners[~dropped], minlength=len(self))
        return replace(self._of_values(~dropped), counts=counts)

    def _of_values(self, wanted: npt.NDArray[np.bool_]) -> "RowVectors":
        indices = None if self.indices is None else self.indices[wanted]
        return replace(self, values=self.values[wanted], indices=indices)

    def replaced(self, rows: npt.NDArray[np.intp], others: "RowVectors") -> "RowVectors":
        """With other vectors for these rows.

        Args:
            rows: ascending.
            others: theirs.
        """
        kept = np.ones(len(self), bool)
        kept[rows] = False
        return RowVectors.joined([self.take(kept), others], np.concatenate([np.flatnonzero(kept), rows]))

    def unfit(self) -> npt.NDArray[np.intp]:
        """The rows that have a vector that is not finite or whose norm is zero, or that have none."""
        norms = np.linalg.norm(self.values.astype(np.float32, copy=False), axis=1)
        return np.union1d(self.owners[~np.isfinite(norms) | (norms == 0)], np.flatnonzero(self.counts == 0))

    def split(self, width: int) -> Iterator[Quantized]:
        """Each row's vectors, ``[1, width]`` or ``[tokens, width]``; sparse ones with their zeros.

        Args:
            width: elements of a vector.
        """
        ends = np.cumsum(self.counts)
        for start, end in zip(ends - self.counts, ends, strict=True):
            if self.indices is None:
                yield self.values[start:end]
            else:
                yield dense_of(self.indices[start:end], self.values[start:end, 0], width)


def dense_of(indices: npt.NDArray[np.int32], weights: Quantized, width: int) -> Quantized:
    """A sparse vector with its zeros, ``[1, width]``.

    Args:
        indices: of its elements that are not zero.
        weights: their values.
        width: how many elements it has.
    """
    dense = np.zeros((1, width), weights.dtype)
    dense[0, indices] = weights
    return dense
