"""PyTorch on a CPU, FP32: for what cannot be exported, and to check against."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.plan import PackedProfile
from worker.runtime.interface import Done, Gathered, Inference, unseen
from worker.runtime.layout import Packed
from worker.runtime.microbatch import cut_end_to_end
from worker.runtime.packed_model import INPUTS, PackedModel, read_model

_TOKENS = 4096
"""Most tokens of a micro-batch; a longer row is computed alone."""


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

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        gathered = Gathered(self.spec, batch.lengths, done)
        microbatches = cut_end_to_end(batch.lengths, _TOKENS)
        for micro in microbatches:
            # No graph was compiled for some shapes: each micro-batch has its own, without padding.
            layout = Packed(self.spec, [PackedProfile(len(micro.rows), micro.tokens)], INPUTS)
            buffers = {name: np.empty(size, np.int32) for name, size in layout.sizes_of(0).items()}
            layout.fill(batch, micro, buffers)
            inputs = {name: torch.from_numpy(values) for name, values in buffers.items()}
            with torch.inference_mode():
                vectors = self._model(inputs, micro.length, batch.prompt_tokens).numpy()
            layout.gather(micro, vectors[: layout.vectors(micro)], batch.lengths, gathered)
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))
