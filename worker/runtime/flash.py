"""FlashAttention 4, where the package ``flash-attn-4`` is installed: faster than PyTorch's own attention on long rows,
slower on short ones. ``engine_build compile`` measures both, see ``faster_profiles``."""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contract.errors import reason
from contract.plan import PackedProfile
from worker.runtime.layout import with_padding

_GAIN = 1.03
"""How many times as fast it must be to be taken: its first call in a process takes seconds."""


def lacking() -> str:
    """What this machine lacks for it; empty if nothing."""
    try:
        found = importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else "no Python package flash-attn-4"


@torch.library.custom_op("embedmill::flash_attention_4", mutates_args=())
def flash_attention_4(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scale: float | None, window: list[int]
) -> Tensor:
    """softmax(scale·Q Kᵀ) V within each row.

    Args:
        query: ``[tokens, heads, width]``, FP16 or BF16.
        key: likewise, of as many heads or of a fraction of them.
        value: as ``key``.
        ends: ``[rows + 1]`` int32, where each row begins, and where the last ends.
        longest: no row has more tokens.
        scale: None for 1 / √width.
        window: tokens before and behind a token that it sees; -1 for all.

    Returns:
        As ``query``.
    """
    made: Tensor | tuple[Tensor, ...] = _kernel()(
        *(query, key, value),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        window_size=tuple(None if size < 0 else size for size in window),
    )
    return made[0] if isinstance(made, tuple) else made


@flash_attention_4.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


@functools.cache
def _kernel() -> Callable[..., Any]:
    # The package compiles a kernel at its first call, and keeps it on disk if it is told so before it is imported.
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "1"
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] = str(_folder())
    from flash_attn.cute import flash_attn_varlen_func

    kernel: Callable[..., Any] = flash_attn_varlen_func
    return kernel


def _folder() -> Path:
    """Where compiled kernels lie, beside PyTorch's."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # here: a CPU's worker needs none of it

    return Path(cache_dir()) / "flash_attention_4"


def kept_kernels() -> dict[str, bytes]:
    """What was compiled until now, by path."""
    return {str(file.relative_to(_folder())): file.read_bytes() for file in sorted(_folder().rglob("*.o"))}


def restore_kernels(kernels: Mapping[str, bytes]) -> None:
    """Have kernels of ``kept_kernels`` loaded instead of compiled."""
    for name, content in kernels.items():
        file = _folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(f".{os.getpid()}")
        whole.write_bytes(content)
        whole.replace(file)  # other processes load it too


def faster_profiles(
    profiles: Sequence[PackedProfile], heads: int, width: int, device: torch.device
) -> tuple[tuple[str, ...], str]:
    """Measure it beside PyTorch's own attention, on rows of random lengths that fill a micro-batch.

    Args:
        profiles: of micro-batches, each with its longest row.
        heads: of the model.
        width: of a head.
        device: the GPU.

    Returns:
        The profiles for which it is faster, and what was measured, or why nothing was.
    """
    if missing := lacking():
        return (), missing
    times = {}
    for profile in profiles:
        try:
            times[str(profile)] = _times(profile, (heads, width), device)
        except Exception as error:  # a GPU or a width that it does not take: whatever it raises then
            return (), f"it does not compute this model: {reason(error)}"
    told = ", ".join(f"{profile}: {own:.0f} and {its:.0f} µs" for profile, (own, its) in times.items())
    return tuple(profile for profile, (own, its) in times.items() if own > _GAIN * its), told


def row_ends(profile: PackedProfile) -> Tensor:
    """Where the rows of a typical micro-batch end: about three quarters of the profile's rows, of random lengths, and
    behind them those of padding and empty ones. ``[rows + 1]`` int32, the first 0, on the CPU."""
    longest = profile.longest or profile.tokens
    rows = min(profile.rows, max(1, profile.rows * 3 // 4, profile.tokens // longest))
    lengths = np.random.default_rng(longest).integers(1, 2 * profile.tokens // rows, rows, np.int32).clip(max=longest)
    lengths = lengths[lengths.cumsum() <= profile.tokens]
    every = with_padding(lengths, profile.input_rows(longest), profile.tokens)
    return torch.tensor([0, *every.cumsum()], dtype=torch.int32)


def _times(profile: PackedProfile, shape: tuple[int, int], device: torch.device) -> tuple[float, float]:
    """Microseconds of PyTorch's own attention and of FlashAttention 4."""
    from torch.nn.attention.varlen import varlen_attn

    longest, ends = profile.longest or profile.tokens, row_ends(profile).to(device)
    query, key, value = torch.randn(profile.tokens, 3, *shape, dtype=torch.float16, device=device).unbind(1)

    def own() -> object:
        return varlen_attn(query, key, value, ends, ends, longest, longest)

    def its() -> object:
        return flash_attention_4(query, key, value, ends, longest, None, [-1, -1])

    return _microseconds(own), _microseconds(its)


def _microseconds(compute: Callable[[], object]) -> float:
    """The median of runs, without the time that a processor takes to start a kernel: recorded, as in an engine."""
    compute()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            compute()
    took = []
    for _ in range(7):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        took.append(began.elapsed_time(ended) * 100)
    return sorted(took)[len(took) // 2]
