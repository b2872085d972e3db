"""PyTorch on an NVIDIA GPU: rows packed end to end, compiled by ``torch.compile``, in FP16.

Layers are compiled, not the whole model: all of one kind share a graph, so compiling takes a few seconds instead of
half a minute, for 1 % of the speed.

A micro-batch's way is that of ``tensorrt``: pinned buffer, upload stream, compute stream, download stream, pinned
buffer, with two in flight. Each has one of three sizes, so that three compiled graphs serve every batch.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch._dynamo.config
import torch._inductor.config
from torch import Tensor

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import PackedProfile
from worker.runtime.cuda import bus_id, cuda_device, dead_after_errors, enough_memory
from worker.runtime.gpu_lock import GpuLock, gpu_lock
from worker.runtime.interface import Gathered, Inference
from worker.runtime.layout import Packed
from worker.runtime.microbatch import MicroBatch
from worker.runtime.packed_model import INPUTS, PackedModel, fuse_gelu, read_model
from worker.runtime.pipeline import run_pipelined

log = logging.getLogger("embedmill.worker")

# By default PyTorch starts a process for each core, for graphs that are compiled in seconds.
torch._inductor.config.compile_threads = 1
# One graph for each size and kind of layer. PyTorch computes without a graph what exceeds the limit, 8 by default.
torch._dynamo.config.recompile_limit = 64

_SLOTS = 2
"""Micro-batches in flight at most."""
_TOKENS = (256, 64, 16)
"""Of a micro-batch, for each of the GPU's multiprocessors, so that all are at work to a matrix product's end: on an
H100, which has 132, 33,792, 8,448 and 2,112. The smaller ones are for what is left of a batch."""
_TOKENS_PER_ROW = 32
"""A micro-batch has a row for as many tokens. The attention's kernel has blocks for each row, also for empty ones."""
_COMPUTE_CAPABILITY = 80
"""The least that the attention's kernel takes: 8.0, Ampere."""


def profiles(spec: EngineSpec, multiprocessors: int) -> list[PackedProfile]:
    """The sizes of micro-batches on a GPU with so many multiprocessors; the largest takes the longest row."""
    largest, *others = (tokens * multiprocessors for tokens in _TOKENS)
    sizes = [max(largest, spec.max_length), *others]
    return [PackedProfile(max(1, size // _TOKENS_PER_ROW), size) for size in sizes]


@contextmanager
def torch_gpu_engine(spec: EngineSpec, gpu: int, *, warn: bool = True) -> Iterator["TorchGpuEngine"]:
    """Load ``model.safetensors`` onto a GPU, and compile it or load what was compiled, while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        gpu: the GPU's number, from 0.
        warn: say in the log if nothing that was compiled for this GPU is kept.

    Raises:
        UserError: there is no such GPU, it is too old or has too little free memory, or a file is missing or was
            changed.
        EngineDead: the GPU failed.
    """
    device = _device(gpu)
    with torch.cuda.device(device), gpu_lock(bus_id(device)) as lock:
        with enough_memory(spec, device):
            engine = TorchGpuEngine(spec, _model(spec, device, warn), device, lock)
            engine.warm_up()
        try:
            yield engine
        finally:
            engine.close()


def _device(gpu: int) -> torch.device:
    device = cuda_device(gpu)
    major, minor = torch.cuda.get_device_capability(gpu)
    if 10 * major + minor < _COMPUTE_CAPABILITY:
        raise UserError(
            f"GPU {gpu} has compute capability {major}.{minor}",
            "PyTorch's attention over packed rows takes 8.0 or more",
            "set EMBEDMILL_RUNTIME=tensorrt, or onnxruntime",
        )
    return device


def _model(spec: EngineSpec, device: torch.device, warn: bool) -> PackedModel:
    path = spec.check_file("model.safetensors", spec.torch_sha256)
    encoder, head = read_model(path, torch.float16)
    fuse_gelu(encoder)
    model = PackedModel(encoder, spec.pooling, head, spec.max_length).to(device)
    compiled = spec.compiled_for(torch.__version__, compute_capability(device))
    if compiled:
        torch.compiler.load_cache_artifacts(spec.check_compiled(compiled).read_bytes())
    elif warn:
        log.warning(
            "engine %s was not compiled for this GPU and PyTorch: that takes a minute now, and each time a worker "
            "starts; keep it: python -m engine_build compile --engine %s",
            *(spec.name, spec.name),
        )
    for layer in model.layers:
        layer.compile(dynamic=False)
    return model


def compute_capability(device: torch.device) -> int:
    """90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


class _Slot:
    """Buffers for one micro-batch in flight, pinned and on the device."""

    def __init__(self, layout: Packed, hidden: int, device: torch.device) -> None:
        elements, vectors = layout.sizes()
        pinned = {name: torch.empty(elements, dtype=torch.int32, pin_memory=True) for name in layout.inputs}
        self.sent = pinned
        self.buffers = {name: tensor.numpy() for name, tensor in pinned.items()}
        """Views of ``sent``."""
        self.device = {name: torch.empty(elements, dtype=torch.int32, device=device) for name in layout.inputs}
        self.received = torch.empty((vectors, hidden), dtype=torch.float32, pin_memory=True)
        self.vectors: Tensor | None = None
        """On the device. Kept until it is copied: its memory would be given to the next."""
        self.uploaded, self.computed, self.done = torch.cuda.Event(), torch.cuda.Event(), torch.cuda.Event()


class TorchGpuEngine:
    """A model on one GPU, its buffers, and the GPU's lock; ``torch_gpu_engine`` makes it."""

    precision = "fp16"
    runtime = f"torch {torch.__version__}"

    def __init__(self, spec: EngineSpec, model: PackedModel, device: torch.device, lock: GpuLock) -> None:
        self.spec, self._model, self._device, self._lock = spec, model, device, lock
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._layout = Packed(spec, profiles(spec, multiprocessors), INPUTS)
        self._slots = [_Slot(self._layout, spec.hidden, device) for _ in range(_SLOTS)]
        self._upload, self._compute, self._download = (torch.cuda.Stream(device) for _ in range(3))

    def warm_up(self) -> None:
        """Compute one micro-batch of each size: that compiles the graphs, and takes the memory that they need."""
        began = time.monotonic()
        for size in self._layout.profiles:
            self.infer(_filling(self.spec, size))
        log.info(
            "engine %s: %d graphs ready in %.1f s", self.spec.name, len(self._layout.profiles), time.monotonic() - began
        )

    def infer(self, batch: Batch) -> Inference:
        """See ``interface.Engine.infer``."""
        gathered = Gathered(self.spec, batch.lengths)
        microbatches = self._layout.cut(batch.lengths)

        def start(slot: _Slot, micro: MicroBatch) -> None:
            self._start(slot, micro, batch)

        def collect(slot: _Slot, micro: MicroBatch) -> None:
            vectors = slot.received[: self._layout.vectors(micro)].numpy()
            self._layout.gather(micro, vectors, batch.lengths, gathered)

        with torch.inference_mode(), dead_after_errors(self._device):
            run_pipelined(microbatches, self._slots, self._lock, start, collect)
        return Inference(gathered.vectors, sum(micro.tokens for micro in microbatches))

    def _start(self, slot: _Slot, micro: MicroBatch, batch: Batch) -> None:
        shapes = self._layout.fill(batch, micro, slot.buffers)
        inputs = {name: slot.device[name][: shapes[name][0]] for name in shapes}
        with torch.cuda.stream(self._upload):
            for name, tensor in inputs.items():
                tensor.copy_(slot.sent[name][: len(tensor)], non_blocking=True)
            slot.uploaded.record()
        with torch.cuda.stream(self._compute):
            slot.uploaded.wait()
            slot.vectors = self._model(inputs, batch.prompt_tokens)
            slot.computed.record()
        with torch.cuda.stream(self._download):
            slot.computed.wait()
            vectors = self._layout.vectors(micro)
            slot.received[:vectors].copy_(slot.vectors[:vectors], non_blocking=True)
            slot.done.record()

    def close(self) -> None:
        """Give the memory back to the GPU."""
        self._slots.clear()
        del self._model
        torch.cuda.empty_cache()


def _filling(spec: EngineSpec, size: PackedProfile) -> Batch:
    """A batch that is one micro-batch of this size."""
    length = min(spec.max_length, size.tokens)
    rows = size.tokens // length
    ids: npt.NDArray[np.int32] = np.full((rows, spec.max_length), spec.pad_id, np.int32)
    mask = np.broadcast_to((np.arange(spec.max_length) < length).astype(np.int32), ids.shape)
    lengths = np.full(rows, length, np.int32)
    return Batch("warm-up", 0, spec.fingerprint, np.arange(rows), ids, mask, np.zeros_like(ids), lengths)
