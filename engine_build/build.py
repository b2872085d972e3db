"""A model's folder becomes an engine directory, which is there in full or not at all."""

import copy
import os
import re
import tempfile
from collections.abc import Callable
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
from engine_build.model import linear_weights, longest, parts_of, weights_sha256
from engine_build.opened import open_folder
from engine_build.packed import packable, packed_onnx_from_torch
from engine_build.source import fetch
from producer.batches import RowTokenizer, tokenizer_from

DEFAULT_LENGTH = 512


def build(
    model: str,
    *,
    name: str | None,
    revision: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    max_length: int | Literal["model"] | None,
    say: Callable[[str], None],
    step: Callable[[str], None],
) -> tuple[EngineSpec, dict[str, Comparison]]:
    """Build an engine directory.

    Args:
        model: Hub id or local folder.
        name: the engine's name; None for one made from the model's.
        revision: Hub branch, tag or commit.
        pooling: None for the model's own.
        normalize: None for the model's own.
        max_length: in tokens; ``model`` for where sentence-transformers truncates; None for 512, or as many as the
            model has positions for where those are fewer.
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
    source = fetch(model, revision)
    opened = open_folder(source.folder)
    weights = weights_sha256(opened)
    prompts = {key: text for key, text in opened.prompts.items() if text}
    prefix = prompts.get(opened.default_prompt_name or "", "")
    parts = parts_of(opened, pooling, normalize)
    tokenizer: Any = opened.tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if prefix and not parts.include_prompt:
        raise UserError(
            f"{source.folder} leaves its prompt {prefix!r} out of the pooling (include_prompt is false)",
            "embedmill pools over all of a row's tokens",
        )
    limit = longest(parts.encoder)
    model_length = int(min(opened.max_seq_length or limit, limit))
    max_length = _length(max_length, model_length, limit, say)
    if prompts and not prefix and parts.include_prompt:
        named = ", ".join(f"{key} {text!r}" for key, text in prompts.items())
        say(f"The model offers prompts ({named}) and no default one; python -m producer --prefix sets one.")
    if prompts and not parts.include_prompt:
        say("The model leaves prompts out of its pooling (include_prompt is false): rows cannot have a prefix.")

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
        onnx_from_torch(parts.encoder, parts.pooling, parts.head, staging / "model.onnx")
        step("exporting to ONNX in FP16")
        in_fp16 = copy.deepcopy(parts.encoder).half()
        onnx_from_torch(in_fp16, parts.pooling, parts.head, staging / "model.fp16.onnx")
        packed = packable(parts.encoder, max_length)
        if packed:
            packed_onnx_from_torch(in_fp16, parts.pooling, parts.head, staging / "model.packed.onnx")
        step("comparing ONNX Runtime with sentence-transformers")
        comparisons = check_export(
            {"fp32": staging / "model.onnx", "fp16": staging / "model.fp16.onnx"},
            parts,
            _rows(staging / "tokenizer" / "tokenizer.json", max_length, tokenizer.pad_token_id),
            list(prompts.values()) if parts.include_prompt else [],
        )
        if not comparisons["fp16"].within(TOLERANCES["fp16"]):
            say(f"In FP16 this model is too far from encode(): {comparisons['fp16']}. Don't build a plan of it.")
        spec = EngineSpec(
            name=name,
            model=source.model,
            revision=source.revision,
            architecture=parts.encoder.config.model_type,
            weights_sha256=weights,
            tokenizer_sha256=sha256_of(staging / "tokenizer" / "tokenizer.json"),
            onnx_sha256=sha256_of(staging / "model.onnx"),
            onnx_fp16_sha256=sha256_of(staging / "model.fp16.onnx"),
            onnx_packed_sha256=sha256_of(staging / "model.packed.onnx") if packed else None,
            pooling=parts.pooling,
            normalize=parts.normalize,
            chosen=parts.chosen,
            truncate_dim=parts.truncate_dim,
            hidden=parts.hidden,
            encoder_width=parts.encoder.config.hidden_size,
            layers=parts.encoder.config.num_hidden_layers,
            linear_weights=linear_weights(parts.encoder),
            max_length=max_length,
            model_length=model_length,
            pad_id=tokenizer.pad_token_id,
            prefix=prefix,
            prompts=prompts,
            include_prompt=parts.include_prompt,
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
        differs = [field for field in DECISIVE if getattr(there, field) != getattr(spec, field)]
        raise UserError(
            f"{spec.folder} holds another engine (other: {', '.join(differs)})",
            "an engine is never overwritten, because jobs refer to it",
            f"give this one another --name, or remove that one: rm -r {spec.folder}",
        )
    return there


def _length(asked: int | Literal["model"] | None, theirs: int, limit: int, say: Callable[[str], None]) -> int:
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
