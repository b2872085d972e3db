"""FlashAttention 3 and 4, where their packages are installed: faster than PyTorch's own attention on long rows, slower
on short ones. ``engine_build compile`` measures all of them, see ``fastest_kernels``."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contract.errors import reason
from contract.plan import PackedProfile
from contract.tuned import AttentionKernel
from worker.runtime.layout import with_padding

_GAIN = 1.03
"""A kernel must be so many times as fast as PyTorch's own to be taken: its first call in a process may take seconds."""


class _Package(NamedTuple):
    """Where a kernel comes from."""

    name: str
    module: str
    """Has the function ``flash_attn_varlen_func``."""
    unlimited: int | None
    """What its windows call all tokens."""


KERNELS: dict[AttentionKernel, _Package] = {
    "flash_attention_3": _Package("flash-attn-3", "flash_attn_interface", -1),
    "flash_attention_4": _Package("flash-attn-4", "flash_attn.cute", None),
}


def lacking(kernel: AttentionKernel) -> str:
    """What this machine lacks for it; empty if nothing."""
    package = KERNELS[kernel]
    try:
        found = importlib.util.find_spec(package.module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return f"no Python package {package.name}"
    try:
        _function(kernel)
    except (ImportError, OSError, AttributeError) as error:  # without a library that it was built with, say
        return f"a Python package {package.name} that cannot be imported ({reason(error)})"
    return ""


@torch.library.custom_op("embedmill::flash_attention", mutates_args=())
def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    window: list[int],
    kernel: str,
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
        kernel: one of ``KERNELS``.

    Returns:
        As ``query``.
    """
    name: Any = kernel  # an operator's parameter is a plain string
    unlimited = KERNELS[name].unlimited
    made: Tensor | tuple[Tensor, ...] = _function(name)(
        *(query, key, value),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        window_size=tuple(unlimited if size < 0 else size for size in window),
    )
    return made[0] if isinstance(made, tuple) else made


@flash_attention.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


def _function(kernel: AttentionKernel) -> Callable[..., Any]:
    # Version 4 compiles a kernel at its first call, and keeps it on disk if it is told so before it is imported.
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] = "1"
    os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] = str(_folder())
    function: Callable[..., Any] = importlib.import_module(KERNELS[kernel].module).flash_attn_varlen_func
    return function


def _folder() -> Path:
    """Where FlashAttention 4's compiled kernels lie, beside PyTorch's."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # here: a CPU's worker needs none of it

    return Path(cache_dir()) / "flash_attention_4"


def kept_kernels() -> dict[str, bytes]:
    """What FlashAttention 4 compiled until now, by path."""
    return {str(file.relative_to(_folder())): file.read_bytes() for file in sorted(_folder().rglob("*.o"))}


def restore_kernels(kernels: Mapping[str, bytes]) -> None:
    """Have kernels of ``kept_kernels`` loaded instead of compiled."""
    for name, content in kernels.items():
        file = _folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(f".{os.getpid()}")
        whole.write_bytes(content)
        whole.replace(file)  # other processes load it too


def fastest_kernels(
    profiles: Sequence[PackedProfile], heads: int, width: int, device: torch.device
) -> tuple[dict[str, AttentionKernel], str]:
    """Measure those that are installed beside PyTorch's own attention, on rows of random lengths that fill a
    micro-batch.

    Args:
        profiles: of micro-batches, each with its longest row.
        heads: of the model.
        width: of a head.
        device: the GPU.

    Returns:
        The profiles for which one of them is faster, each with the fastest, and what was measured, or why nothing was:
        ``132x33792: 236 µs by PyTorch's own, 181 µs by flash_attention_3; flash_attention_4: no Python package …``.
    """
    why_not: dict[AttentionKernel | None, str] = {kernel: lacks for kernel in KERNELS if (lacks := lacking(kernel))}
    if len(why_not) == len(KERNELS):
        return {}, _told({}, why_not)
    times: Times = {}
    for kernel in (None, *(kernel for kernel in KERNELS if kernel not in why_not)):
        try:
            times[kernel] = {
                str(profile): _microseconds(_computing(kernel, profile, (heads, width), device)) for profile in profiles
            }
        except Exception as error:  # a GPU or a width that it does not take: whatever it raises then
            why_not[kernel] = f"it does not compute this model: {reason(error)}"
    return faster_than_own(times), _told(times, why_not)


Times = dict[AttentionKernel | None, dict[str, float]]
"""Microseconds by kernel, None for PyTorch's own, and by profile. Each kernel has all profiles."""


def faster_than_own(times: Times) -> dict[str, AttentionKernel]:
    """The fastest kernel of each profile for which one is faster enough than PyTorch's own."""
    found: dict[str, AttentionKernel] = {}
    for profile, own in times.get(None, {}).items():
        best = min(times, key=lambda kernel: times[kernel][profile])
        if best and own > _GAIN * times[best][profile]:
            found[profile] = best
    return found


def _told(times: Times, why_not: Mapping[AttentionKernel | None, str]) -> str:
    def by(kernel: AttentionKernel | None) -> str:
        return kernel or "PyTorch's own"

    measured = [
        f"{profile}: {', '.join(f'{took[profile]:.0f} µs by {by(kernel)}' for kernel, took in times.items())}"
        for profile in next(iter(times.values()), {})
    ]
    return "; ".join([*measured, *(f"{by(kernel)}: {why}" for kernel, why in why_not.items())])


def row_ends(profile: PackedProfile) -> Tensor:
    """Where the rows of a typical micro-batch end: about three quarters of the profile's rows, of random lengths, and
    behind them those of padding and empty ones. ``[rows + 1]`` int32, the first 0, on the CPU."""
    longest = profile.longest or profile.tokens
    rows = min(profile.rows, max(1, profile.rows * 3 // 4, profile.tokens // longest))
    lengths = np.random.default_rng(longest).integers(1, 2 * profile.tokens // rows, rows, np.int32).clip(max=longest)
    lengths = lengths[lengths.cumsum() <= profile.tokens]
    every = with_padding(lengths, profile.input_rows(longest), profile.tokens)
    return torch.tensor([0, *every.cumsum()], dtype=torch.int32)


def _computing(
    kernel: AttentionKernel | None, profile: PackedProfile, shape: tuple[int, int], device: torch.device
) -> Callable[[], object]:
    """Computes the attention of a micro-batch."""
    from torch.nn.attention.varlen import varlen_attn

    longest, ends = profile.longest or profile.tokens, row_ends(profile).to(device)
    query, key, value = torch.randn(profile.tokens, 3, *shape, dtype=torch.float16, device=device).unbind(1)
    if kernel is None:
        return lambda: varlen_attn(query, key, value, ends, ends, longest, longest)
    return lambda: flash_attention(query, key, value, ends, longest, None, [-1, -1], kernel)


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
