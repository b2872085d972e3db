"""The engine directory: what ``engine_build`` leaves and the other three read.

engines/<name>/
    engine.json         this module's EngineSpec
    tokenizer/          the tokenizer as transformers saves it; tokenizer.json is the fast one
    model.onnx          FP32, for ONNX Runtime
    model.fp16.onnx     weights and activations in FP16, for TensorRT
    model.packed.onnx   likewise, for rows that lie end to end
    model.safetensors   weights in FP32 and configurations, for PyTorch: see worker.runtime.packed_model
    modules/            the model as sentence-transformers saves it, where nothing of the above can compute it
    plans/              TensorRT plans, each for one TensorRT version and one kind of GPU, and their timing caches
    compiled/           what PyTorch compiled, each for one version of it and one kind of GPU

Not every engine has all of them: see ``Tier``.
"""

import hashlib
import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from contract.errors import UserError
from contract.files import sha256_of, sha256_of_folder, write_atomically
from contract.graph import Pooling
from contract.plan import PlanSpec
from contract.settings import engines_in_cache, settings
from contract.tuned import CompiledSpec, Measurement
from contract.unusable import GrowingRecord
from contract.vectors import Layout
from contract.words import count

Tier = Literal["onnx", "torch", "modules"]
"""How an engine is computed. Each is there only if it gives the vectors of ``encode()``: ``onnx`` where the model can
be exported, and of the others the first that computes it.

onnx       exported to ONNX: ONNX Runtime, TensorRT
torch      transformers' own code in PyTorch, on rows that lie end to end
modules    the model's sentence-transformers modules as they are, in PyTorch, on rows of like length
"""

Choice = Literal["pooling", "normalize"]
"""What a user can choose against the model's own."""

OpenedBy = Literal["SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"]
"""The class of sentence-transformers that opens a model, and whose ``encode()`` gives its vectors."""

DECISIVE = (
    "weights_sha256",
    "tokenizer_sha256",
    "pooling",
    "normalize",
    "truncate_dim",
    "unit_norm",
    "max_length",
)
"""The attributes of an ``EngineSpec`` that decide an embedding's value."""


class EngineSpec(GrowingRecord, BaseModel):
    """``engine.json``: what the engine computes and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    LISTS: ClassVar = {"plans": PlanSpec, "compiled": CompiledSpec, "measured": Measurement}

    name: str
    """The engine directory's name."""
    model: str
    """Hub id or absolute local folder of the model it was made from."""
    revision: str | None
    """The Hub commit; None for a local folder."""
    architecture: str
    """The model type as transformers names it, such as ``bert``."""
    opened_by: OpenedBy = "SentenceTransformer"
    weights_sha256: str
    """Hash over the weights and modules of the model as it was opened, see ``contract.weights.model_sha256``."""
    tokenizer_sha256: str
    """SHA-256 of ``tokenizer/tokenizer.json``."""
    vocabulary_sha256: str
    """Hash over the tokens of the model's own tokenizer and their ids, see ``contract.weights.vocabulary_sha256``."""
    onnx_sha256: str | None
    """SHA-256 of ``model.onnx``; None where there is none, as of the next four."""
    onnx_fp16_sha256: str | None
    """SHA-256 of ``model.fp16.onnx``."""
    onnx_packed_sha256: str | None
    """SHA-256 of ``model.packed.onnx``."""
    torch_sha256: str | None
    """SHA-256 of ``model.safetensors``."""
    torch_precision: Literal["fp16", "bf16"] | None
    """What PyTorch computes the model's encoder in on a GPU: BF16 where values of this model are too large for FP16.
    None where neither gives the vectors of ``encode()`` within its tolerance: then packed rows are not computed on a
    GPU, and the model's own modules compute in FP32, as those that have no encoder do."""
    unused_precisions: dict[Literal["fp16", "bf16"], str] = {}
    """Why ``torch_precision`` is none of these, to follow upon their names."""
    modules_sha256: str | None = None
    """Hash over the files in ``modules/``: ``contract.files.sha256_of_folder``."""
    unused: dict[Tier, str] = {}
    """Tiers that the engine was to have and has not: why."""
    pooling: Pooling
    normalize: bool
    """Whether vectors are scaled to Euclidean norm 1 where they are computed, and again where a job cuts them."""
    chosen: tuple[Choice, ...] = ()
    """Of ``pooling`` and ``normalize`` what the user chose against the model's own. Of the model's modules the others
    are its own."""
    truncate_dim: int | None = None
    """Only so many of a vector's first elements are kept, as the model asks; they are not scaled again, unless the user
    chose ``normalize``. None: all."""
    hidden: int
    """Width of a vector as it comes out: after all of the model's modules and ``truncate_dim``."""
    encoder_width: int
    """Width of a token's hidden state."""
    layers: int
    linear_weights: int
    """Elements of all layers' weight matrices: each costs a multiplication and an addition a token."""
    max_length: int
    """Most tokens of a row, special tokens included; longer rows are truncated."""
    model_length: int
    """The tokens after which sentence-transformers truncates this model's texts, special tokens included; the engine's
    ``max_length`` may differ."""
    pad_id: int
    """Token id that fills a row up to ``max_length``."""
    position_pad_id: int | None
    """None for a model whose positions are 0, 1, 2, … Otherwise, as in RoBERTa's family, tokens of this id have it for
    their position, and the others count on from it: for 1, the ids 0 5 1 7 have the positions 2 3 1 4."""
    prefix: str
    """Text put before every row unless the producer is given another: the model's default prompt."""
    prompts: dict[str, str] = {}
    """The model's prompts that are not empty: name → text."""
    include_prompt: bool = True
    """Whether a prompt's tokens are pooled with the text's."""
    without_vector: tuple[int, ...] = ()
    """Where a row has a vector for each token: ids of the tokens that have none, such as a ColBERT's punctuation."""
    created: str
    """UTC, ISO 8601."""
    # What follows is added to later.
    plans: tuple[PlanSpec, ...] = ()
    """One for each TensorRT version and compute capability."""
    compiled: tuple[CompiledSpec, ...] = ()
    """One for each version of PyTorch and compute capability."""
    measured: tuple[Measurement, ...] = ()
    """One for each kind of GPU and runtime."""

    @property
    def unusable(self) -> list[str]:
        """A line for each entry of ``engine.json`` that this version cannot use: why, and how to replace it."""
        return [
            f"{self.folder / 'engine.json'} has an entry of {one.field} that this version cannot use ({one.reason}); "
            + {"plans": self.rebuild_plan, "compiled": self._compile, "measured": self._tune}[one.field]
            for one in self._unusable
        ]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides an embedding's value: two engines with one fingerprint agree."""
        decisive = [getattr(self, name) for name in DECISIVE]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """What can compute the engine, the fastest first."""
        found: dict[Tier, str | None] = {
            "onnx": self.onnx_sha256,
            "torch": self.torch_sha256,
            "modules": self.modules_sha256,
        }
        return tuple(tier for tier, sha256 in found.items() if sha256)

    def lacks(self, tier: Tier) -> str:
        """Why the engine has nothing for a tier, in words; empty if it has."""
        if tier in self.tiers:
            return ""
        what = {"onnx": "no ONNX file", "torch": "no model.safetensors", "modules": "no folder modules"}[tier]
        why = self.unused.get(tier, f"it has {' and '.join(self.tiers)}")
        return f"engine {self.name} has {what}: {why}"

    @property
    def precision_on_gpu(self) -> str:
        """What PyTorch computes the engine in on a GPU, and why in nothing faster, in words."""
        why_not = "; ".join(f"{name.upper()} {why}" for name, why in self.unused_precisions.items())
        return f"{(self.torch_precision or 'fp32').upper()}{f' ({why_not})' if why_not else ''}"

    @property
    def layout(self) -> Layout:
        """What a row has."""
        return "tokens" if self.pooling == "tokens" else "sparse" if self.pooling == "sparse" else "pooled"

    @property
    def per_token(self) -> bool:
        """Whether a row has a vector for each of its tokens instead of one."""
        return self.layout == "tokens"

    @property
    def unit_norm(self) -> bool:
        """Whether every vector has Euclidean norm 1 as the engine gives it. Not where ``truncate_dim`` cuts it after it
        was normalized."""
        cut_last = self.truncate_dim is not None and "normalize" not in self.chosen
        return self.normalize and not cut_last

    @property
    def longest_row(self) -> str:
        """The most tokens of a row, in words; also sentence-transformers' own where that differs."""
        theirs = f" (sentence-transformers cuts this model's texts at {self.model_length:,})"
        cuts = self.architecture != "StaticEmbedding" and self.model_length != self.max_length
        return count(self.max_length, "token") + (theirs if cuts else "")

    @property
    def folder(self) -> Path:
        return engine_folder(self.name)

    def flops(self, length: int) -> int:
        """Floating-point operations for one row of ``length`` tokens: the weight matrices, and Q Kᵀ and its product
        with V, each ``length × length × width`` multiplications and additions a layer."""
        return 2 * self.linear_weights * length + 4 * self.layers * self.encoder_width * length**2

    def check_file(self, file: str, sha256: str | None) -> Path:
        """The path of one of the engine's files, once its hash has been compared with the recorded one.

        Raises:
            UserError: the engine has no such file, or it is missing or was changed.
        """
        if sha256 is None:
            reasons = "; ".join(f"{tier}: {why}" for tier, why in self.unused.items())
            raise UserError(
                f"engine {self.name} has no {file}",
                f"it is computed by {' and '.join(self.tiers)}{f' ({reasons})' if reasons else ''}",
                "unset EMBEDMILL_RUNTIME, or choose another engine",
            )
        return self._checked(file, sha256, self._rebuild)

    def check_modules(self) -> Path:
        """The folder ``modules/``, once its hash has been compared with the recorded one.

        Raises:
            UserError: the engine has no such folder, or a file in it is missing or was changed.
        """
        if self.modules_sha256 is None:
            return self.check_file("folder modules", None)
        path = self.folder / "modules"
        found = sha256_of_folder(path) if path.is_dir() else "no folder"
        if found != self.modules_sha256:
            raise UserError(f"{path} has SHA-256 {found}", f"engine.json records {self.modules_sha256}", self._rebuild)
        return path

    @property
    def _rebuild(self) -> str:
        return f"rebuild the engine: rm -r {self.folder} && python -m engine_build --model {self.model}"

    def _checked(self, file: str, sha256: str, hint: str) -> Path:
        path = self.folder / file
        found = sha256_of(path) if path.is_file() else "no file"
        if found != sha256:
            raise UserError(f"{path} has SHA-256 {found}", f"engine.json records {sha256}", hint)
        return path

    def plan_for(self, tensorrt: str, sm: int) -> PlanSpec:
        """The plan that this TensorRT version and compute capability can run.

        Raises:
            UserError: there is none.
        """
        for plan in self.plans:
            if (plan.tensorrt, plan.sm) == (tensorrt, sm):
                onnx = self.onnx_packed_sha256 if plan.packed else self.onnx_fp16_sha256
                if plan.onnx_sha256 != onnx:
                    raise UserError(
                        f"{self.folder / plan.file} was built from an ONNX file with SHA-256 {plan.onnx_sha256}",
                        f"the engine's has {onnx}",
                        self.rebuild_plan,
                    )
                return plan
        there = ", ".join(f"TensorRT {plan.tensorrt} on SM {plan.sm}" for plan in self.plans)
        raise UserError(
            f"engine {self.name} has {f'plans for {there}' if there else 'no plan'}{self.unusable_plans}",
            f"this machine has TensorRT {tensorrt} on SM {sm}",
            self.rebuild_plan,
        )

    def check_plan(self, plan: PlanSpec) -> Path:
        """The path of a plan, once its hash has been compared with the recorded one.

        Raises:
            UserError: the file is missing or was changed.
        """
        return self._checked(plan.file, plan.sha256, self.rebuild_plan)

    @property
    def unusable_plans(self) -> str:
        """Words on those that this version cannot use, to follow upon those that it can; empty if there is none."""
        reasons = [one.reason for one in self._unusable if one.field == "plans"]
        return f" besides {len(reasons)} that this version cannot use ({reasons[0]})" if reasons else ""

    @property
    def rebuild_plan(self) -> str:
        """The command that makes this machine's plan."""
        return f"build it on this machine: python -m engine_build plan --engine {self.name}"

    @property
    def _compile(self) -> str:
        return f"compile again on this machine: python -m engine_build compile --engine {self.name}"

    @property
    def _tune(self) -> str:
        return f"measure again on this machine: python -m engine_build tune --engine {self.name}"

    def compiled_for(self, torch: str, sm: int) -> CompiledSpec | None:
        """What this version of PyTorch compiled for this compute capability."""
        return next((one for one in self.compiled if (one.torch, one.sm) == (torch, sm)), None)

    def check_compiled(self, compiled: CompiledSpec) -> Path:
        """The path of compiled graphs, once their hash has been compared with the recorded one.

        Raises:
            UserError: the file is missing or was changed.
        """
        return self._checked(compiled.file, compiled.sha256, self._compile)

    def write(self, folder: Path | None = None) -> None:
        """Write ``engine.json``.

        Args:
            folder: None for the engine's own.
        """
        write_atomically((folder or self.folder) / "engine.json", f"{self.model_dump_json(indent=2)}\n".encode())


def engine_folder(name: str) -> Path:
    """Where an engine of this name lives: in the folder of ``EMBEDMILL_ENGINES``, or else in the user's cache, where
    ``embedmill embed`` keeps those that it builds.

    Raises:
        UserError: the name would lead out of the engines folder.
    """
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise UserError(f"{name!r} is no engine name", "expected a plain folder name, such as bert-base-cased")
    folder, kept = settings().engines / name, engines_in_cache() / name
    return kept if not folder.exists() and (kept / "engine.json").is_file() else folder
