"""The attention of packed rows, registered with transformers: within each row, on a GPU or a CPU, with windows too."""

import functools
import inspect
import itertools
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers.masking_utils import AttentionMaskInterface

from contract.tuned import AttentionKernel
from worker.runtime.flash import flash_attention

ATTENTION = "embedmill_packed"
"""As transformers' interfaces name it."""

_VARLEN_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether PyTorch's own attention reads a head of keys for several of queries; else they are copied for each."""

QUERIES = 256
"""Tokens whose attention is computed at once on a CPU where they do not see the whole row: a mask of a row of 32,768
would have a gigabyte."""


class Unpackable(Exception):
    """The model has something that cannot be computed on packed rows. It is found when the engine is built, which then
    is computed in another way: an attention that left it out would give wrong vectors without a word."""


_INDIFFERENT = ("deterministic", "dropout", "output_attentions", "position_ids", "use_cache")
"""Options of an attention that change nothing here: positions are in the queries and keys already."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Tensor,
    longest: Tensor,
    kernel: AttentionKernel | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """softmax(scale·Q Kᵀ) V within each row.

    Args:
        module: whose attention it is.
        query: ``[1, heads, tokens, width]``.
        key: likewise, of as many heads or of a fraction of them.
        value: as ``key``.
        attention_mask: none: the rows' ends are mask enough.
        cu_seqlens: ``[rows + 1]`` int32, where each row begins, and where the last ends.
        longest: ``[longest, 0]``: no row has more tokens. A tensor, because what is compiled would know a number.
        kernel: what computes it on a GPU: None for PyTorch's own.
        scaling: None for 1 / √width.
        options: transformers'. ``sliding_window`` and ``is_causal`` count.

    Returns:
        ``[1, tokens, heads, width]``.

    Raises:
        Unpackable: the model's attention has something more, such as a bias by position.
    """
    is_causal, sliding_window = options.pop("is_causal", None), options.pop("sliding_window", None)
    more = [name for name, value in options.items() if value is not None and name not in _INDIFFERENT]
    if more or attention_mask is not None:
        raise Unpackable(f"its attention has {' and '.join(more) or 'a mask of its own'}")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    window = sliding_window or getattr(module, "sliding_window", None)
    # A window of 8 is the token itself and 7 before it, and unless causal also 7 behind it.
    before = window - 1 if window else -1
    rows = _Rows(cu_seqlens, longest.shape[0], (before, 0 if causal else before), kernel)
    grouped = key.shape[1] < query.shape[1]
    if grouped and not (query.is_cuda and (kernel or _VARLEN_TAKES_GROUPS)):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    compute = _on_gpu if query.is_cuda else row_by_row
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    context = compute(query, key, value, rows, scaling)
    return context[None], None


class _Rows(NamedTuple):
    """How rows lie, and what of a row a token sees."""

    ends: Tensor
    """``[rows + 1]`` int32, where each row begins, and where the last ends."""
    longest: int
    """No row has more tokens."""
    window: tuple[int, int]
    """Tokens before and behind a token that it sees; -1 for all."""
    kernel: AttentionKernel | None
    """What computes them on a GPU; None for PyTorch's own attention."""


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, rows: _Rows, scaling: float | None) -> Tensor:
    ends, longest = rows.ends, rows.longest
    if rows.kernel:
        return flash_attention(query, key, value, ends, longest, scaling, list(rows.window), rows.kernel)
    options: Any = {"enable_gqa": True} if key.shape[1] < query.shape[1] else {}
    made: Any = varlen.varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=rows.window, **options
    )
    context: Tensor = made  # a tuple only where more is asked for
    return context


def row_by_row(query: Tensor, key: Tensor, value: Tensor, rows: _Rows, scaling: float | None) -> Tensor:
    """The same on a CPU, for which PyTorch has no kernel that knows rows. Its memory grows with the longest row, not
    with the square of that."""
    before, behind = (size if size >= 0 else rows.longest for size in rows.window)
    attend = functools.partial(nn.functional.scaled_dot_product_attention, scale=scaling)
    context = torch.empty_like(query)
    for start, end in itertools.pairwise(rows.ends.tolist()):
        tokens = end - start
        if not tokens:
            continue
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        if min(before, behind) >= tokens - 1:
            context[start:end] = attend(q, k, v)[0].transpose(0, 1)
            continue
        for first in range(0, tokens, QUERIES):
            last = min(first + QUERIES, tokens)
            seen = slice(max(0, first - before), min(tokens, last + behind))
            offset = torch.arange(first, last)[:, None] - torch.arange(seen.start, seen.stop)
            mask = (offset <= before) & (offset >= -behind)
            made = attend(q[:, :, first:last], k[:, :, seen], v[:, :, seen], attn_mask=mask)
            context[start + first : start + last] = made[0].transpose(0, 1)
    return context


transformers.AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
