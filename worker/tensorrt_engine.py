"""The engine for NVIDIA GPUs: a TensorRT plan, run through pycuda, in FP16.

A micro-batch's way:

    host rows ─► pinned buffer ─► upload stream ─► compute stream ─► download stream ─► pinned buffer ─► host rows

Two slots take turns, each with buffers of its own: while the GPU computes in one, the other's results are read and its
next rows are filled in and copied. Processes that share a GPU take turns, batch by batch: see ``worker.turns``.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
import pycuda.driver as cuda
import tensorrt as trt

from contract.batch import Batch
from contract.engine import OUTPUT, EngineSpec
from contract.errors import UserError
from worker.engine import EngineDead, Gathered, Inference
from worker.microbatch import MicroBatch
from worker.plan import LoadedPlan, open_gpu
from worker.turns import Turns


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
            except cuda.MemoryError as error:
                raise UserError(
                    f"GPU {self._gpu} has too little free memory for engine {self.spec.name} ({error})",
                    mend="end what else uses it (nvidia-smi), or start the worker with fewer children: -c 1",
                ) from None
            except cuda.Error as error:
                raise EngineDead(f"GPU {self._gpu} failed while engine {self.spec.name} was loaded: {error}") from error
            self._stack = stack.pop_all()
        return self

    def _load(self, sm: int, stack: ExitStack) -> None:
        spec = self.spec
        self._plan = LoadedPlan(spec, spec.plan_for(trt.__version__, sm))
        stack.callback(self._plan.close)
        self._turns = Turns(cuda.Device(self._gpu).pci_bus_id())
        stack.callback(self._turns.close)
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
            with self._turns:
                for number, micro in enumerate(microbatches):
                    slot = self._slots[number % 2]
                    self._finish(slot, batch, gathered, plan)
                    self._start(slot, micro, batch, plan)
            # The turn has ended: while the last two are computed and read, another process starts its first.
            for number in range(len(microbatches), len(microbatches) + 2):
                self._finish(self._slots[number % 2], batch, gathered, plan)
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
