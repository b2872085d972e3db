"""A model's folder becomes an engine directory, which is there in full or not at all."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.processors

from contract.compare import Comparison
from contract.engine import DECISIVE, EngineSpec, engine_folder
from contract.engines import load_engine
from contract.errors import UserError
from contract.files import sha256_of
from contract.settings import settings
from contract.weights import vocabulary_sha256
from engine_build.compare_export import Expected
from engine_build.long_rows import long_rows_line
from engine_build.model import layers, linear_weights, position_pad_id
from engine_build.prepare import EngineOptions, Prepared, Say, prepare
from engine_build.tiers import fp16_warning, make, tiers_line
from producer.tokenizer import RowTokenizer, tokenizer_from


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
        The engine, and how far each of its tiers is from ``encode()``; nothing in place of that where the engine was
        there already.

    Raises:
        UserError: the model cannot be taken, nothing gives the vectors of its ``encode()``, or an engine of this name
            holds something else.
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
        step("computing what the engine must give")
        rows = _rows(staging / "tokenizer" / "tokenizer.json", prepared.max_length, _pad_id(prepared.tokenizer))
        made = make(prepared, described, Expected(prepared.parts, rows, list(prepared.prompts.values())), staging, step)
        for line in filter(None, (tiers_line(made), long_rows_line(prepared, made), fp16_warning(made))):
            say(line)
        spec = EngineSpec.model_validate({**described, **made.fields, "unused": made.unused})
        spec.write(staging)
        if final.exists():  # another process built it meanwhile
            return _existing(name, described), {}
        staging.rename(final)
    return spec, made.comparisons


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    if isinstance(tokenizer, tokenizers.Tokenizer):  # of a static model, which leaves special tokens out
        bare = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        bare.no_truncation()
        bare.no_padding()
        bare.post_processor = tokenizers.processors.Sequence([])
        folder.mkdir(parents=True)
        bare.save(str(folder / "tokenizer.json"))
        return
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _pad_id(tokenizer: Any) -> int:
    """Of a static model's tokenizer, which needs none, 0."""
    return getattr(tokenizer, "pad_token_id", None) or 0


def _described(model: Prepared, name: str, tokenizer_file: Path) -> dict[str, object]:
    """The fields of the engine's ``EngineSpec``, without the hashes of what computes it, which is still to be made."""
    parts = model.parts
    return {
        "name": name,
        "model": model.source.model,
        "revision": model.source.revision,
        "architecture": parts.architecture,
        "opened_by": parts.opened_by,
        "weights_sha256": model.weights_sha256,
        "tokenizer_sha256": sha256_of(tokenizer_file),
        "vocabulary_sha256": vocabulary_sha256(model.tokenizer.get_vocab()),
        "pooling": parts.pooling,
        "normalize": parts.normalize,
        "chosen": parts.chosen,
        "truncate_dim": parts.truncate_dim,
        "hidden": parts.hidden,
        "encoder_width": parts.encoder_width,
        "layers": layers(parts.encoder),
        "linear_weights": linear_weights(parts.reference),
        "max_length": model.max_length,
        "model_length": model.model_length,
        "pad_id": _pad_id(model.tokenizer),
        "position_pad_id": position_pad_id(parts.encoder),
        "prefix": model.prefix,
        "prompts": model.prompts,
        "include_prompt": parts.include_prompt,
        "without_vector": parts.without_vector,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


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
