"""A model's sentence-transformers modules as they are, in PyTorch: for what no faster runtime can compute.

Rows are sorted by length and cut into batches by a token budget, so that next to no padding is computed. Everything
after that is the model's own: its encoder, its pooling, whatever follows.

On a CPU all of it is in FP32. On a GPU the encoder is in ``EngineSpec.torch_precision``, and what follows it in FP32;
its layers are compiled for rows of any number and length; and two micro-batches are in flight, so that the GPU computes
while vectors are read and the next rows are padded.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import select_max_active_dims
from torch import Tensor, nn

from contract.batch import Batch
from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec, OpenedBy
from contract.errors import reason
from worker.runtime.compiled import restored
from worker.runtime.cuda import bus_id, cuda_device, dead_after_errors, enough_memory
from worker.runtime.gpu_lock import GpuLock, gpu_lock
from worker.runtime.interface import Done, Gathered, GatheredSparse, Inference, unseen
from worker.runtime.layers import compile_layers, leave_uncompiled
from worker.runtime.microbatch import ALIGNMENT, MicroBatch, cut_by_budget
from worker.runtime.packed_model import HALF
from worker.runtime.pipeline import run_pipelined
from worker.runtime.trials import seconds, trials, usual

log = logging.getLogger("embedmill.worker")

_CPU_BUDGETS, _GPU_BUDGETS = (4096, 1 << 22), (32_768, 1 << 25)
"""Most tokens of a micro-batch, padding included, and most scores of its attention for each head; a longer row is
computed alone."""

_CPU_LOGITS, _GPU_LOGITS = 2**25, 2**29
"""Most elements of a sparse model's logits, of which each token has one for each entry of the vocabulary."""

_SLOTS = 2
"""Micro-batches in flight on a GPU at most."""


@contextmanager
def modules_engine(
    spec: EngineSpec, threads: int, gpu: int | None = None, *, anew: bool = False
) -> Iterator["ModulesEngine"]:
    """Load the modules while the ``with`` block lasts.

    Args:
        spec: the engine directory.
        threads: cores to compute on, of the whole process, on a CPU.
        gpu: the number of the GPU to compute on; None for the CPU.
        anew: compile the layers on a GPU, whatever is kept.

    Raises:
        UserError: the engine has no modules, or a file of theirs is missing or was changed; there is no such GPU, or it
            has too little free memory.
        EngineDead: the GPU failed.
    """
    path = spec.check_modules()
    transformers.utils.logging.set_verbosity_error()  # the build has judged its warnings
    transformers.utils.logging.disable_progress_bar()
    if gpu is None:
        torch.set_num_threads(threads)
        yield ModulesEngine(spec, open_modules(path, spec.opened_by))
        return
    device, precision = cuda_device(gpu), spec.torch_precision or "fp32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # 10 bits, which is no FP32
    model = open_modules(path, spec.opened_by, precision)
    with torch.cuda.device(device), gpu_lock(bus_id(device)) as lock:
        with enough_memory(spec, device):
            engine = ModulesEngine(spec, model.to(device), precision, lock)
            if not isinstance(model[0], StaticEmbedding):  # which has no layers
                _compile(engine, device, anew)
        try:
            yield engine
        finally:
            model.to("cpu")
            torch.cuda.empty_cache()


def _compile(engine: "ModulesEngine", device: torch.device, anew: bool) -> None:
    from worker.runtime.merging import merging_backend  # here: the compiler takes a second to import

    if not anew:
        restored(engine.spec, device)
    engine.compile(merging_backend)


def open_modules(path: Path, opened_by: OpenedBy, precision: str = "fp32") -> Any:
    """A model of sentence-transformers in a folder, on the CPU.

    Args:
        path: the folder.
        opened_by: the class that opens it.
        precision: of its first module's weights, which is the encoder. What follows it is in FP32.
    """
    model = getattr(sentence_transformers, opened_by)(
        str(path),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"dtype": torch.float32},
    )
    model.eval().float()  # also modules that know no dtype
    if precision != "fp32":
        _reduce(model[0], HALF[precision])
    return model


def _reduce(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Have an encoder compute in ``dtype`` and give FP32. What it has beside its weights, such as the frequencies of
    rotary positions, keeps all of its digits."""

    def give_fp32(module: nn.Module, inputs: object, made: dict[str, Any]) -> dict[str, Any]:
        return {name: _fp32(values) for name, values in made.items()}

    for weights in encoder.parameters():
        weights.data = weights.data.to(dtype)
    encoder.register_forward_hook(give_fp32)


def _fp32(values: Any) -> Any:
    return values.float() if isinstance(values, Tensor) and values.is_floating_point() else values


class _Slot:
    """A micro-batch in flight."""

    def __init__(self) -> None:
        self.done = torch.cuda.Event()
        self.vectors = torch.empty(0)
        """On the host once ``done`` has happened."""


class ModulesEngine:
    """A model's modules.

    Args:
        spec: what they compute.
        model: of the class ``spec.opened_by``, on its device.
        precision: of its encoder.
        lock: the GPU's, where it is on one.
    """

    runtime = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"

    def __init__(self, spec: EngineSpec, model: Any, precision: str = "fp32", lock: GpuLock | None = None) -> None:
        self.spec, self.precision, self._lock = spec, precision, lock
        self._model: Any = model.eval()
        self._slots = [_Slot() for _ in range(_SLOTS)] if lock else []
        names = getattr(self._model.tokenizer, "model_input_names", ())
        self._segments = "token_type_ids" in names
        self._options: dict[str, Any] = {"task": "document"} if spec.opened_by == "MultiVectorEncoder" else {}
        if spec.layout == "sparse" and model.max_active_dims is not None:
            self._options["max_active_dims"] = model.max_active_dims

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """See ``interface.Engine.infer``."""
        sparse = self.spec.layout == "sparse"
        gathered = GatheredSparse(done) if sparse else Gathered(self.spec, batch.lengths, done)
        microbatches = cut_by_budget(batch.lengths, *self._budgets, self._width)

        def start(slot: _Slot, micro: MicroBatch) -> None:
            slot.vectors = self._vectors(batch, micro).to("cpu", non_blocking=True)  # into pinned memory
            slot.done.record()

        def collect(slot: _Slot, micro: MicroBatch) -> None:
            gathered.put(micro.rows, slot.vectors.numpy())

        with torch.inference_mode():
            if self._lock:
                with dead_after_errors(self._model.device):
                    run_pipelined(microbatches, self._slots, self._lock, start, collect)
            else:
                for micro in microbatches:
                    gathered.put(micro.rows, self._vectors(batch, micro).numpy())
        return Inference(gathered.of(batch), sum(micro.tokens for micro in microbatches))

    def compile(self, backend: Callable[..., Any], measure: Callable[[Callable[[], object]], float] = seconds) -> None:
        """Have ``torch.compile`` compile the encoder's layers. They stay as they are, and the log says so, where it
        cannot, or what it makes of them gives other vectors or takes longer.

        Args:
            backend: of ``torch.compile``.
            measure: gives the seconds that a call takes.

        Raises:
            EngineDead: the GPU failed.
        """
        began, encoder = time.monotonic(), self._model[0]
        vocabulary = encoder.auto_model.get_input_embeddings().num_embeddings
        some, full = trials(self.spec, vocabulary), usual(self.spec, vocabulary, 2 * self._budgets[0])
        expected, uncompiled = self.vectors_of(some), measure(lambda: self.infer(full))
        compile_layers(encoder, backend, dynamic=True)
        try:
            comparison = compare(self.vectors_of(some), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a compiler, on code that nobody has shown to it
            why_not = reason(error)
        else:
            why_not = "" if comparison.within(TOLERANCES[self.precision]) else f"other vectors: {comparison}"
        if why_not:
            leave_uncompiled(encoder)
            log.warning("engine %s is slower than it could be: no compiled layers (%s)", self.spec.name, why_not)
            return
        times = measure(lambda: self.infer(full)) / uncompiled
        if times > 1:  # PyTorch's compiler has no good kernels for some layers
            leave_uncompiled(encoder)
            log.info(
                "engine %s: its layers stay as they are: compiled they take %.2f times as long", self.spec.name, times
            )
        else:
            log.info(
                "engine %s: its layers are compiled in %.1f s, and take %.2f times as long as before",
                *(self.spec.name, time.monotonic() - began, times),
            )

    def vectors_of(self, batches: list[Batch]) -> npt.NDArray[np.float32]:
        """``[vectors, hidden]``, of one batch after the other."""
        return np.concatenate([part for batch in batches for part in self.infer(batch).rows.split(self.spec.hidden)])

    def _width(self, length: int) -> int:
        """Tokens that rows of so many are padded to: on a GPU a few more, but none that the model has no position
        for."""
        return min(-(-length // ALIGNMENT) * ALIGNMENT, self.spec.max_length) if self._lock else length

    @property
    def _budgets(self) -> tuple[int, int]:
        """Of a micro-batch: see ``_CPU_BUDGETS``."""
        tokens, scores = _GPU_BUDGETS if self._lock else _CPU_BUDGETS
        if self.spec.layout == "sparse":
            tokens = min(tokens, max(1, (_GPU_LOGITS if self._lock else _CPU_LOGITS) // self.spec.hidden))
        return tokens, scores

    def _vectors(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """float32 ``[rows, hidden]``, or ``[rows, length, hidden]`` at token level, on the model's device."""
        ids, mask, _ = batch.tokens.take(micro.rows).padded(micro.length, self.spec.pad_id).values()
        features = {
            name: self._sent(values) if isinstance(values, Tensor) else values
            for name, values in self._features(ids, mask, batch.prompt_tokens).items()
        }
        made = self._model(features, **self._options)
        vectors: Tensor
        if self.spec.per_token:
            vectors = made["token_embeddings"].float()
            return vectors
        vectors = made["sentence_embedding"].float()[:, : self.spec.hidden]
        if "max_active_dims" in self._options:
            vectors = select_max_active_dims(vectors, self._options["max_active_dims"])
        if self.spec.normalize and "normalize" in self.spec.chosen:
            vectors = nn.functional.normalize(vectors, dim=-1)
        return vectors

    def _sent(self, values: Tensor) -> Tensor:
        """On the model's device, once that comes to it: nothing waits."""
        return values.pin_memory().to(self._model.device, non_blocking=True) if self._lock else values

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
