"""FlashAttention 4, where the package ``flash-attn-4`` is installed: faster than PyTorch's own attention on long rows,
slower on short ones. ``engine_build compile`` measures both, see ``faster_lengths``."""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.errors import reason
from contract.plan import PackedProfile

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
        key: likewise.
        value: likewise.
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


def faster_lengths(
    profiles: Sequence[PackedProfile], max_length: int, heads: int, width: int, device: torch.device
) -> tuple[tuple[int, ...], str]:
    """Measure it beside PyTorch's own attention, on rows of random lengths that fill a micro-batch.

    Args:
        profiles: of micro-batches. Of those for rows of one length the largest is measured.
        max_length: of a row where a profile has no limit.
        heads: of the model.
        width: of a head.
        device: the GPU.

    Returns:
        The longest row's tokens of the profiles for which it is faster, and what was measured, or why nothing was.
    """
    if missing := lacking():
        return (), missing
    tokens: dict[int, int] = {}
    for profile in profiles:
        longest = profile.longest or max_length
        tokens[longest] = max(tokens.get(longest, 0), profile.tokens)
    times = {}
    for longest, size in tokens.items():
        try:
            times[longest] = _times(size, longest, (heads, width), device)
        except Exception as error:  # a GPU or a width that it does not take: whatever it raises then
            return (), f"it does not compute this model: {reason(error)}"
    told = ", ".join(f"rows of up to {longest}: {own:.0f} and {its:.0f} µs" for longest, (own, its) in times.items())
    return tuple(longest for longest, (own, its) in times.items() if own > _GAIN * its), told


def _times(tokens: int, longest: int, shape: tuple[int, int], device: torch.device) -> tuple[float, float]:
    """Microseconds of PyTorch's own attention and of FlashAttention 4."""
    from torch.nn.attention.varlen import varlen_attn

    random = torch.Generator().manual_seed(longest)
    lengths = torch.randint(max(1, longest // 10), longest + 1, (tokens // max(1, longest // 10),), generator=random)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).clamp_max(tokens).to(device, torch.int32)
    query, key, value = torch.randn(tokens, 3, *shape, dtype=torch.float16, device=device).unbind(1)

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
