"""The interface of an engine: what turns a batch into vectors."""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from worker.gpus import lacking

log = logging.getLogger("embedmill.worker")


class EngineDead(BaseException):
    """The engine's CUDA context is lost, and with it everything that this process has on the GPU: it must end.

    No ``Exception``: nothing that this process could still do would mend it.
    """


class Inference(NamedTuple):
    """What an engine made of a batch."""

    vectors: npt.NDArray[np.float32]
    """float32, in the batch's row order, rows without a text left out: ``[texts, hidden]``; where pooling is
    ``tokens``, ``[sum(batch.lengths), hidden]``, the real tokens of one row after the other's. The caller's own."""
    computed_tokens: int
    """Tokens that were computed, padding included."""


class Engine(Protocol):
    """A loaded engine. A context manager: making one touches no device, entering does, leaving frees it."""

    spec: EngineSpec
    runtime: str
    """Such as ``onnxruntime 1.32.0``."""
    precision: str
    """``fp32`` or ``fp16``."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def infer(self, batch: Batch) -> Inference:
        """The batch's vectors.

        Raises:
            EngineDead: the GPU failed; nothing more can be computed in this process.
        """
        ...


class Gathered:
    """Collects micro-batches' outputs as an ``Inference``'s vectors.

    Args:
        spec: the engine's.
        lengths: ``[n]``, the batch's.
    """

    def __init__(self, spec: EngineSpec, lengths: npt.NDArray[np.integer]) -> None:
        self._per_token = spec.pooling == "tokens"
        self._lengths = lengths
        # Where each row's vectors begin in the result: one each, or one for each of its tokens.
        counts = lengths if self._per_token else np.minimum(lengths, 1)
        self._first = np.cumsum(counts) - counts
        self.vectors = np.empty((int(counts.sum()), spec.hidden), np.float32)

    def put(
        self, rows: npt.NDArray[np.intp], found: npt.NDArray[np.float32] | Sequence[npt.NDArray[np.float32]]
    ) -> None:
        """Take over the vectors of the rows at these places, ``[n, hidden]``; at token level each row's own array,
        ``[length, hidden]``, padding at its end allowed."""
        if self._per_token:
            for row, tokens in zip(rows, found, strict=True):
                self.vectors[self._first[row] : self._first[row] + self._lengths[row]] = tokens[: self._lengths[row]]
        else:
            self.vectors[self._first[rows]] = found


def open_engine(spec: EngineSpec, threads: int, gpu: int = 0) -> Engine:
    """The engine that this machine can run best, or the one that ``EMBEDMILL_RUNTIME`` asks for.

    Args:
        spec: the engine directory.
        threads: cores to compute on, where the engine computes on a CPU.
        gpu: the GPU to compute on, where it does that.

    Raises:
        UserError: ``EMBEDMILL_RUNTIME`` asks for something that this machine has not.
    """
    if not takes_tensorrt(spec):
        return fp32_engine(spec, threads)
    from worker.tensorrt_engine import TensorRTEngine  # here: only a GPU machine has TensorRT and pycuda

    return TensorRTEngine(spec, gpu)


def takes_tensorrt(spec: EngineSpec) -> bool:
    """Whether ``open_engine`` gives the TensorRT engine: if there is a plan, a GPU and what it needs, unless told.

    Raises:
        UserError: ``EMBEDMILL_RUNTIME`` asks for TensorRT, and this machine cannot have it.
    """
    runtime, lacks = settings().runtime, lacking()
    if runtime == "onnxruntime":
        return False
    if runtime == "tensorrt" and lacks:
        raise UserError(
            f"EMBEDMILL_RUNTIME is tensorrt, and this machine has {lacks}",
            "the TensorRT engine needs an NVIDIA GPU, tensorrt and pycuda",
            "install them: pip install 'embedmill[gpu]', or unset EMBEDMILL_RUNTIME",
        )
    if runtime == "auto" and not lacks and not spec.plans:
        log.warning("engine %s has no plan, so the GPU is left idle; %s", spec.name, spec.rebuild_plan)
    return runtime == "tensorrt" or bool(spec.plans and not lacks)


def fp32_engine(spec: EngineSpec, threads: int) -> Engine:
    """The engine that computes in FP32, which every machine can run. Arguments as ``open_engine``."""
    from worker.onnx_engine import OnnxEngine  # here, so that a machine without ONNX Runtime can use another engine

    return OnnxEngine(spec, threads)
