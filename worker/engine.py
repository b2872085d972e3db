"""The interface of an engine: what turns a batch into vectors."""

from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec


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
        """The batch's vectors."""
        ...


def open_engine(spec: EngineSpec, threads: int) -> Engine:
    """The engine that this machine can run best.

    Args:
        spec: the engine directory.
        threads: cores to compute on, where the engine computes on a CPU.
    """
    return fp32_engine(spec, threads)


def fp32_engine(spec: EngineSpec, threads: int) -> Engine:
    """The engine that computes in FP32, which every machine can run. Arguments as ``open_engine``."""
    from worker.onnx_engine import OnnxEngine  # here, so that a machine without ONNX Runtime can use another engine

    return OnnxEngine(spec, threads)
