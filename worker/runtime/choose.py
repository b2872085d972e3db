"""Which runtime computes an engine on this machine, and why.

To add a runtime: write a module beside this one, whose context manager yields an ``interface.Engine``; give it a line
in ``RUNTIMES``, which is in order of preference; and add its name to ``contract.settings.Settings.runtime``.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from worker.runtime.gpus import lacking
from worker.runtime.interface import Engine

log = logging.getLogger("embedmill.worker")

Opened = AbstractContextManager[Engine]


class Runtime(NamedTuple):
    """One way to compute an engine."""

    name: str
    """As ``EMBEDMILL_RUNTIME`` names it."""
    open: Callable[[EngineSpec, int, int], Opened]
    """Takes what ``open_engine`` takes."""
    uses_gpu: bool
    machine_lacks: Callable[[], str]
    """What this machine lacks for it; empty if nothing."""
    engine_lacks: Callable[[EngineSpec], str]
    """What the engine lacks for it, and how to add that; empty if nothing."""
    needs: str
    """What the machine must have, for people."""
    extra: str
    """The extra of embedmill that installs it."""


def _nothing(*_: object) -> str:
    return ""


def _no_plan(spec: EngineSpec) -> str:
    return "" if spec.plans else f"engine {spec.name} has no plan, so the GPU is left idle; {spec.rebuild_plan}"


def _open_tensorrt(spec: EngineSpec, threads: int, gpu: int) -> Opened:
    from worker.runtime.tensorrt import tensorrt_engine  # here: only a GPU machine has TensorRT and pycuda

    return tensorrt_engine(spec, gpu)


def _open_onnx(spec: EngineSpec, threads: int, gpu: int) -> Opened:
    from worker.runtime.onnx import onnx_engine  # here: a machine without ONNX Runtime can use another runtime

    return onnx_engine(spec, threads)


_ONNX = Runtime("onnxruntime", _open_onnx, False, _nothing, _nothing, "onnxruntime", "cpu")
"""Computes every engine on every machine, in FP32."""

RUNTIMES = (
    Runtime("tensorrt", _open_tensorrt, True, lacking, _no_plan, "an NVIDIA GPU, tensorrt and pycuda", "gpu"),
    _ONNX,
)
"""In order of preference."""


def choose(spec: EngineSpec) -> Runtime:
    """The runtime that ``EMBEDMILL_RUNTIME`` names; with ``auto`` the first that this machine and the engine have all
    for. An engine that leaves a GPU idle is a warning in the log.

    Raises:
        UserError: this machine lacks something that the named runtime needs.
    """
    wanted = settings().runtime
    if wanted != "auto":
        return _named(wanted)
    for runtime in RUNTIMES:
        if runtime.machine_lacks():
            continue
        if reason := runtime.engine_lacks(spec):
            log.warning(reason)
            continue
        return runtime
    return _ONNX


def _named(name: str) -> Runtime:
    runtime = next(one for one in RUNTIMES if one.name == name)
    if lacks := runtime.machine_lacks():
        raise UserError(
            f"EMBEDMILL_RUNTIME is {name}, and this machine has {lacks}",
            f"{name} needs {runtime.needs}",
            f"install them: pip install 'embedmill[{runtime.extra}]', or unset EMBEDMILL_RUNTIME",
        )
    return runtime


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
    return choose(spec).open(spec, threads, gpu)


def open_fp32_engine(spec: EngineSpec, threads: int) -> Opened:
    """The engine in FP32, as every machine can load it. Arguments as ``open_engine``."""
    return _ONNX.open(spec, threads, 0)
