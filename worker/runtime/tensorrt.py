"""The engine for NVIDIA GPUs: a TensorRT plan, in FP16.

A micro-batch's way:

    host rows ─► pinned buffer ─► upload stream ─► compute stream ─► download stream ─► pinned buffer ─► host rows

Two slots alternate, each with buffers of its own: while the GPU computes in one, the other's results are read and its
next rows are filled in and copied. Processes that share a GPU compute one batch at a time: see ``gpu_lock``.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.graph import OUTPUT
from worker.runtime.driver import CudaDriver, Memory
from worker.runtime.gpu_lock import GpuLock, gpu_lock
from worker.runtime.gpu_plan import Gpu, LoadedPlan, gpu_context
from worker.runtime.interface import Done, EngineDead, Gathered, Inference, unseen
from worker.runtime.layout import Layout
from worker.runtime.microbatch import MicroBatch
from worker.runtime.pipeline import run_pipelined
from worker.runtime.trt import VERSION

_SLOTS = 2
"""Micro-batches in flight at most."""


@contextmanager
def tensorrt_engine(spec: EngineSpec, gpu: int) -> Iterator["TensorRTEngine"]:
    """Load an engine's plan on a GPU while the ``with`` block lasts. The thread that enters it uses and leaves it.

    Args:
        spec: the engine directory.
        gpu: the GPU's number, from 0.

    Raises:
        UserError: there is no such GPU or no plan for it, the plan is not the recorded one, or the GPU has too little
            free memory.
        EngineDead: the GPU failed.
    """
    with gpu_context(gpu) as current, ExitStack() as stack:
        try:
            engine = _load(spec, current, stack)
        except current.cuda.MemoryError as error:
            raise current.too_little_memory(spec, error) from None
        except current.cuda.Error as error:
            raise EngineDead(f"GPU {gpu} failed while engine {spec.name} was loaded: {error}") from error
        yield engine


def _load(spec: EngineSpec, gpu: Gpu, stack: ExitStack) -> "TensorRTEngine":
    plan = LoadedPlan(spec, gpu)
    stack.callback(plan.close)
    lock = stack.enter_context(gpu_lock(gpu.device.pci_bus_id()))
    pipeline = _Pipeline(plan, spec.hidden, gpu.cuda)
    stack.callback(pipeline.close)
    return TensorRTEngine(spec, gpu, plan.layout, pipeline, lock)


class _Slot:
    """Buffers for one micro-batch in flight.

    Args:
        layout: of the plan's inputs.
        hidden: width of a vector.
        cuda: the driver.
    """

    def __init__(self, layout: Layout, hidden: int, cuda: CudaDriver) -> None:
        elements, vectors = layout.sizes()
        with ExitStack() as taken:
            taken.callback(vars(self).clear)  # the events go with the last reference
            self.sent = {name: _pinned((elements,), np.int32, cuda, taken) for name in layout.inputs}
            self.received = _pinned((vectors, hidden), np.float32, cuda, taken)
            self.device = {name: _on_gpu(buffer.nbytes, cuda, taken) for name, buffer in self.sent.items()}
            self.device[OUTPUT] = _on_gpu(self.received.nbytes, cuda, taken)
            self.uploaded, self.computed, self.done = cuda.Event(), cuda.Event(), cuda.Event()
            self._taken = taken.pop_all()

    def close(self) -> None:
        """Free it."""
        self._taken.close()


def _pinned(shape: tuple[int, ...], dtype: type[np.generic], cuda: CudaDriver, taken: ExitStack) -> npt.NDArray[Any]:
    """Page-locked host memory, freed with the stack."""
    buffer = cuda.pagelocked_empty(shape, dtype)
    owner: Any = buffer.base
    taken.callback(owner.free)
    return buffer


def _on_gpu(size: int, cuda: CudaDriver, taken: ExitStack) -> Memory:
    """So many bytes on the GPU, freed with the stack."""
    allocation = cuda.mem_alloc(size)
    taken.callback(allocation.free)
    return allocation


class _Pipeline:
    """The slots, and the three streams that a micro-batch passes.

    Args:
        plan: computes.
        hidden: width of a vector.
        cuda: the driver.

    Raises:
        cuda.MemoryError: the GPU has too little free memory for the slots.
    """

    def __init__(self, plan: LoadedPlan, hidden: int, cuda: CudaDriver) -> None:
        with ExitStack() as taken:
            taken.callback(vars(self).clear)  # the streams go with the last reference
            self._plan, self._cuda = plan, cuda
            # Both slots compute on the plan's stream, one after another: they share the memory between its layers.
            self._upload, self._compute, self._download = cuda.Stream(), plan.stream, cuda.Stream()
            self.slots: list[_Slot] = []
            for _ in range(_SLOTS):
                self.slots.append(_Slot(plan.layout, hidden, cuda))
                taken.callback(self.slots[-1].close)
            self._taken = taken.pop_all()

    def start(self, slot: _Slot, micro: MicroBatch, batch: Batch) -> None:
        """Fill a slot and start its micro-batch."""
        shapes = self._plan.layout.fill(batch, micro, slot.sent)
        for name, shape in shapes.items():
            self._cuda.memcpy_htod_async(slot.device[name], slot.sent[name][: math.prod(shape)], self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait_for_event(slot.uploaded)
        self._plan.enqueue(micro.profile, shapes, slot.device)
        slot.computed.record(self._compute)
        self._download.wait_for_event(slot.computed)
        vectors = self._plan.layout.vectors(micro)
        self._cuda.memcpy_dtoh_async(slot.received[:vectors], slot.device[OUTPUT], self._download)
        slot.done.record(self._download)

    def close(self) -> None:
        """Free everything: the driver's objects must go before their context does."""
        self._taken.close()


class TensorRTEngine:
    """A plan on one GPU, its buffers, and the GPU's lock; ``tensorrt_engine`` makes it."""

    precision = "fp16"
    runtime = f"tensorrt {VERSION}"

    def __init__(self, spec: EngineSpec, gpu: Gpu, layout: Layout, pipeline: _Pipeline, lock: GpuLock) -> None:
        self.spec, self._gpu, self._layout, self._pipeline, self._lock = spec, gpu, layout, pipeline, lock

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        gathered = Gathered(self.spec, batch.lengths, done)
        microbatches = self._layout.cut(batch.lengths)
        pipeline = self._pipeline

        def start(slot: _Slot, micro: MicroBatch) -> None:
            pipeline.start(slot, micro, batch)

        def collect(slot: _Slot, micro: MicroBatch) -> None:
            self._layout.gather(micro, slot.received[: self._layout.vectors(micro)], batch.lengths, gathered)

        try:
            run_pipelined(microbatches, pipeline.slots, self._lock, start, collect)
        except self._gpu.cuda.Error as error:
            raise EngineDead(f"GPU {self._gpu.number} failed: {error}") from error
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))
