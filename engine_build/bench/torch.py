"""PyTorch's half of the benchmark."""

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers
from torch import Tensor

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import BatchShape
from contract.words import count
from engine_build.bench.cases import Timed, inputs, without_padding
from engine_build.bench.records import System
from engine_build.model import Parts, weights_sha256
from engine_build.opened import open_folder
from engine_build.outputs import opened_parts
from engine_build.source import fetch
from engine_build.states import hidden_states, pooled

_MATRIX = 8192


@contextmanager
def torch_bench(spec: EngineSpec, gpu: int) -> Iterator["TorchBench"]:
    """The engine's model in PyTorch on one GPU while the ``with`` block lasts.

    Attention is transformers' SDPA, and TF32 is off. Afterwards the GPU's memory is free for another system.

    Args:
        spec: the engine.
        gpu: the GPU's number.

    Raises:
        UserError: PyTorch has no such GPU, or the model is not the one that the engine was made from.
    """
    if not torch.cuda.is_available() or gpu >= torch.cuda.device_count():
        raise UserError(
            f"this PyTorch ({torch.__version__}) finds {count(torch.cuda.device_count(), 'GPU')}",
            f"expected to use number {gpu}",
            "time TensorRT alone: --system tensorrt",
        )
    bench = TorchBench(spec, _parts(spec), torch.device("cuda", gpu))
    try:
        yield bench
    finally:
        bench.close()


def _parts(spec: EngineSpec) -> Parts:
    if spec.onnx_sha256 is None:
        raise UserError(
            f"engine {spec.name} is not timed here",
            f"bench compares TensorRT and PyTorch on padded rows; {spec.lacks('onnx')}",
            f"python -m engine_build tune --engine {spec.name}",
        )
    model = open_folder(fetch(spec.model, spec.revision).folder)
    if weights_sha256(model) != spec.weights_sha256:
        raise UserError(f"the model {spec.model} is not the one that engine {spec.name} was made from")
    return opened_parts(
        model,
        spec.pooling if "pooling" in spec.chosen else None,
        spec.normalize if "normalize" in spec.chosen else None,
    )


class TorchBench:
    """Times a model; ``torch_bench`` makes it.

    Args:
        spec: the engine.
        parts: of its model; moved to the device.
        device: a GPU.
    """

    def __init__(self, spec: EngineSpec, parts: Parts, device: torch.device) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._spec, self._device = spec, device
        assert parts.encoder is not None and parts.head is not None  # noqa: PT018  # an exported model has both
        self._model, self._head = parts.encoder, parts.head.to(device)
        self._model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature

    def system(self, name: str) -> System:
        """One of ``TORCH_SYSTEMS`` on this GPU."""
        version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return System(name, torch.cuda.get_device_name(self._device), version)

    def time(self, system: str, shape: BatchShape, runs: int) -> Timed:
        """Time one shape.

        Args:
            system: ``torch-fp32``, ``torch-fp16`` or ``torch-fp16-compiled``. After one in FP16 the model stays so.
            shape: the batch.
            runs: how often.
        """
        if system != "torch-fp32":
            self._model.half()
        compute: Callable[..., Tensor] = self._compute
        if system == "torch-fp16-compiled":
            torch.compiler.reset()
            compute = torch.compile(self._compute, dynamic=False)
        batches = inputs(self._spec, shape)
        on_gpu = [[torch.from_numpy(array).to(self._device) for array in batch] for batch in batches]
        with torch.inference_mode():
            vectors = compute(*on_gpu[0]).cpu().numpy()
            for number in range(max(10, runs // 10)):
                compute(*on_gpu[number % len(on_gpu)])
            milliseconds = _timed(lambda number: compute(*on_gpu[number % len(on_gpu)]), runs)
        return Timed(milliseconds, without_padding(self._spec, batches[0], vectors))

    def _compute(self, *batch: Tensor) -> Tensor:
        ids, mask, types = batch
        hidden = hidden_states(self._model, ids, mask, types)
        vectors: Tensor = self._head(pooled(hidden.float(), mask, self._spec.pooling))
        return vectors

    def matrix_tflops(self) -> float:
        """10¹² operations a second of an FP16 product of random 8,192 × 8,192 matrices: the chip's practical best."""
        a, b = (torch.randn(_MATRIX, _MATRIX, device=self._device, dtype=torch.float16) for _ in range(2))
        out = torch.empty_like(a)
        for _ in range(20):
            torch.matmul(a, b, out=out)
        milliseconds = _timed(lambda _: torch.matmul(a, b, out=out), 100)
        return 2 * _MATRIX**3 / float(np.median(milliseconds)) / 1e9

    def close(self) -> None:
        """Give the GPU's memory back, which another system needs."""
        del self._model
        gc.collect()
        torch.cuda.empty_cache()


def _timed(run: Callable[[int], object], runs: int) -> list[float]:
    """Milliseconds of each run, between CUDA events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for number in range(runs):
        run(number)
        events[number + 1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
