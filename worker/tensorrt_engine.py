"""The engine for NVIDIA GPUs: a TensorRT plan, run through pycuda, in FP16.

Whatever differs between TensorRT 8.6, 10 and 11 is asked of the library, never decided by its version number. Only
named tensors are used, which all of them have.

A micro-batch's way:

    host rows ─► pinned buffer ─► upload stream ─► compute stream ─► download stream ─► pinned buffer ─► host rows

Two slots take turns, each with buffers of its own: while the GPU computes in one, the other's results are read and its
next rows are filled in and copied.
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
import pycuda.driver as cuda
import tensorrt as trt

from contract.batch import Batch
from contract.engine import OUTPUT, EngineSpec, PlanSpec
from contract.errors import UserError
from worker.engine import EngineDead, Gathered, Inference
from worker.layout import Shape, layout_of
from worker.microbatch import MicroBatch

log = logging.getLogger("embedmill.worker")


class TensorRTLog(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
    """TensorRT's own messages: warnings go to the log, errors are also kept for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
            log.error("TensorRT: %s", message)
        elif severity == trt.ILogger.Severity.WARNING:
            log.debug("TensorRT: %s", message)

    def last(self) -> str:
        """What TensorRT complained of last; to be used in an exception."""
        said = "; ".join(self.errors[-3:]) or "TensorRT gave no reason"
        self.errors.clear()
        return said


LOG = TensorRTLog()
"""TensorRT takes one logger a process: the first that it is given."""


@functools.cache
def _primary_context(number: int) -> "tuple[cuda.Device, cuda.Context]":
    """A GPU's primary context, kept until the process ends: TensorRT has things in it that no call of ours frees, and
    TensorRT 8.6 crashes when it is used again after the context was released."""
    cuda.init()
    device = cuda.Device(number)
    return device, device.retain_primary_context()


def open_gpu(number: int, stack: ExitStack) -> int:
    """Make a GPU's primary context this thread's, until the stack closes.

    The primary context, because TensorRT uses the CUDA runtime, which uses that one.

    Args:
        number: the GPU's, from 0.
        stack: closed by the same thread.

    Returns:
        The GPU's compute capability, 90 for 9.0.

    Raises:
        UserError: there is no such GPU, or CUDA does not work.
    """
    try:
        device, context = _primary_context(number)
        context.push()
    except cuda.Error as error:
        raise UserError(
            f"GPU {number} cannot be used ({error})", "expected a GPU that nvidia-smi lists", "see nvidia-smi"
        ) from None
    stack.callback(context.pop)
    major, minor = device.compute_capability()
    return 10 * int(major) + int(minor)


class LoadedPlan:
    """A deserialized plan on the current CUDA context: one execution context for each profile.

    Args:
        spec: the engine.
        plan: the plan to load.

    Raises:
        UserError: the plan is not the recorded one, or this TensorRT does not take it.
    """

    def __init__(self, spec: EngineSpec, plan: PlanSpec) -> None:
        self.layout = layout_of(spec, plan)
        path = spec.check_plan(plan)
        if plan.packed:
            trt.init_libnvinfer_plugins(LOG, "")
        self._runtime = trt.Runtime(LOG)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(f"TensorRT {trt.__version__} refuses {path} ({LOG.last()})", mend=spec.rebuild_plan)
        names = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}
        if names != {*self.layout.inputs, OUTPUT}:
            raise UserError(f"{path} has the tensors {', '.join(sorted(names))}", mend=spec.rebuild_plan)
        stream = cuda.Stream()
        # One for each profile: a change of profile has the next run set up everything again.
        self._contexts = []
        for profile in range(len(plan.profiles)):
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(profile, stream.handle):
                raise EngineDead(f"no execution context for {path}: {LOG.last()}")
            self._contexts.append(context)
        stream.synchronize()

    def enqueue(
        self,
        profile: int,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, "cuda.DeviceAllocation"],
        stream: "cuda.Stream",
    ) -> None:
        """Start a micro-batch.

        Args:
            profile: the profile's place.
            shapes: each input's.
            addresses: on the device, of each input, int32, and of ``OUTPUT``, float32.
            stream: to compute on.

        Raises:
            EngineDead: TensorRT did not take it.
        """
        context = self._contexts[profile]
        taken = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        taken = taken and all(context.set_tensor_address(name, int(address)) for name, address in addresses.items())
        if not (taken and context.execute_async_v3(stream.handle)):
            raise EngineDead(f"TensorRT did not compute a micro-batch of the shapes {shapes}: {LOG.last()}")

    def close(self) -> None:
        """Free it, in the order in which TensorRT's objects depend on one another."""
        self._contexts.clear()
        self._engine = None
        self._runtime = None


class _Slot:
    """Buffers for one micro-batch in work.

    Args:
        names: the plan's inputs.
        elements: most elements of an input.
        vectors: most vectors of the output.
        hidden: their width.
    """

    def __init__(self, names: Sequence[str], elements: int, vectors: int, hidden: int) -> None:
        self.sent = {name: cuda.pagelocked_empty(elements, np.int32) for name in names}
        self.got = cuda.pagelocked_empty((vectors, hidden), np.float32)
        self.device = {name: cuda.mem_alloc(buffer.nbytes) for name, buffer in self.sent.items()}
        self.device[OUTPUT] = cuda.mem_alloc(self.got.nbytes)
        self.uploaded, self.computed, self.done = cuda.Event(), cuda.Event(), cuda.Event()
        self.micro: MicroBatch | None = None
        """What is in work here."""

    def free(self) -> None:
        """Give the memory back."""
        for buffer in self.device.values():
            buffer.free()
        for pinned in (*self.sent.values(), self.got):
            pinned.base.free()


class TensorRTEngine:
    """A plan on one GPU. The thread that enters it is the one that uses and leaves it.

    Args:
        spec: the engine directory.
        gpu: the GPU's number.
    """

    precision = "fp16"

    def __init__(self, spec: EngineSpec, gpu: int) -> None:
        self.spec = spec
        self.runtime = f"tensorrt {trt.__version__}"
        self._gpu = gpu
        self._stack = ExitStack()
        self._plan: LoadedPlan | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            sm = open_gpu(self._gpu, stack)
            try:
                self._load(sm, stack)
            except cuda.Error as error:
                raise EngineDead(f"GPU {self._gpu} failed while engine {self.spec.name} was loaded: {error}") from error
            self._stack = stack.pop_all()
        return self

    def _load(self, sm: int, stack: ExitStack) -> None:
        spec = self.spec
        self._plan = LoadedPlan(spec, spec.plan_for(trt.__version__, sm))
        stack.callback(self._plan.close)
        self._upload, self._compute, self._download = cuda.Stream(), cuda.Stream(), cuda.Stream()
        layout = self._plan.layout
        self._slots = [_Slot(layout.inputs, *layout.sizes(), spec.hidden) for _ in range(2)]
        for slot in self._slots:
            stack.callback(slot.free)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._plan = None
        # pycuda's objects must go before their context does.
        self._slots = []
        del self._upload, self._compute, self._download
        self._stack.close()

    def infer(self, batch: Batch) -> Inference:
        """See ``worker.engine.Engine.infer``.

        Raises:
            RuntimeError: the engine is not open.
        """
        if self._plan is None:
            raise RuntimeError("the engine is not open: use it in a with block")
        plan, gathered = self._plan, Gathered(self.spec, batch.lengths)
        microbatches = plan.layout.cut(batch.lengths)
        try:
            for turn, micro in enumerate(microbatches):
                slot = self._slots[turn % 2]
                self._finish(slot, batch, gathered, plan)
                self._start(slot, micro, batch, plan)
            for turn in range(len(microbatches), len(microbatches) + 2):
                self._finish(self._slots[turn % 2], batch, gathered, plan)
        except cuda.Error as error:
            raise EngineDead(f"GPU {self._gpu} failed: {error}") from error
        return Inference(gathered.vectors, sum(micro.tokens for micro in microbatches))

    def _start(self, slot: _Slot, micro: MicroBatch, batch: Batch, plan: LoadedPlan) -> None:
        """Fill a slot and set its micro-batch going."""
        shapes = plan.layout.fill(batch, micro, slot.sent)
        for name, shape in shapes.items():
            cuda.memcpy_htod_async(slot.device[name], slot.sent[name][: math.prod(shape)], self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait_for_event(slot.uploaded)
        plan.enqueue(micro.profile, shapes, slot.device, self._compute)
        slot.computed.record(self._compute)
        self._download.wait_for_event(slot.computed)
        cuda.memcpy_dtoh_async(slot.got[: plan.layout.vectors(micro)], slot.device[OUTPUT], self._download)
        slot.done.record(self._download)
        slot.micro = micro

    def _finish(self, slot: _Slot, batch: Batch, gathered: Gathered, plan: LoadedPlan) -> None:
        """Wait for what is in work in a slot, if anything is, and take its vectors."""
        if slot.micro is None:
            return
        micro, slot.micro = slot.micro, None
        slot.done.synchronize()
        plan.layout.gather(micro, slot.got[: plan.layout.vectors(micro)], batch.lengths, gathered)
