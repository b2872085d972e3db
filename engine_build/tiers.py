"""Which tiers an engine gets: each is made, and compared with ``encode()`` before it is taken. See ``contract.engine``.

A model that can be exported gets ``onnx``. Besides, every model gets ``torch``, or ``modules`` where that cannot
compute it.
"""

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contract.compare import TOLERANCES, Comparison
from contract.engine import EngineSpec, Tier
from contract.errors import UserError, reason
from contract.files import as_umask_says, sha256_of, sha256_of_folder
from engine_build.compare_export import Expected, check_export
from engine_build.export import onnx_from_torch
from engine_build.packed import packable, packed_onnx_from_torch
from engine_build.prepare import Prepared
from engine_build.quiet import quietly
from worker.runtime.interface import Engine
from worker.runtime.modules import ModulesEngine, open_modules
from worker.runtime.onnx import Fp16OnnxEngine, OnnxEngine, session_of
from worker.runtime.packed_model import HALF, PackedModel, read_model, write_model
from worker.runtime.torch_cpu import TorchCpuEngine

EXPORTED = (
    *("albert", "bert", "camembert", "distilbert", "electra", "ernie", "gte", "jina_embeddings_v3", "mpnet"),
    *("nomic_bert", "roberta", "xlm-roberta"),
)
"""transformers' model types that are exported: one full bidirectional attention, the same in each layer."""

_WHY_NOT_EXPORTED = {
    "deberta": "its attention depends on relative positions inside the softmax",
    "deberta-v2": "its attention depends on relative positions inside the softmax",
    "gemma3_text": "its attention has windows",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "it is a decoder"),
    "modernbert": "its attention alternates between local windows and the whole row",
    "t5": "its attention has a relative position bias",
    "xlnet": "it has no absolute positions",
}

WINDOWED = ("gemma3_text", "mistral", "modernbert")
"""transformers' model types whose attention within a window is tested on packed rows. A window of another type may be
longer than any text that a build compares."""

_POOLED = ("mean", "cls", "tokens")
"""What an exported graph pools by."""


@dataclass(frozen=True, eq=False)
class Made:
    """What an engine is computed with."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Of ``EngineSpec``: its files' hashes, ``torch_precision`` and ``unused_precisions``."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """What computes, such as ``ONNX FP32`` → how far it is from ``encode()``."""
    unused: dict[Tier, str] = field(default_factory=dict)
    """Why other tiers are not there."""


NO_FILES: dict[str, str | None] = {
    **dict.fromkeys(("onnx_sha256", "onnx_fp16_sha256", "onnx_packed_sha256", "modules_sha256")),
    **dict.fromkeys(("torch_sha256", "torch_precision")),
}
"""``Made.fields`` of an engine without any tier."""


def make(
    model: Prepared, described: Mapping[str, object], expected: Expected, folder: Path, step: Callable[[str], None]
) -> Made:
    """Write the files of the tiers that compute a model as ``encode()`` does.

    Args:
        model: the model.
        described: the engine's ``EngineSpec`` without those of ``NO_FILES``.
        expected: what ``encode()`` gives.
        folder: the engine's, which is being built.
        step: takes the name of the step that begins.

    Raises:
        UserError: no tier gives the vectors of ``encode()``.
    """
    spec = EngineSpec.model_validate({**described, **NO_FILES})
    made = Made(dict(NO_FILES))
    for tier, why_not, attempt in _TIERS:
        if tier == "modules" and made.fields["torch_sha256"]:
            break
        why = _FOR_CPUS if model.onnx_alone and made.fields["onnx_sha256"] else why_not(model)
        if not why:
            try:
                fields, found = attempt(model, spec, expected, folder, step)
            except MemoryError:
                raise
            except Exception as error:  # a library's, of a model that it does not take: the next tier may
                if isinstance(error, OSError) and error.errno:  # this machine's fault: a full disk, no right to write
                    raise
                why = error.message if isinstance(error, UserError) else reason(error)
            else:
                made.fields.update(fields)
                made.comparisons.update(found)
        if why:
            made.unused[tier] = why
    if not made.comparisons:
        raise UserError(
            f"nothing here gives the vectors of {model.source.model}'s encode() "
            f"({'; '.join(f'{tier}: {why}' for tier, why in made.unused.items())})",
            "expected that its own modules do, on rows that are padded on the right",
            "choose another model",
        )
    _remove_unused(folder, made)
    return made


def _remove_unused(folder: Path, made: Made) -> None:
    """What an attempt left that failed."""
    files = {
        "onnx_sha256": ("model.onnx", "model.fp16.onnx", "model.packed.onnx"),
        "torch_sha256": ("model.safetensors",),
    }
    for field_name, names in files.items():
        if made.fields[field_name] is None:
            for name in names:
                (folder / name).unlink(missing_ok=True)
    if made.fields["modules_sha256"] is None:
        shutil.rmtree(folder / "modules", ignore_errors=True)


_FOR_CPUS = "the engine was built for CPUs alone, which compute its ONNX file"

_Attempt = tuple[dict[str, Any], dict[str, Comparison]]


def why_not_exported(model: Prepared) -> str:
    """Why a model is not exported to ONNX; empty if it can be tried."""
    parts = model.parts
    if parts.encoder is None or parts.unknown:
        return f"it {parts.unknown or 'is no transformer'}"
    config = parts.encoder.config
    if config.model_type not in EXPORTED:
        return _WHY_NOT_EXPORTED.get(config.model_type, f"no export of {config.model_type} is tested")
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False) or not absolute:
        return "it is a decoder or has relative positions"
    if parts.pooling not in _POOLED:
        return f"it pools by {parts.pooling}"
    if model.prompts and not parts.include_prompt:
        return "it leaves its prompts out of the pooling (include_prompt is false)"
    return ""


def why_not_packed(model: Prepared) -> str:
    """Why a model's rows cannot lie end to end; empty if it can be tried."""
    parts = model.parts
    if parts.encoder is None or parts.unknown:
        return f"it {parts.unknown or 'is no transformer'}"
    # transformers leaves the attention of a model that has one of its own as it is, and says so in its log alone.
    if not getattr(parts.encoder, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    config = parts.encoder.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {', '.join(sorted(kinds - {'full_attention', 'sliding_attention'}))}"
    if "sliding_attention" in kinds and config.model_type not in WINDOWED:
        return f"the windows of {config.model_type}'s attention are not tested here"
    return ""


def _always(model: Prepared) -> str:
    return ""


def _onnx(model: Prepared, spec: EngineSpec, expected: Expected, folder: Path, step: Callable[[str], None]) -> _Attempt:
    parts = model.parts
    assert parts.encoder is not None and parts.head is not None  # noqa: PT018  # see ``why_not_exported``
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as beside:

        def compared(name: str, kind: type[OnnxEngine], file: str) -> dict[str, Comparison]:
            return check_export({name: kind(spec, session_of(folder / file), pool)}, expected)

        step("exporting to ONNX")
        onnx_from_torch(parts.encoder, parts.pooling, parts.head, folder / "model.onnx")
        fields = {"onnx_sha256": sha256_of(folder / "model.onnx")}
        fp32 = beside.submit(compared, "ONNX FP32", OnnxEngine, "model.onnx")  # exporting uses one core
        if model.onnx_alone:
            step("comparing the export with sentence-transformers")
            return fields, fp32.result()
        step("exporting to ONNX in FP16")
        in_fp16 = copy.deepcopy(parts.encoder).half()
        onnx_from_torch(in_fp16, parts.pooling, parts.head, folder / "model.fp16.onnx")
        packed = packable(parts.encoder, model.max_length)
        if packed:
            packed_onnx_from_torch(in_fp16, parts.pooling, parts.head, folder / "model.packed.onnx")
        step("comparing the exports with sentence-transformers")
        comparisons = fp32.result() | compared("ONNX FP16", Fp16OnnxEngine, "model.fp16.onnx")
    return fields | {
        "onnx_fp16_sha256": sha256_of(folder / "model.fp16.onnx"),
        "onnx_packed_sha256": sha256_of(folder / "model.packed.onnx") if packed else None,
    }, comparisons


def _torch(
    model: Prepared, spec: EngineSpec, expected: Expected, folder: Path, step: Callable[[str], None]
) -> _Attempt:
    parts, file = model.parts, folder / "model.safetensors"
    assert parts.encoder is not None and parts.head is not None  # noqa: PT018  # see ``why_not_packed``
    step("comparing PyTorch on packed rows with sentence-transformers")
    write_model(parts.encoder, parts.head, file)
    encoder, head = read_model(file, torch.float32)
    packed = PackedModel(encoder, spec.pooling, head)
    comparisons = check_export({"PyTorch FP32": TorchCpuEngine(spec, packed)}, expected)

    def in_half(precision: str) -> Engine:
        encoder, head = read_model(file, HALF[precision])
        return TorchCpuEngine(spec, PackedModel(encoder, spec.pooling, head), precision)

    chosen, half = half_precision("PyTorch", in_half, expected, step)
    return {"torch_sha256": sha256_of(file), **chosen}, comparisons | half


def half_precision(
    name: str, in_half: Callable[[str], Engine], expected: Expected, step: Callable[[str], None]
) -> _Attempt:
    """What a GPU computes the model in: FP16, or BF16 if that is too far from ``encode()``; None if both are.

    Args:
        name: of what computes, for people.
        in_half: opens the engine in a precision.
        expected: what ``encode()`` gives.
        step: takes the name of the step that begins.
    """
    found: dict[str, Comparison] = {}
    unused: dict[str, str] = {}
    for precision in HALF:
        what = f"{name} {precision.upper()}"
        step(f"comparing {what} with sentence-transformers")
        try:
            found |= check_export({what: in_half(precision)}, expected)
        except RuntimeError as error:  # PyTorch's, of a module that takes FP32 alone
            unused[precision] = f"cannot be computed ({reason(error)})"
            continue
        if found[what].within(TOLERANCES[precision]):
            return {"torch_precision": precision, "unused_precisions": unused}, found
        unused[precision] = f"is too far from encode(): {found[what]}"
    return {"torch_precision": None, "unused_precisions": unused}, found


def _modules(
    model: Prepared, spec: EngineSpec, expected: Expected, folder: Path, step: Callable[[str], None]
) -> _Attempt:
    step("comparing the model's modules with sentence-transformers")
    model.parts.reference.save_pretrained(str(folder / "modules"), create_model_card=False)
    as_umask_says(*(path for path in (folder / "modules").rglob("*") if path.is_file()))

    def opened(precision: str) -> Engine:
        with quietly():
            again = open_modules(folder / "modules", spec.opened_by, precision)
        return ModulesEngine(spec, again, precision)

    comparisons = check_export({"modules FP32": opened("fp32")}, expected)
    hashed = {"modules_sha256": sha256_of_folder(folder / "modules")}
    if model.parts.encoder is None:  # a static model has nothing that would be faster
        return hashed, comparisons
    chosen, half = half_precision("modules", opened, expected, step)
    return {**hashed, **chosen}, comparisons | half


_Make = Callable[[Prepared, EngineSpec, Expected, Path, Callable[[str], None]], _Attempt]
_TIERS: tuple[tuple[Tier, Callable[[Prepared], str], _Make], ...] = (
    ("onnx", why_not_exported, _onnx),
    ("torch", why_not_packed, _torch),
    ("modules", _always, _modules),
)


def fp16_warning(made: Made) -> str:
    """What to say of an export whose FP16 is too far from ``encode()``; empty if it is near enough."""
    found = made.comparisons.get("ONNX FP16")
    if found is None or found.within(TOLERANCES["fp16"]):
        return ""
    return f"In FP16 this model is too far from encode(): {found}. Don't build a plan of it."


def tiers_line(made: Made) -> str:
    """What computes the engine and why nothing faster does, on one line; empty where all is used."""
    why = {tier: text.split("; ")[0] for tier, text in made.unused.items()}
    if not why or _FOR_CPUS in why.values():
        return ""
    if "torch" not in why:
        return f"PyTorch computes this engine, on packed rows (runtime torch). Not exported to ONNX: {why['onnx']}."
    own = "This model's own modules compute this engine, which is slower (runtime modules)"
    if "onnx" in why:
        return f"{own}. Not exported to ONNX: {why['onnx']}. Not on packed rows: {why['torch']}."
    if "modules" in why:
        return f"Only an ONNX file computes this engine. Not on packed rows: {why['torch']}."
    return f"{own} on a GPU without TensorRT. Not on packed rows: {why['torch']}."
