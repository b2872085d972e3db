"""Where a model comes from, and whether it brings code of its own."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from contract.engine import OpenedBy
from contract.errors import UserError, first_line

_CONFIGS = ("config.json", "modules.json")
_NATIVE = ("eurobert", "gte", "jina_embeddings_v3", "nomic_bert")
"""Model types that transformers has taken over from models that bring code along."""
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Source:
    """A model's files on this machine."""

    model: str
    """Hub id, or absolute path of a local folder."""
    folder: Path
    revision: str | None
    """The Hub commit; None for a local folder."""


def fetch(model: str, revision: str | None = None) -> Source:
    """The model's files: a local folder as it is, anything else from the Hub. Of an adapter also its base model's.

    Raises:
        UserError: the folder is no model, or the Hub has none of this name or cannot be reached.
    """
    source = _fetched(model, revision)
    base = adapter_of(source.folder)
    if base and not Path(base["base_model_name_or_path"]).is_dir():
        _fetched(base["base_model_name_or_path"], base.get("revision"))
    return source


def _fetched(model: str, revision: str | None) -> Source:
    if folder := local_folder(model):
        return Source(str(folder.resolve()), folder, None)
    try:
        model, snapshot = _found(model, revision)
        better = {file.parent.relative_to(snapshot) for file in snapshot.rglob("*.safetensors")}
        _snapshot(model, revision, ["*pytorch_model*.bin"], [str(folder / "pytorch_model*.bin") for folder in better])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"no model {model} on the Hub, or no network ({first_line(error)})",
            "expected a Hub id such as all-MiniLM-L6-v2 or BAAI/bge-m3, or a local folder",
            "without network: python -m engine_build --model /path/to/the/folder",
        ) from None
    return Source(model, snapshot, snapshot.name)


def local_folder(model: str) -> Path | None:
    """The folder that the model is, or None for one of the Hub. Its model is not opened, so this takes no PyTorch.

    Raises:
        UserError: it can only be a folder and is none, or a folder that holds no model.
    """
    folder = Path(os.path.expanduser(model))  # pathlib's fails for a user that is not there
    if folder.is_dir():
        if not any((folder / name).is_file() for name in _CONFIGS) or not any(any(folder.rglob(w)) for w in _WEIGHTS):
            raise UserError(
                f"{folder} is no model folder "
                f"(there: {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'})",
                "expected config.json or modules.json, and model.safetensors",
                "give a folder that save_pretrained wrote, or a Hub id",
            )
        return folder
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or folder.is_file():
        raise UserError(f"no model folder {model}", "expected a folder with config.json and model.safetensors")
    return None


def _found(model: str, revision: str | None) -> tuple[str, Path]:
    """The model's full name, and its files without weights of the older kind.

    As sentence-transformers has it, a name without an owner is one of the organization ``sentence-transformers``, but
    for those that the Hub had before owners; what the organization does not have is looked for by the name as it is.
    """
    from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS  # here: it imports PyTorch

    names = [model]
    if "/" not in model and model.lower() not in ORIGINAL_TRANSFORMER_MODELS:
        names.insert(0, f"sentence-transformers/{model}")
    for name in names:
        try:
            # These patterns' stars match slashes too, so that each module's folder comes along.
            return name, _snapshot(name, revision, ["*.json", "*.txt", "*.model", "*.safetensors"])
        except (RepositoryNotFoundError, LocalEntryNotFoundError):
            if name == model:
                raise
    raise AssertionError("the last name is the model's")


def _snapshot(model: str, revision: str | None, files: list[str], but: list[str] | None = None) -> Path:
    return Path(
        huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=files, ignore_patterns=but or [])
    )


def encoder_folder(folder: Path) -> Path:
    """Where the encoder's files are: the folder of the first of the modules, or of all without ``modules.json``.

    Raises:
        UserError: ``modules.json`` cannot be read.
    """
    try:
        modules = read_json(folder / "modules.json")
        return folder / str(modules[0].get("path") or "") if modules else folder
    except (LookupError, AttributeError, TypeError):
        raise UserError(f"{folder / 'modules.json'} cannot be read", "expected a list of modules") from None


def adapter_of(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter that a model's encoder is, as peft saves it; empty where it is none.

    Raises:
        UserError: it names no base model.
    """
    file = encoder_folder(folder) / "adapter_config.json"
    found: dict[str, Any] = read_json(file)
    if found and not isinstance(found.get("base_model_name_or_path"), str):
        raise UserError(f"{file} names no base model", "expected base_model_name_or_path")
    return found


def is_static(folder: Path) -> bool:
    """Whether the first module is a StaticEmbedding, as ``encoder_folder`` finds it."""
    modules = read_json(folder / "modules.json")
    return bool(modules) and str(modules[0].get("type")).endswith(".StaticEmbedding")


def opened_by(folder: Path) -> OpenedBy:
    """The class of sentence-transformers that a folder was saved by; it opens what PyLate and ColBERT saved too.

    Raises:
        UserError: it is none that embeds texts.
    """
    architectures = read_json(folder / "config.json").get("architectures") or []
    default = "MultiVectorEncoder" if "HF_ColBERT" in architectures else "SentenceTransformer"
    found = read_json(folder / "config_sentence_transformers.json").get("model_type", default)
    kind: OpenedBy = "MultiVectorEncoder" if found == "ColBERT" else found
    if kind not in get_args(OpenedBy):
        raise UserError(f"{folder} is a {kind}", f"expected one of {', '.join(get_args(OpenedBy))}")
    return kind


def refuse_code(folder: Path) -> None:
    """Refuse a model that wants code of its own to run. That of a type which transformers has taken over is not run.

    Raises:
        UserError: a configuration in the folder has an ``auto_map``.
    """
    for file in sorted(folder.rglob("*config.json")):
        found = read_json(file)
        if isinstance(found, dict) and found.get("auto_map") and found.get("model_type") not in _NATIVE:
            raise UserError(
                f"{folder} has code of its own (auto_map in {file.relative_to(folder)})",
                "embedmill runs no code that a model brings along",
                "choose a model whose architecture transformers has",
            )


def read_json(file: Path) -> Any:
    """What a file holds; an empty dictionary where there is none.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error})", "expected JSON") from None
