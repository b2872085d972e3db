"""Where a model comes from, and what its folder says about how it wants to be used."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from contract.engine import Pooling
from contract.errors import UserError

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_HONOURED = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls"}
_LEGACY_POOLINGS = {  # sentence-transformers before 5.2 wrote one switch per mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Source:
    """A model's files on this machine."""

    model: str
    """Hub id, or absolute path of a local folder."""
    folder: Path
    revision: str | None
    """The Hub commit; None for a local folder."""


@dataclass(frozen=True)
class Defaults:
    """What the folder's sentence-transformers files ask for; a plain transformers folder asks for mean pooling."""

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    lowercase: bool = False
    prefix: str = ""
    prompts: tuple[tuple[str, str], ...] = ()
    """Named prompts that the folder offers."""


def fetch(model: str, revision: str | None = None) -> Source:
    """The model's files: a local folder as it is, anything else from the Hub.

    Raises:
        UserError: the folder is no model, or the Hub has none of this name or cannot be reached.
    """
    folder = Path(os.path.expanduser(model))  # pathlib's fails for a user that is not there
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            raise UserError(
                f"{folder} is no model folder "
                f"(there: {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'})",
                "expected config.json and model.safetensors",
                "give a folder that save_pretrained wrote, or a Hub id",
            )
        return Source(str(folder.resolve()), folder, None)
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or folder.is_file():
        raise UserError(f"no model folder {model}", "expected a folder with config.json and model.safetensors")
    try:
        snapshot = _snapshot(model, revision, ["*.json", "*.txt", "*.model", "*.safetensors"])
        if not any(snapshot.glob("*.safetensors")):
            snapshot = _snapshot(model, revision, ["pytorch_model*.bin"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no model {model} on the Hub, or no network ({str(error).strip().splitlines()[0]})",
            "expected a Hub id such as bert-base-cased, or a local folder",
            "without network: python -m engine_build --model /path/to/the/folder",
        ) from None
    return Source(model, snapshot, snapshot.name)


def _snapshot(model: str, revision: str | None, files: list[str]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=files + [f"*/{f}" for f in files[:1]]
        )
    )


def defaults_of(folder: Path) -> Defaults:
    """What a sentence-transformers folder asks for, read from ``modules.json`` and the files that it names.

    Raises:
        UserError: it has a module, a pooling or a prompt rule that an engine cannot honour.
    """
    if not (folder / "modules.json").is_file():
        return Defaults()
    modules = {_module(entry["type"]): folder / entry["path"] for entry in _json(folder / "modules.json")}
    for name in modules:
        if name not in _HONOURED:
            raise UserError(
                f"{folder} has the sentence-transformers module {name}",
                f"embedmill honours {', '.join(_HONOURED)}: "
                f"without {name} the vectors would be others than this model's",
                "for its transformer alone, remove modules.json from a copy of the folder",
            )
    normalizes = _json(modules["Normalize"] / "config.json") if "Normalize" in modules else {}
    if normalizes.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise UserError(
            f"{folder} has a Normalize module of {normalizes['module_input_name']}",
            "embedmill normalizes a row's vector, after the pooling",
        )
    transformer = _json(modules.get("Transformer", folder) / "sentence_bert_config.json")
    pooling = _json(modules["Pooling"] / "config.json") if "Pooling" in modules else {}
    settings = _json(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in (settings.get("prompts") or {}).items() if text}
    prefix = prompts.get(settings.get("default_prompt_name") or "", "")
    if prefix and not pooling.get("include_prompt", True):
        raise UserError(
            f"{folder} leaves its prompt {prefix!r} out of the pooling (include_prompt is false)",
            "embedmill pools over all of a row's tokens",
        )
    return Defaults(
        pooling=_pooling(pooling, folder),
        normalize="Normalize" in modules,
        # sentence-transformers keeps it with the tokenizer since version 6.
        max_length=transformer.get("max_seq_length") or _json(folder / "tokenizer_config.json").get("model_max_length"),
        lowercase=bool(transformer.get("do_lower_case")),
        prefix=prefix,
        prompts=tuple(prompts.items()),
    )


def _pooling(config: dict[str, Any], folder: Path) -> Pooling:
    found = config.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLINGS.items() if config.get(key)] or "mean"
    modes = [found] if isinstance(found, str) else list(found)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{folder} pools by {' and '.join(modes)}",
            f"embedmill honours one of {', '.join(_POOLINGS)}",
            "choose another model",
        )
    return _POOLINGS[modes[0]]


def _module(kind: str) -> str:
    """``Pooling`` from ``sentence_transformers.….Pooling``; a class of someone else's keeps its whole name."""
    return kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error})", "expected JSON") from None
