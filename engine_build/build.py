"""A model's folder becomes an engine directory, which is there in full or not at all."""

import copy
import os
import re
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from contract.compare import TOLERANCES, Comparison
from contract.engine import EngineSpec, Pooling, engine_folder, load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.settings import settings
from engine_build.export import check_export, onnx_from_torch
from engine_build.model import linear_weights, load_model, load_tokenizer, longest, weights_sha256
from engine_build.packed import packable, packed_onnx_from_torch
from engine_build.source import defaults_of, fetch

DEFAULT_LENGTH = 512


def build(
    model: str,
    *,
    name: str | None,
    revision: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    max_length: int | None,
    say: Callable[[str], None],
    step: Callable[[str], None],
) -> tuple[EngineSpec, dict[str, Comparison]]:
    """Build an engine directory.

    Args:
        model: Hub id or local folder.
        name: the engine's name; None for one made from the model's.
        revision: Hub branch, tag or commit.
        pooling: None for what the folder asks for.
        normalize: None for what the folder asks for.
        max_length: in tokens; None for 512, or the model's own limit where that is smaller.
        say: takes a line that the user should read.
        step: takes the name of the step that begins.

    Returns:
        The engine, and how far ONNX Runtime is from PyTorch in each precision; nothing in place of that where the
        engine was there already.

    Raises:
        UserError: the model cannot be taken, or an engine of this name holds something else.
    """
    step("reading the model")
    source = fetch(model, revision)
    defaults = defaults_of(source.folder)
    torch_model = load_model(source.folder)
    tokenizer = load_tokenizer(source.folder, lowercase=defaults.lowercase)
    pooling = pooling or defaults.pooling
    if normalize is None:
        normalize = defaults.normalize and pooling != "tokens"
    max_length = _length(max_length, defaults.max_length, longest(torch_model), say)
    if defaults.prompts and not defaults.prefix:
        named = ", ".join(f"{key} {text!r}" for key, text in defaults.prompts)
        say(f"The model offers prompts ({named}) and no default one; python -m producer --prefix sets one.")

    name = name or _name(model)
    final = engine_folder(name)
    try:
        settings().engines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no folder for engines ({error})", mend="set EMBEDMILL_ENGINES to another") from None
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=settings().engines) as scratch:
        staging = Path(scratch) / name
        staging.mkdir()
        tokenizer.save_pretrained(staging / "tokenizer")
        tokenizer.backend_tokenizer.save(str(staging / "tokenizer" / "tokenizer.json"))
        step("exporting to ONNX")
        onnx_from_torch(torch_model, pooling, normalize=normalize, path=staging / "model.onnx")
        step("exporting to ONNX in FP16")
        in_fp16 = copy.deepcopy(torch_model).half()
        onnx_from_torch(in_fp16, pooling, normalize=normalize, path=staging / "model.fp16.onnx")
        packed = packable(torch_model, max_length)
        if packed:
            packed_onnx_from_torch(in_fp16, pooling, normalize=normalize, path=staging / "model.packed.onnx")
        step("comparing ONNX Runtime with PyTorch")
        comparisons = check_export(
            {"fp32": staging / "model.onnx", "fp16": staging / "model.fp16.onnx"},
            torch_model,
            tokenizer,
            pooling,
            normalize=normalize,
            max_length=max_length,
        )
        if not comparisons["fp16"].within(TOLERANCES["fp16"]):
            say(f"In FP16 this model is too far from PyTorch: {comparisons['fp16']}. Don't build a plan of it.")
        spec = EngineSpec(
            name=name,
            model=source.model,
            revision=source.revision,
            architecture=torch_model.config.model_type,
            weights_sha256=weights_sha256(torch_model),
            tokenizer_sha256=sha256_of(staging / "tokenizer" / "tokenizer.json"),
            onnx_sha256=sha256_of(staging / "model.onnx"),
            onnx_fp16_sha256=sha256_of(staging / "model.fp16.onnx"),
            onnx_packed_sha256=sha256_of(staging / "model.packed.onnx") if packed else None,
            pooling=pooling,
            normalize=normalize,
            hidden=torch_model.config.hidden_size,
            layers=torch_model.config.num_hidden_layers,
            linear_weights=linear_weights(torch_model),
            max_length=max_length,
            pad_id=tokenizer.pad_token_id,
            prefix=defaults.prefix,
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
        spec.write(staging)
        if final.exists():
            return _existing(spec), {}
        staging.rename(final)
    return spec, comparisons


def _existing(spec: EngineSpec) -> EngineSpec:
    """An engine is never changed: jobs refer to it."""
    there = load_engine(spec.name)
    if there.fingerprint != spec.fingerprint:
        differs = [
            field
            for field in ("weights_sha256", "tokenizer_sha256", "pooling", "normalize", "max_length")
            if getattr(there, field) != getattr(spec, field)
        ]
        raise UserError(
            f"{spec.folder} holds another engine (other: {', '.join(differs)})",
            "an engine is never overwritten, because jobs refer to it",
            f"give this one another --name, or remove that one: rm -r {spec.folder}",
        )
    return there


def _length(wanted: int | None, folders: int | None, limit: int, say: Callable[[str], None]) -> int:
    if wanted is not None and not 3 <= wanted <= limit:
        raise UserError(f"--max-length {wanted}", f"the model has positions for 3 to {limit} tokens")
    length = wanted or min(DEFAULT_LENGTH, limit)
    if wanted is None and length < DEFAULT_LENGTH:
        say(f"The model has positions for {limit} tokens only: rows are truncated there instead of at 512.")
    theirs = min(folders or length, limit)
    if theirs != length:
        say(
            f"sentence-transformers would truncate this model's rows at {theirs} tokens; this engine does at {length}. "
            f"--max-length {theirs} gives theirs."
        )
    return length


def _name(model: str) -> str:
    """bert-base-cased from google-bert/bert-base-cased, or from a folder of that name."""
    folder = Path(os.path.expanduser(model))
    last = folder.resolve().name if folder.is_dir() else model.rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-") or "engine"
