"""PyTorch on an NVIDIA GPU: rows packed end to end, compiled by ``torch.compile``, in FP16 or BF16.

Layers are compiled, not the whole model: all of one kind share a graph, so compiling takes a few seconds instead of
half a minute, for 1 % of the speed.

A micro-batch's way is that of ``tensorrt``: pinned buffer, upload stream, compute stream, download stream, pinned
buffer, with two in flight. Each has one of a few profiles, of three numbers of tokens, so that three compiled graphs
serve every batch. Their kernels are recorded as CUDA graphs, one for each profile: to start some 150 kernels one by one
takes the CPU longer than the GPU needs for them where a micro-batch is small.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError, reason
from contract.plan import PackedProfile
from contract.tokens import TokenRows
from contract.tuned import AttentionKernel
from worker.runtime.compiled import restored
from worker.runtime.cuda import bus_id, cuda_device, dead_after_errors, enough_memory
from worker.runtime.gpu_lock import GpuLock, gpu_lock
from worker.runtime.interface import Done, Gathered, Inference, unseen
from worker.runtime.layout import Packed
from worker.runtime.merging import merging_backend
from worker.runtime.microbatch import MicroBatch
from worker.runtime.packed_model import HALF, INPUTS, PackedModel, fuse_gelu, read_model
from worker.runtime.pipeline import run_pipelined

log = logging.getLogger("embedmill.worker")

_SLOTS = 2
"""Micro-batches in flight at most."""
_TOKENS = (256, 64, 16)
"""Of a micro-batch, for each of the GPU's multiprocessors, so that all are at work to a matrix product's end: on an
H100, which has 132, 33,792, 8,448 and 2,112. The smaller ones are for what is left of a batch."""
_SHORT, _USUAL = 128, 512
"""Most tokens of a row, of profiles for short rows and for usual ones."""
_COMPUTE_CAPABILITY = 80
"""The least that the attention's kernel takes: 8.0, Ampere."""


def profiles(max_length: int, multiprocessors: int) -> list[PackedProfile]:
    """Those of micro-batches on a GPU with so many multiprocessors.

    The attention's kernel has a block for each 128 tokens of the longest row, for each row, also an empty one, and for
    each head. So a large micro-batch has many rows if all are short, and few if they are long. On an H100::

        max_length 512     2112x33792 (rows of up to 128 tokens), 528x33792, 132x33792, 528x8448, 132x2112
        max_length 8,192   2112x33792 (128), 528x33792 (512), 66x33792, 528x8448 (512), 66x8448, 132x2112 (512)

    Those with as many tokens share their compiled graphs: a further one costs a recorded CUDA graph.
    """
    most, middle, least = (tokens * multiprocessors for tokens in _TOKENS)
    each, usual = min(16, max_length), min(_USUAL, max_length)
    found = [(most // each, most, _SHORT)]
    if max_length > _SHORT:
        found.append((most // 64, most, usual))
    if max_length > _USUAL // 2:  # else it would have nearly as many rows
        found.append((2 * most // min(max_length, 2 * _USUAL), max(most, max_length), max_length))
    found.append((middle // each, middle, usual))
    if min(middle, max_length) > _USUAL:  # else it would be the one before
        found.append((middle // _SHORT, middle, max_length))
    found.append((least // each, least, usual))
    return [PackedProfile(max(1, rows), tokens, min(longest, tokens, max_length)) for rows, tokens, longest in found]


def profiles_on(device: torch.device, spec: EngineSpec) -> list[PackedProfile]:
    """Those of an engine on a GPU."""
    return profiles(spec.max_length, torch.cuda.get_device_properties(device).multi_processor_count)


@contextmanager
def torch_gpu_engine(
    spec: EngineSpec, gpu: int, *, kernels: Mapping[str, AttentionKernel] | None = None
) -> Iterator["TorchGpuEngine"]:
    """Load ``model.safetensors`` onto a GPU, and compile it or load what was compiled, while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        gpu: the GPU's number, from 0.
        kernels: compile it, whatever is kept, with these kernels for the attention of profiles, such as
            ``{"132x33792": "flash_attention_3"}``, and PyTorch's own for the others. By default what was compiled for
            this GPU and is kept is loaded; the log says so if nothing is.

    Raises:
        UserError: there is no such GPU, it is too old or has too little free memory, or a file is missing or was
            changed.
        EngineDead: the GPU failed.
    """
    device = _device(gpu)
    with torch.cuda.device(device), gpu_lock(bus_id(device)) as lock:
        with enough_memory(spec, device):
            if kernels is None:
                kept = restored(spec, device)
                kernels = kept.attention_kernels if kept else {}
            engine = TorchGpuEngine(spec, _model(spec, device), device, lock, kernels)
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


def _model(spec: EngineSpec, device: torch.device) -> PackedModel:
    path = spec.check_file("model.safetensors", spec.torch_sha256)
    encoder, head = read_model(path, HALF[spec.torch_precision or "fp16"])
    fuse_gelu(encoder)
    model = PackedModel(encoder, spec.pooling, head).to(device)
    model.compile_layers(merging_backend)
    return model


@functools.cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream, torch.cuda.Stream]:
    """For uploads, computing and downloads, of every engine of this process: cuBLAS keeps memory for each stream that
    it has computed on."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device), torch.cuda.Stream(device)


class _Slot:
    """Buffers for one micro-batch in flight, pinned and on the device."""

    def __init__(self, layout: Packed, hidden: int, device: torch.device) -> None:
        elements, vectors = layout.sizes()
        pinned = {name: torch.empty(elements, dtype=torch.int32, pin_memory=True) for name in layout.inputs}
        self.sent = pinned
        self.buffers = {name: tensor.numpy() for name, tensor in pinned.items()}
        """Views of ``sent``."""
        self.device = {name: torch.empty(elements, dtype=torch.int32, device=device) for name in layout.inputs}
        self.vectors = torch.empty((vectors, hidden), dtype=torch.float32, device=device)
        self.received = torch.empty((vectors, hidden), dtype=torch.float32, pin_memory=True)
        self.compute: list[Callable[[], None]] = []
        """Of each profile: from ``device`` to ``vectors``, on the compute stream."""
        self.uploaded, self.computed, self.done = torch.cuda.Event(), torch.cuda.Event(), torch.cuda.Event()


class TorchGpuEngine:
    """A model on one GPU, its buffers, and the GPU's lock; ``torch_gpu_engine`` makes it."""

    runtime = f"torch {torch.__version__}"

    def __init__(
        self,
        spec: EngineSpec,
        model: PackedModel,
        device: torch.device,
        lock: GpuLock,
        kernels: Mapping[str, AttentionKernel],
    ) -> None:
        self.spec, self._model, self._device, self._lock = spec, model, device, lock
        self.precision = spec.torch_precision or "fp16"
        self._layout = Packed(spec, profiles_on(device, spec), INPUTS)
        self._kernels = [kernels.get(str(profile)) for profile in self._layout.profiles]
        self._slots = [_Slot(self._layout, spec.hidden, device) for _ in range(_SLOTS)]
        self._upload, self._compute, self._download = _streams(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._unrecorded = ""
        """Why the kernels cannot be recorded; empty if they can."""

    def warm_up(self) -> None:
        """Compile the graph of each profile, compute with it once, and record its kernels for each slot."""
        began = time.monotonic()
        with torch.inference_mode(), dead_after_errors(self._device):
            for number, profile in enumerate(self._layout.profiles):
                batch, micro = filling(self.spec, profile, number)
                for slot in self._slots:
                    self._send(slot, micro, batch)
                    slot.uploaded.synchronize()
                    slot.compute.append(self._recorded(slot, number))
        torch.cuda.empty_cache()  # what was computed with before it was recorded
        if self._unrecorded:
            log.warning("engine %s is slower than it could be: no CUDA graph (%s)", self.spec.name, self._unrecorded)
        log.info(
            "engine %s: %d graphs ready in %.1f s", self.spec.name, len(self._layout.profiles), time.monotonic() - began
        )

    def _recorded(self, slot: _Slot, profile: int) -> Callable[[], None]:
        """``_forward`` of a slot and a profile, as one call of CUDA's where its kernels can be recorded."""
        forward = functools.partial(self._forward, slot, profile)
        with torch.cuda.stream(self._compute):
            forward()
        self._compute.synchronize()
        if self._unrecorded:
            return forward
        graph = torch.cuda.CUDAGraph()
        try:
            # All share memory: they compute one after the other, and nothing in it is read after one has computed.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._compute):
                forward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize(self._device)
            self._unrecorded = reason(error)
            return forward
        return graph.replay

    def _forward(self, slot: _Slot, profile: int, skip: int = 0) -> None:
        longest = self._layout.profiles[profile].longest or self.spec.max_length
        inputs = {name: slot.device[name][:size] for name, size in self._layout.sizes_of(profile).items()}
        vectors = self._model(inputs, longest, skip, self._kernels[profile])
        slot.vectors[: len(vectors)].copy_(vectors)

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        gathered = Gathered(self.spec, batch.lengths, done)
        microbatches = self._layout.cut(batch.lengths)

        def start(slot: _Slot, micro: MicroBatch) -> None:
            self._start(slot, micro, batch)

        def collect(slot: _Slot, micro: MicroBatch) -> None:
            vectors = slot.received[: self._layout.vectors(micro)].numpy()
            self._layout.gather(micro, vectors, batch.lengths, gathered)

        with torch.inference_mode(), dead_after_errors(self._device):
            run_pipelined(microbatches, self._slots, self._lock, start, collect)
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))

    def _send(self, slot: _Slot, micro: MicroBatch, batch: Batch) -> None:
        self._layout.fill(batch, micro, slot.buffers)
        with torch.cuda.stream(self._upload):
            for name, size in self._layout.sizes_of(micro.profile).items():
                slot.device[name][:size].copy_(slot.sent[name][:size], non_blocking=True)
            slot.uploaded.record()

    def _start(self, slot: _Slot, micro: MicroBatch, batch: Batch) -> None:
        self._send(slot, micro, batch)
        with torch.cuda.stream(self._compute):
            slot.uploaded.wait()
            if batch.prompt_tokens:  # which the recorded kernels pool too
                self._forward(slot, micro.profile, batch.prompt_tokens)
            else:
                slot.compute[micro.profile]()
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


def filling(spec: EngineSpec, profile: PackedProfile, number: int) -> tuple[Batch, MicroBatch]:
    """A batch that is one micro-batch of this profile, the one of that index."""
    length = min(profile.longest or spec.max_length, profile.tokens)
    rows = min(profile.rows, profile.tokens // length)
    tokens = TokenRows(np.full(rows * length, spec.pad_id, np.int32), np.full(rows, length, np.int32))
    batch = Batch("warm-up", 0, spec.fingerprint, np.arange(rows), tokens, tokens.lengths)
    return batch, MicroBatch(np.arange(rows), length, profile.tokens, number)
