"""A model's folder becomes an engine directory, which is there in full or not at all."""

import copy
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from contract.compare import TOLERANCES, Comparison
from contract.engine import DECISIVE, EngineSpec, Pooling, engine_folder, load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.settings import settings
from contract.words import count
from engine_build.compare_export import check_export
from engine_build.export import onnx_from_torch
from engine_build.model import Parts, linear_weights, longest, parts_of, weights_sha256
from engine_build.opened import open_folder
from engine_build.packed import packable, packed_onnx_from_torch
from engine_build.source import Source, fetch
from producer.batches import RowTokenizer, tokenizer_from

DEFAULT_LENGTH = 512

Say = Callable[[str], None]


@dataclass(frozen=True)
class EngineOptions:
    """What a user asks of an engine."""

    name: str | None = None
    """None for one made from the model's."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    pooling: Pooling | None = None
    """None for the model's own, as of ``normalize``."""
    normalize: bool | None = None
    max_length: int | Literal["model"] | None = None
    """In tokens; ``model`` for where sentence-transformers truncates; None for 512, or as many as the model has
    positions for where those are fewer."""


@dataclass(frozen=True, eq=False)
class _Model:
    """A model as it was opened, with what the user chose."""

    source: Source
    parts: Parts
    weights_sha256: str
    tokenizer: Any
    prompts: dict[str, str]
    """Those that are not empty."""
    prefix: str
    max_length: int
    model_length: int


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
    opened = _opened(model, options, say)
    name = options.name or _name(model)
    final = engine_folder(name)
    try:
        settings().engines.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no folder for engines ({error})", mend="set EMBEDMILL_ENGINES to another") from None
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=settings().engines) as scratch:
        staging = Path(scratch) / name
        _save_tokenizer(opened.tokenizer, staging / "tokenizer")
        described = _described(opened, name, staging / "tokenizer" / "tokenizer.json")
        if final.exists():
            return _existing(name, described), {}
        hashes = _export(opened, staging, step)
        step("comparing ONNX Runtime with sentence-transformers")
        comparisons = _compare(opened, staging, say)
        spec = EngineSpec.model_validate(described | hashes)
        spec.write(staging)
        if final.exists():  # another process built it meanwhile
            return _existing(name, described), {}
        staging.rename(final)
    return spec, comparisons


def _opened(model: str, options: EngineOptions, say: Say) -> _Model:
    source = fetch(model, options.revision)
    opened = open_folder(source.folder)
    weights = weights_sha256(opened)
    prompts = {key: text for key, text in opened.prompts.items() if text}
    prefix = prompts.get(opened.default_prompt_name or "", "")
    parts = parts_of(opened, options.pooling, options.normalize)
    if prefix and not parts.include_prompt:
        raise UserError(
            f"{source.folder} leaves its prompt {prefix!r} out of the pooling (include_prompt is false)",
            "embedmill pools over all of a row's tokens",
        )
    limit = longest(parts.encoder)
    model_length = int(min(opened.max_seq_length or limit, limit))
    max_length = _length(options.max_length, model_length, limit, say)
    if prompts and not prefix and parts.include_prompt:
        named = ", ".join(f"{key} {text!r}" for key, text in prompts.items())
        say(f"The model offers prompts ({named}) and no default one; python -m producer --prefix sets one.")
    if prompts and not parts.include_prompt:
        say("The model leaves prompts out of its pooling (include_prompt is false): rows cannot have a prefix.")
    return _Model(source, parts, weights, opened.tokenizer, prompts, prefix, max_length, model_length)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _described(model: _Model, name: str, tokenizer_file: Path) -> dict[str, object]:
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
        "prefix": model.prefix,
        "prompts": model.prompts,
        "include_prompt": parts.include_prompt,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _export(model: _Model, folder: Path, step: Callable[[str], None]) -> dict[str, str | None]:
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
    packed = packable(parts.encoder, model.max_length)
    if packed:
        packed_onnx_from_torch(in_fp16, parts.pooling, parts.head, folder / "model.packed.onnx")
    return {
        "onnx_sha256": sha256_of(folder / "model.onnx"),
        "onnx_fp16_sha256": sha256_of(folder / "model.fp16.onnx"),
        "onnx_packed_sha256": sha256_of(folder / "model.packed.onnx") if packed else None,
    }


def _compare(model: _Model, folder: Path, say: Say) -> dict[str, Comparison]:
    """How far the exports are from ``encode()``.

    Raises:
        UserError: that of FP32 is too far.
    """
    comparisons = check_export(
        {"fp32": folder / "model.onnx", "fp16": folder / "model.fp16.onnx"},
        model.parts,
        _rows(folder / "tokenizer" / "tokenizer.json", model.max_length, model.tokenizer.pad_token_id),
        list(model.prompts.values()) if model.parts.include_prompt else [],
    )
    if not comparisons["fp16"].within(TOLERANCES["fp16"]):
        say(f"In FP16 this model is too far from encode(): {comparisons['fp16']}. Don't build a plan of it.")
    return comparisons


def _existing(name: str, described: Mapping[str, object]) -> EngineSpec:
    """The engine of this name. It is never changed: jobs refer to it.

    Raises:
        UserError: it is not the one that is described.
    """
    there = load_engine(name)
    due = there.model_copy(update=described)
    differs = [field for field in DECISIVE if getattr(there, field) != getattr(due, field)]
    if differs:
        raise UserError(
            f"{there.folder} holds another engine (other: {', '.join(differs)})",
            "an engine is never overwritten, because jobs refer to it",
            f"give this one another --name, or remove that one: rm -r {there.folder}",
        )
    return there


def _length(asked: int | Literal["model"] | None, theirs: int, limit: int, say: Say) -> int:
    wanted = theirs if asked == "model" else asked
    if wanted is not None and not 3 <= wanted <= limit:
        raise UserError(f"--max-length {wanted}", f"the model has positions for 3 to {count(limit, 'token')}")
    length = wanted or min(DEFAULT_LENGTH, limit)
    if asked is None and length < DEFAULT_LENGTH:
        say(f"The model has positions for {count(limit, 'token')} only: rows are truncated there instead of at 512.")
    if asked is None and theirs != length:
        say(
            f"sentence-transformers truncates this model's texts at {count(theirs, 'token')}; "
            f"this engine does at {length}. --max-length model gives theirs."
        )
    return length


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
