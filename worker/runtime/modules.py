"""A model's sentence-transformers modules as they are, in PyTorch, FP32: for what no faster runtime can compute.

Rows are sorted by length and cut into batches by a token budget, so that next to no padding is computed. Everything
after that is the model's own: its encoder, its pooling, whatever follows.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import select_max_active_dims
from torch import Tensor

from contract.batch import Batch
from contract.engine import EngineSpec, OpenedBy
from worker.runtime.cuda import bus_id, cuda_device, dead_after_errors, enough_memory
from worker.runtime.gpu_lock import GpuLock, gpu_lock
from worker.runtime.interface import Done, Gathered, GatheredSparse, Inference, unseen
from worker.runtime.microbatch import MicroBatch, cut_by_budget

_CPU_BUDGETS, _GPU_BUDGETS = (4096, 1 << 22), (32_768, 1 << 25)
"""Most tokens of a micro-batch, padding included, and most scores of its attention for each head; a longer row is
computed alone."""

_CPU_LOGITS, _GPU_LOGITS = 2**25, 2**29
"""Most elements of a sparse model's logits, of which each token has one for each entry of the vocabulary."""


@contextmanager
def modules_engine(spec: EngineSpec, threads: int, gpu: int | None = None) -> Iterator["ModulesEngine"]:
    """Load the modules while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        threads: cores to compute on, of the whole process, on a CPU.
        gpu: the number of the GPU to compute on; None for the CPU.

    Raises:
        UserError: the engine has no modules, or a file of theirs is missing or was changed; there is no such GPU, or it
            has too little free memory.
    """
    path = spec.check_modules()
    transformers.utils.logging.set_verbosity_error()  # the build has judged its warnings
    transformers.utils.logging.disable_progress_bar()
    model = open_modules(path, spec.opened_by)
    if gpu is None:
        torch.set_num_threads(threads)
        yield ModulesEngine(spec, model)
        return
    device = cuda_device(gpu)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # 10 bits, which is no FP32
    with torch.cuda.device(device), gpu_lock(bus_id(device)) as lock:
        with enough_memory(spec, device):
            model.to(device)
        try:
            yield ModulesEngine(spec, model, lock)
        finally:
            model.to("cpu")
            torch.cuda.empty_cache()


def open_modules(path: Path, opened_by: OpenedBy) -> Any:
    """A model of sentence-transformers in a folder, in FP32 on the CPU."""
    return getattr(sentence_transformers, opened_by)(
        str(path),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    )


class ModulesEngine:
    """A model's modules.

    Args:
        spec: what they compute.
        model: of the class ``spec.opened_by``, on its device.
        lock: the GPU's, where it is on one.
    """

    precision = "fp32"
    runtime = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"

    def __init__(self, spec: EngineSpec, model: Any, lock: GpuLock | None = None) -> None:
        self.spec, self._lock = spec, lock
        self._model: Any = model.eval().float()
        names = getattr(self._model.tokenizer, "model_input_names", ())
        self._segments = "token_type_ids" in names
        self._options: dict[str, Any] = {"task": "document"} if spec.opened_by == "MultiVectorEncoder" else {}
        if spec.layout == "sparse" and model.max_active_dims is not None:
            self._options["max_active_dims"] = model.max_active_dims

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        sparse = self.spec.layout == "sparse"
        gathered = GatheredSparse(done) if sparse else Gathered(self.spec, batch.lengths, done)
        microbatches = cut_by_budget(batch.lengths, *self._budgets)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(dead_after_errors(self._model.device) if self._lock else nullcontext())
            stack.enter_context(self._lock.held() if self._lock else nullcontext())
            for micro in microbatches:
                gathered.put(micro.rows, self._vectors(batch, micro))
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))

    @property
    def _budgets(self) -> tuple[int, int]:
        """Of a micro-batch: see ``_CPU_BUDGETS``."""
        tokens, scores = _GPU_BUDGETS if self._lock else _CPU_BUDGETS
        if self.spec.layout == "sparse":
            tokens = min(tokens, max(1, (_GPU_LOGITS if self._lock else _CPU_LOGITS) // self.spec.hidden))
        return tokens, scores

    def _vectors(self, batch: Batch, micro: MicroBatch) -> npt.NDArray[np.float32]:
        """``[rows, hidden]``, or ``[rows, length, hidden]`` at token level."""
        ids, mask, _ = batch.tokens.take(micro.rows).padded(micro.length, self.spec.pad_id).values()
        features = {
            name: values.to(self._model.device) if isinstance(values, Tensor) else values
            for name, values in self._features(ids, mask, batch.prompt_tokens).items()
        }
        made = self._model(features, **self._options)
        if self.spec.per_token:
            return made["token_embeddings"].float().cpu().numpy()
        vectors = made["sentence_embedding"].float()[:, : self.spec.hidden]
        if "max_active_dims" in self._options:
            vectors = select_max_active_dims(vectors, self._options["max_active_dims"])
        if self.spec.normalize and "normalize" in self.spec.chosen:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()

    def _features(self, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32], prompt_tokens: int) -> dict[str, Any]:
        """What the first module takes: as its ``preprocess`` gives it for texts.

        Args:
            ids: ``[rows, length]``.
            mask: likewise.
            prompt_tokens: of each row, left out of the pooling.
        """
        rows, real = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
        if isinstance(self._model[0], StaticEmbedding):
            lengths = real.sum(dim=1)
            return {"input_ids": rows[real.bool()], "offsets": lengths.cumsum(0) - lengths}
        features: dict[str, Any] = {"input_ids": rows, "attention_mask": real, "modality": "text"}
        if self._segments:
            features["token_type_ids"] = torch.zeros_like(rows)
        if prompt_tokens:
            features["prompt_length"] = prompt_tokens
        return features
