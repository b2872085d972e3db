"""PyTorch on a CPU, FP32: for what cannot be exported, and to check against."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.plan import PackedProfile
from worker.runtime.interface import Gathered, Inference
from worker.runtime.layout import Packed
from worker.runtime.packed_model import INPUTS, PackedModel, read_model

_TOKENS = (4096, 1024, 256, 64)
"""Of micro-batches: large ones, and what is left of a batch with little padding."""
_TOKENS_PER_ROW = 4
"""A micro-batch has a row for as many tokens."""


@contextmanager
def torch_cpu_engine(spec: EngineSpec, threads: int) -> Iterator["TorchCpuEngine"]:
    """Load ``model.safetensors`` while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        threads: cores to compute on, of the whole process.

    Raises:
        UserError: the file is missing or was changed.
    """
    torch.set_num_threads(threads)
    path = spec.check_file("model.safetensors", spec.torch_sha256)
    encoder, head = read_model(path, torch.float32)
    yield TorchCpuEngine(spec, PackedModel(encoder, spec.pooling, head))


class TorchCpuEngine:
    """A model on the CPU.

    Args:
        spec: what it computes.
        model: the model.
        precision: of its weights; FP32 but for comparisons.
    """

    runtime = f"torch {torch.__version__}"

    def __init__(self, spec: EngineSpec, model: PackedModel, precision: str = "fp32") -> None:
        self.spec, self._model, self.precision = spec, model, precision
        sizes = (max(_TOKENS[0], spec.max_length), *_TOKENS[1:])
        self._layout = Packed(spec, [PackedProfile(tokens // _TOKENS_PER_ROW, tokens) for tokens in sizes], INPUTS)

    def infer(self, batch: Batch) -> Inference:
        """See ``interface.Engine.infer``."""
        gathered = Gathered(self.spec, batch.lengths)
        elements, _ = self._layout.sizes()
        buffers = {name: np.empty(elements, np.int32) for name in self._layout.inputs}
        microbatches = self._layout.cut(batch.lengths)
        for micro in microbatches:
            shapes = self._layout.fill(batch, micro, buffers)
            inputs = {name: torch.from_numpy(buffers[name][: shapes[name][0]]) for name in buffers}
            with torch.inference_mode():
                vectors = self._model(inputs, self.spec.max_length, batch.prompt_tokens).numpy()
            self._layout.gather(micro, vectors[: self._layout.vectors(micro)], batch.lengths, gathered)
        return Inference(gathered.vectors, sum(micro.tokens for micro in microbatches))
