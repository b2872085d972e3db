"""A model's folder becomes an engine directory, which is there in full or not at all."""

import copy
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from contract.compare import TOLERANCES, Comparison
from contract.engine import DECISIVE, EngineSpec, engine_folder, load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.settings import settings
from engine_build.compare_export import check_export
from engine_build.export import onnx_from_torch
from engine_build.model import linear_weights, position_pad_id
from engine_build.packed import packable, packed_onnx_from_torch
from engine_build.prepare import EngineOptions, Prepared, Say, prepare
from producer.batches import RowTokenizer, tokenizer_from
from worker.runtime.onnx import Fp16OnnxEngine, OnnxEngine, session_of
from worker.runtime.packed_model import PackedModel, read_model, write_model
from worker.runtime.torch_cpu import TorchCpuEngine


def build(
    model: str, options: EngineOptions, *, say: Say, step: Callable[[str], None]
) -> tuple[EngineSpec, dict[str, Comparison]]:
    """Build an engine directory.

    Args:
        model: Hub id or local folder.
        options: what the user asks for.
        say: takes a line that the user should read.
        step: takes the name of the step that begins.

    Returns:
        The engine, and how far ONNX Runtime is from ``encode()`` in each precision; nothing in place of that where the
        engine was there already.

    Raises:
        UserError: the model cannot be taken, its export gives other vectors, or an engine of this name holds something
            else.
    """
    step("reading the model")
    prepared = prepare(model, options, say)
    name = options.name or _name(model)
    final = engine_folder(name)
    try:
        settings().engines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no folder for engines ({error})", hint="set EMBEDMILL_ENGINES to another") from None
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=settings().engines) as scratch:
        staging = Path(scratch) / name
        _save_tokenizer(prepared.tokenizer, staging / "tokenizer")
        described = _described(prepared, name, staging / "tokenizer" / "tokenizer.json")
        if final.exists():
            return _existing(name, described), {}
        hashes = _export(prepared, staging, step)
        step("comparing the exports with sentence-transformers")
        spec = EngineSpec.model_validate(described | hashes)
        comparisons = _compare(prepared, spec, staging, say)
        spec.write(staging)
        if final.exists():  # another process built it meanwhile
            return _existing(name, described), {}
        staging.rename(final)
    return spec, comparisons


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _described(model: Prepared, name: str, tokenizer_file: Path) -> dict[str, object]:
    """The fields of the engine's ``EngineSpec``, without the hashes of the ONNX files, which are still to be made."""
    parts = model.parts
    return {
        "name": name,
        "model": model.source.model,
        "revision": model.source.revision,
        "architecture": parts.encoder.config.model_type,
        "weights_sha256": model.weights_sha256,
        "tokenizer_sha256": sha256_of(tokenizer_file),
        "pooling": parts.pooling,
        "normalize": parts.normalize,
        "chosen": parts.chosen,
        "truncate_dim": parts.truncate_dim,
        "hidden": parts.hidden,
        "encoder_width": parts.encoder.config.hidden_size,
        "layers": parts.encoder.config.num_hidden_layers,
        "linear_weights": linear_weights(parts.encoder),
        "max_length": model.max_length,
        "model_length": model.model_length,
        "pad_id": model.tokenizer.pad_token_id,
        "position_pad_id": position_pad_id(parts.encoder),
        "prefix": model.prefix,
        "prompts": model.prompts,
        "include_prompt": parts.include_prompt,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _export(model: Prepared, folder: Path, step: Callable[[str], None]) -> dict[str, str | None]:
    """Write the ONNX files.

    Returns:
        Their hashes, by the fields of ``EngineSpec``.
    """
    parts = model.parts
    step("exporting to ONNX")
    onnx_from_torch(parts.encoder, parts.pooling, parts.head, folder / "model.onnx")
    step("exporting to ONNX in FP16")
    in_fp16 = copy.deepcopy(parts.encoder).half()
    onnx_from_torch(in_fp16, parts.pooling, parts.head, folder / "model.fp16.onnx")
    write_model(parts.encoder, parts.head, folder / "model.safetensors")
    packed = packable(parts.encoder, model.max_length)
    if packed:
        packed_onnx_from_torch(in_fp16, parts.pooling, parts.head, folder / "model.packed.onnx")
    return {
        "onnx_sha256": sha256_of(folder / "model.onnx"),
        "onnx_fp16_sha256": sha256_of(folder / "model.fp16.onnx"),
        "onnx_packed_sha256": sha256_of(folder / "model.packed.onnx") if packed else None,
        "torch_sha256": sha256_of(folder / "model.safetensors"),
    }


def _compare(model: Prepared, spec: EngineSpec, folder: Path, say: Say) -> dict[str, Comparison]:
    """How far the exports are from ``encode()``.

    Raises:
        UserError: one in FP32 is too far.
    """
    with ThreadPoolExecutor(1) as pool:
        encoder, head = read_model(folder / "model.safetensors", torch.float32)
        comparisons = check_export(
            {
                "ONNX FP32": OnnxEngine(spec, session_of(folder / "model.onnx"), pool),
                "PyTorch FP32": TorchCpuEngine(spec, PackedModel(encoder, spec.pooling, head)),
                "ONNX FP16": Fp16OnnxEngine(spec, session_of(folder / "model.fp16.onnx"), pool),
            },
            model.parts,
            _rows(folder / "tokenizer" / "tokenizer.json", model.max_length, model.tokenizer.pad_token_id),
            list(model.prompts.values()) if model.parts.include_prompt else [],
        )
    if not comparisons["ONNX FP16"].within(TOLERANCES["fp16"]):
        say(f"In FP16 this model is too far from encode(): {comparisons['ONNX FP16']}. Don't build a plan of it.")
    return comparisons


def _existing(name: str, described: Mapping[str, object]) -> EngineSpec:
    """The engine of this name. It is never changed: jobs refer to it.

    Raises:
        UserError: it is not the one that is described.
    """
    existing = load_engine(name)
    due = existing.model_copy(update=described)
    differs = [field for field in DECISIVE if getattr(existing, field) != getattr(due, field)]
    if differs:
        raise UserError(
            f"{existing.folder} holds another engine (other: {', '.join(differs)})",
            "an engine is never overwritten, because jobs refer to it",
            f"give this one another --name, or remove that one: rm -r {existing.folder}",
        )
    return existing


def _rows(file: Path, length: int, pad_id: int) -> RowTokenizer:
    """The tokenizer as the producer opens it."""
    try:
        return tokenizer_from(file, length, pad_id)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise UserError(
            f"the model's tokenizer cannot be opened ({error})", "expected one that knows the letter a"
        ) from None


def _name(model: str) -> str:
    """bert-base-cased from google-bert/bert-base-cased, or from a folder of that name."""
    folder = Path(os.path.expanduser(model))
    last = folder.resolve().name if folder.is_dir() else model.rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-") or "engine"
