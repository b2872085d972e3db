"""One vector for each row, of rows that lie end to end: the formulas of sentence-transformers' Pooling module."""

import torch
from torch import Tensor

from contract.graph import Pooling

_LEAST = 1e-9
"""Of a divisor, as sentence-transformers has it."""


def pool(hidden: Tensor, cu_seqlens: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """Pool each row's hidden states, without waiting for a GPU.

    Args:
        hidden: float32 ``[tokens, width]``.
        cu_seqlens: ``[rows + 1]`` int32, where each row begins, and where the last ends. What comes of a row without
            tokens is nobody's.
        pooling: see ``contract.engine``; ``tokens`` leaves them as they are.
        skip: tokens at each row's beginning that are left out: a prompt's.

    Returns:
        ``[rows, width]``, of several modes ``[rows, modes × width]``.
    """
    if pooling == "tokens":
        return hidden
    rows = _Rows(hidden, cu_seqlens, skip)
    return torch.cat([rows.pooled(mode) for mode in pooling.split("+")], dim=-1)


class _Rows:
    """Args: as of ``pool``."""

    def __init__(self, hidden: Tensor, cu_seqlens: Tensor, skip: int) -> None:
        self._hidden, self._skip = hidden, skip
        self._starts, self._ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        self._lengths = self._ends - self._starts

    def pooled(self, mode: str) -> Tensor:
        """``[rows, width]`` in one of ``contract.engine.MODES``."""
        hidden, last = self._hidden, len(self._hidden) - 1
        if mode == "cls":
            return hidden[(self._starts + self._skip).clamp_max(last)]
        if mode == "lasttoken":
            return hidden[(self._ends - 1).clamp_min(0)]
        if mode == "max":
            left_out = hidden if not self._skip else hidden.masked_fill(~self._counts()[:, None], -torch.inf)
            return self._reduced(left_out, "max")
        if mode == "weightedmean":
            weights = ((self._positions() + 1) * self._counts())[:, None].float()
            return self._reduced(hidden * weights, "sum") / self._reduced(weights, "sum").clamp_min(_LEAST)
        if not self._skip and mode == "mean":
            return self._reduced(hidden, "mean")
        divisor = (self._lengths - self._skip).clamp_min(0).float().clamp_min(_LEAST)[:, None]
        total = self._reduced(hidden * self._counts()[:, None] if self._skip else hidden, "sum")
        return total / (divisor if mode == "mean" else divisor.sqrt())

    def _reduced(self, values: Tensor, how: str) -> Tensor:
        # Unsafe: without checks of the lengths, each of which would wait for the GPU.
        return torch.segment_reduce(values, how, lengths=self._lengths, unsafe=True)

    def _positions(self) -> Tensor:
        """``[tokens]``: each token's in its row, from 0."""
        tokens = len(self._hidden)
        starts = torch.repeat_interleave(self._starts, self._lengths, output_size=tokens)
        return torch.arange(tokens, device=starts.device) - starts

    def _counts(self) -> Tensor:
        """``[tokens]`` bool: whether a token is pooled."""
        return self._positions() >= self._skip
