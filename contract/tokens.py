"""Rows of token ids, end to end: what a batch holds in memory, whatever its rows' lengths. Nothing of it is padding."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from contract.graph import INPUTS

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Each row's token ids, after truncation and with special tokens."""

    ids: Int32
    """``[tokens]``: the first row's, then the second's, …"""
    lengths: Int32
    """``[n]``: tokens of each row, which may be 0"""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def take(self, rows: npt.NDArray[np.intp]) -> "TokenRows":
        """Only the rows of these indices, in this order."""
        lengths = self.lengths[rows]
        shift = self._starts[rows] - (np.cumsum(lengths, dtype=np.int64) - lengths)
        return TokenRows(self.ids[np.arange(lengths.sum()) + np.repeat(shift, lengths)], lengths)

    def slice(self, rows: slice) -> "TokenRows":
        """These rows, as views."""
        lengths = self.lengths[rows]
        start = int(self._starts[rows][0]) if len(lengths) else 0
        return TokenRows(self.ids[start : start + int(lengths.sum())], lengths)

    def padded(self, length: int, pad_id: int) -> dict[str, Int32]:
        """The three inputs of a model, each ``[n, length]``: ``input_ids``, filled up with ``pad_id``;
        ``attention_mask``, 1 for a token and 0 for padding; and ``token_type_ids``, all 0: the second segment is for
        pairs of texts, and a row is one text.

        Args:
            length: at least the longest row's.
            pad_id: the model's.
        """
        real = np.arange(length, dtype=np.int32) < self.lengths[:, None]
        ids = np.full(real.shape, pad_id, np.int32)
        ids[real] = self.ids
        return dict(zip(INPUTS, (ids, real.astype(np.int32), np.zeros_like(ids)), strict=True))

    @classmethod
    def of_padded(cls, input_ids: Int32, attention_mask: Int32) -> "TokenRows":
        """The inverse of ``padded``.

        Raises:
            ValueError: padding is not at the rows' ends.
        """
        real = attention_mask != 0
        lengths = real.sum(axis=1, dtype=np.int32)
        if not np.array_equal(real, np.arange(real.shape[1]) < lengths[:, None]):
            raise ValueError("a row has padding before a token")
        return cls(input_ids[real], lengths)

    @classmethod
    def joined(cls, parts: "list[TokenRows]") -> "TokenRows":
        """The rows of one after the other's."""
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate([part.lengths for part in parts]))
