"""Which runtime computes an engine on this machine, and why.

To add a runtime: write a module beside this one, whose context manager yields an ``interface.Engine``; give it a line
in ``RUNTIMES``, which is in order of preference; and do the rest of "Add a runtime" in CONTRIBUTING.md.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from contract.deferred import deferred
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from contract.words import count
from worker.runtime.gpus import (
    MODULES,
    TORCH,
    cuda_package,
    gpu_model,
    lacking,
    missing,
    modules_lacking,
    torch_lacking,
)
from worker.runtime.interface import LONG_ROW, Engine

log = logging.getLogger("embedmill.worker")

Opened = AbstractContextManager[Engine]

_Open = Callable[[EngineSpec, int, int], Opened]
"""Takes what ``open_engine`` takes."""


class Runtime(NamedTuple):
    """One way to compute an engine."""

    name: str
    """As ``EMBEDMILL_RUNTIME`` names it."""
    load: Callable[[], _Open]
    """Imports what it takes, and gives what opens an engine."""
    uses_gpu: bool
    machine_lacks: Callable[[], str]
    """What this machine lacks for it; empty if nothing."""
    engine_lacks: Callable[[EngineSpec], str]
    """What the engine lacks for it, and how to add that; empty if nothing."""
    needs: str
    """What the machine must have, for people."""
    extra: str
    """The extra of embedmill that installs it."""
    through: Callable[[], str] = lambda: ""
    """The package by which it reaches the GPU, where that can be one or another; else empty."""
    before_fork: bool = False
    """Whether ``load`` takes seconds: a worker then does it once, before it forks its children, unless something that
    is imported uses CUDA."""


def _nothing() -> str:
    return ""


def _no_onnx(spec: EngineSpec) -> str:
    return spec.lacks("onnx")


def _no_plan(spec: EngineSpec) -> str:
    no_plan = f"engine {spec.name} has no plan{spec.unusable_plans}; {spec.rebuild_plan}"
    return _no_onnx(spec) or ("" if spec.plans else no_plan)


def _no_packed(spec: EngineSpec) -> str:
    return spec.lacks("torch")


def _no_half(spec: EngineSpec) -> str:
    far = f"engine {spec.name} is too far from encode() in FP16 and BF16, in which PyTorch computes on a GPU"
    return _no_packed(spec) or ("" if spec.torch_precision else far)


def _no_folder(spec: EngineSpec) -> str:
    return spec.lacks("modules")


def _no_torch() -> str:
    return missing(*TORCH)


def _no_modules() -> str:
    return missing(*MODULES)


def _tensorrt() -> _Open:
    from worker.runtime.tensorrt import tensorrt_engine  # here: only a GPU machine has TensorRT

    return lambda spec, threads, gpu: tensorrt_engine(spec, gpu)


def _torch_gpu() -> _Open:
    from worker.runtime.torch_gpu import torch_gpu_engine  # here: a machine without PyTorch can use another runtime

    return lambda spec, threads, gpu: torch_gpu_engine(spec, gpu)


def _onnx() -> _Open:
    from worker.runtime.onnx import onnx_engine  # here: a machine without ONNX Runtime can use another runtime

    return lambda spec, threads, gpu: onnx_engine(spec, threads)


def _torch_cpu() -> _Open:
    from worker.runtime.torch_cpu import torch_cpu_engine  # here: as above

    return lambda spec, threads, gpu: torch_cpu_engine(spec, threads)


def _modules_gpu() -> _Open:
    with deferred("sklearn.metrics"):
        from worker.runtime.modules import modules_engine  # here: as above

    return modules_engine


def _modules_cpu() -> _Open:
    with deferred("sklearn.metrics"):
        from worker.runtime.modules import modules_engine  # here: as above

    return lambda spec, threads, gpu: modules_engine(spec, threads)


_GPU_TENSORRT = "an NVIDIA GPU, tensorrt (or tensorrt_rtx), and cuda-bindings or pycuda"
_GPU_TORCH = "an NVIDIA GPU, torch with CUDA and transformers"
_GPU_MODULES = "an NVIDIA GPU, torch with CUDA and sentence-transformers"

RUNTIMES = (
    Runtime("tensorrt", _tensorrt, True, lacking, _no_plan, _GPU_TENSORRT, "gpu", cuda_package),
    Runtime("torch", _torch_gpu, True, torch_lacking, _no_half, _GPU_TORCH, "torch", before_fork=True),
    Runtime(
        *("modules", _modules_gpu, True, modules_lacking, _no_folder, _GPU_MODULES, "modules"),
        before_fork=True,
    ),
    Runtime("onnxruntime", _onnx, False, _nothing, _no_onnx, "onnxruntime", "cpu"),
    Runtime("torch", _torch_cpu, False, _no_torch, _no_packed, "torch and transformers", "torch"),
    Runtime("modules", _modules_cpu, False, _no_modules, _no_folder, "torch and sentence-transformers", "modules"),
)
"""In order of preference where nothing was measured. ``torch`` and ``modules`` compute on a GPU where there is one.
Those that use no GPU compute in FP32."""


class Choice(NamedTuple):
    """A runtime, and why it was chosen."""

    runtime: Runtime
    why: str


def choose(spec: EngineSpec) -> Choice:
    """The runtime that ``EMBEDMILL_RUNTIME`` names; with ``auto``, of those for which this machine and the engine have
    all, the fastest that ``engine_build tune`` measured on this kind of GPU, or else the first. An engine that leaves a
    GPU idle is a warning in the log.

    Raises:
        UserError: this machine lacks something that the named runtime needs, or that the engine's every runtime does.
    """
    wanted = settings().runtime
    if wanted != "auto":
        return Choice(_named(wanted, spec), f"EMBEDMILL_RUNTIME is {wanted}")
    fit = [one for one in RUNTIMES if not one.machine_lacks()]
    can = _in_order(spec, [one for one in fit if not one.engine_lacks(spec)])
    if not can:
        raise _without_runtime(spec)
    chosen = _fastest(spec, can) or Choice(can[0], _why_first(spec, can[0]))
    if not chosen.runtime.uses_gpu:
        for idle in (one for one in fit if one.uses_gpu and one.name != "modules"):  # which few engines have
            log.warning("the GPU is left idle: %s", idle.engine_lacks(spec))
    return chosen


def _in_order(spec: EngineSpec, runtimes: Sequence[Runtime]) -> list[Runtime]:
    """Those runtimes in order of preference: ONNX Runtime comes last where a row may be long."""
    return sorted(runtimes, key=lambda one: one.name == "onnxruntime" and spec.max_length > LONG_ROW)


def _why_first(spec: EngineSpec, first: Runtime) -> str:
    why = "the first that this machine and the engine have all for"
    if first.uses_gpu or spec.max_length <= LONG_ROW or "onnx" not in spec.tiers:
        return why
    return f"{why}; for a row of {count(spec.max_length, 'token')} ONNX Runtime's attention would take gigabytes"


def _warn_of_long_rows(spec: EngineSpec, chosen: Runtime) -> None:
    if chosen.name != "onnxruntime" or spec.max_length <= LONG_ROW:
        return
    better = next((tier for tier in spec.tiers if tier != "onnx"), None)
    log.warning(
        "engine %s takes rows of up to %s, and ONNX Runtime's attention takes memory by the square of a row's length, "
        "gigabytes for the longest%s",
        *(spec.name, count(spec.max_length, "token")),
        f"; {better} needs less: pip install 'embedmill[{better}]', and unset EMBEDMILL_RUNTIME" if better else "",
    )


def _without_runtime(spec: EngineSpec) -> UserError:
    """The error where this machine has none of the runtimes that can compute the engine."""
    able = next(one for one in reversed(RUNTIMES) if not one.engine_lacks(spec))
    return UserError(
        f"engine {spec.name} is computed by {able.name}, and this machine has {able.machine_lacks()}",
        f"{able.name} needs {able.needs}; {'; '.join(spec.unused.values())}",
        f"install them: pip install 'embedmill[{able.extra}]'",
    )


def _fastest(spec: EngineSpec, runtimes: Sequence[Runtime]) -> Choice | None:
    """The fastest on mixed rows, of those that were measured on this machine's kind of GPU and are exact enough."""
    gpu, names = gpu_model(), {one.name: one for one in reversed(runtimes) if one.uses_gpu}
    measured = [one for one in spec.measured if one.gpu == gpu and one.runtime in names and one.within_tolerance]
    if not measured:
        return None
    speeds = {one.runtime: one.tokens_per_second["mixed"] for one in measured}
    fastest = max(speeds, key=speeds.__getitem__)
    listed = ", ".join(f"{name} {speed / 1e6:.2f}" for name, speed in speeds.items())
    return Choice(names[fastest], f"measured on {gpu}, million tokens/s: {listed}")


def _named(name: str, spec: EngineSpec) -> Runtime:
    named = [one for one in RUNTIMES if one.name == name]
    fit = [one for one in named if not one.machine_lacks()]
    if not fit:
        raise UserError(
            f"EMBEDMILL_RUNTIME is {name}, and this machine has {named[-1].machine_lacks()}",
            f"{name} needs {named[-1].needs}",
            f"install them: pip install 'embedmill[{named[-1].extra}]', or unset EMBEDMILL_RUNTIME",
        )
    if lacks := fit[0].engine_lacks(spec):
        raise UserError(f"EMBEDMILL_RUNTIME is {name}", lacks, "unset EMBEDMILL_RUNTIME, or choose another engine")
    return fit[0]


def gpu_usable() -> bool:
    """Whether a runtime that ``EMBEDMILL_RUNTIME`` allows can compute on a GPU of this machine."""
    wanted = settings().runtime
    return any(one.uses_gpu and wanted in ("auto", one.name) and not one.machine_lacks() for one in RUNTIMES)


def open_engine(spec: EngineSpec, threads: int, gpu: int = 0) -> Opened:
    """The engine, loaded by the runtime that ``choose`` gives while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        threads: cores to compute on, where the engine computes on a CPU.
        gpu: the number of the GPU to compute on, where it does that.

    Raises:
        UserError: this machine lacks something that ``EMBEDMILL_RUNTIME`` asks for; on entering, the engine cannot be
            loaded.
        EngineDead: on entering, the GPU failed.
    """
    for line in spec.unusable:
        log.warning(line)
    runtime, why = choose(spec)
    through = f" through {runtime.through()}" if runtime.through() else ""
    log.info(
        "engine %s is computed by %s on a %s%s: %s",
        *(spec.name, runtime.name, "GPU" if runtime.uses_gpu else "CPU", through or _precision(spec, runtime), why),
    )
    _warn_of_long_rows(spec, runtime)
    return runtime.load()(spec, threads, gpu)


def _precision(spec: EngineSpec, runtime: Runtime) -> str:
    """What PyTorch computes in on a GPU, to follow upon that; empty of other runtimes, which have one alone."""
    return f" in {spec.precision_on_gpu}" if runtime.uses_gpu and runtime.name in ("torch", "modules") else ""


def open_fp32_engine(spec: EngineSpec, threads: int) -> Opened:
    """The engine in FP32, on the CPU. Arguments as ``open_engine``.

    Raises:
        UserError: this machine lacks what that takes.
    """
    for runtime in _in_order(spec, RUNTIMES):
        if not runtime.uses_gpu and not runtime.engine_lacks(spec) and not runtime.machine_lacks():
            return runtime.load()(spec, threads, 0)
    raise _without_runtime(spec)
