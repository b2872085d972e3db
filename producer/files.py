"""Which files a dataset's name means: where they are, of which kind, in which splits and order, which are left out."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from contract.entry import importing
from contract.errors import UserError, reason
from producer.hashing import hash_of
from producer.library import library
from producer.remote import SCHEMES, downloaded

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".arrow": "arrow",
}
"""Suffix → what a file of it is read as."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_BESIDE = {".md", ".py", ".yaml", ".yml"}
"""Suffixes of what lies beside data and is none, so that nobody takes it for left out."""

_log = logging.getLogger("embedmill.producer")


class LocalFiles(NamedTuple):
    """The files of a dataset."""

    dataset: str
    """Absolute path or pattern, or address: what the job calls it."""
    kind: str
    """One of ``KINDS``."""
    splits: dict[str, list[Path]]
    """Split → its files, in the rows' order."""
    root: Path
    """What the names of the files are relative to."""
    all: list[Path]
    """All files that there are, also those of no split: the dataset's revision is a hash over them."""


def kind_of(name: str) -> tuple[str | None, str]:
    """What a file is read as, by its suffixes, and its compression's suffix or ""; both in any casing."""
    stem, suffix = os.path.splitext(name.lower())
    compression = suffix if suffix in COMPRESSIONS else ""
    kind = KINDS.get(os.path.splitext(stem)[1] if compression else suffix)
    return kind, compression


def find_local(dataset: str) -> tuple[str, Path] | None:
    """Where a dataset of files is; None for one on the Hub.

    Returns:
        What the job calls it, and the path of its file, its folder, or a glob pattern.

    Raises:
        UserError: the name means files, and there are none.
    """
    if dataset.startswith(SCHEMES):
        return dataset, downloaded(dataset)
    path = Path(os.path.expanduser(dataset))  # pathlib's fails for a user that is not there
    if path.exists():
        return str(path.resolve()), path.resolve()
    if glob.has_magic(dataset) and any(glob.iglob(os.path.expanduser(dataset), recursive=True)):
        return os.path.abspath(path), Path(os.path.abspath(path))
    if "://" in dataset:
        raise UserError(f"{dataset} is no address that can be read", f"expected one of {', '.join(SCHEMES)}")
    known = path.suffix.lower() in (*KINDS, *COMPRESSIONS) or kind_of(path.name)[0]
    if path.is_absolute() or dataset.startswith(("./", "../", "~")) or known or any(each in dataset for each in "*?["):
        raise UserError(f"no dataset {dataset}", "expected a Hub id, a file or a folder", f"look: ls {path.parent}")
    return None


def files_of(name: str, path: Path, config: str | None = None) -> LocalFiles:
    """Find a dataset's files.

    Args:
        name: what the job calls the dataset.
        path: a file, a folder, or a glob pattern.
        config: which configuration, where the folder's README.md names several.

    Raises:
        UserError: there is none that can be read, or there are several configurations.
    """
    root, found, splits = _candidates(path, config)
    kind = _main_kind(name, splits)
    chosen = {split: [file for file in files if kind_of(file.name)[0] == kind] for split, files in splits.items()}
    chosen = {split: files for split, files in chosen.items() if files}
    taken = {file for files in chosen.values() for file in files}
    left = [str(file.relative_to(root)) for file in found if file not in taken and _is_data(file)]
    if left:
        more = f" and {len(left) - 10:,} more" if len(left) > 10 else ""
        _log.warning("%s: the dataset is made of its %s files; left out: %s%s", name, kind, ", ".join(left[:10]), more)
    return LocalFiles(name, kind, chosen, root, found)


def _candidates(path: Path, config: str | None) -> tuple[Path, list[Path], dict[str, list[Path]]]:
    """The folder that the files' names are relative to, all files, and those of each split, of whatever kind."""
    if path.is_file():
        return path.parent, [path], {"train": [path]}
    if path.is_dir():
        return path, _walk(path), _splits(path, config)
    matched = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
    root = Path(os.path.commonpath([file.parent for file in matched])) if matched else path.parent
    return root, matched, {"train": matched}


def _main_kind(name: str, splits: Mapping[str, Sequence[Path]]) -> str:
    """The kind that most files have.

    Raises:
        UserError: no file has a kind that can be read.
    """
    kinds = Counter(kind for files in splits.values() for file in files if (kind := kind_of(file.name)[0]))
    if not kinds:
        raise UserError(
            f"{name} is empty or cannot be read: no file in it has a suffix that is known",
            f"expected {', '.join(KINDS)}, or one of them with {', '.join(COMPRESSIONS)} after it",
            "rename the file, or name another",
        )
    return max(KINDS.values(), key=lambda each: kinds[each])


def revision_of(folder: Path) -> str:
    """A hash over all files of a folder: their names inside it and their bytes."""
    return hash_of(folder, _walk(folder))


def _is_data(file: Path) -> bool:
    return not file.name.upper().startswith(("LICENSE", "README")) and file.suffix.lower() not in _BESIDE


def _walk(folder: Path) -> list[Path]:
    """The files in a folder and below, in order, without hidden ones.

    Raises:
        OSError: a folder may not be read.
    """
    inside: list[Path] = []

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in inside if file.is_file())


def _splits(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """As ``datasets`` has it: by the configuration in README.md, or by the names of files and folders."""
    if glob.has_magic(str(folder)):
        raise UserError(f"the name of {folder} reads as a pattern", hint="rename the folder")
    library()
    with importing():
        from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns
    try:
        chosen = _configuration(folder, config)
        base = str(folder / chosen.get("data_dir", ""))
        patterns = sanitize_patterns(chosen["data_files"]) if "data_files" in chosen else get_data_patterns(base)
        found = DataFilesDict.from_patterns(patterns, base_path=base)
    except EmptyDatasetError:
        return {}
    except (FileNotFoundError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} cannot be read ({reason(error)})", "expected files that README.md names") from None
    return {str(split): [Path(file) for file in files] for split, files in found.items()}


def _configuration(folder: Path, config: str | None) -> dict[str, Any]:
    with importing():
        from datasets.utils.metadata import MetadataConfigs
        from huggingface_hub import DatasetCardData
        from huggingface_hub.repocard import RepoCard
    card = folder / "README.md"
    data = RepoCard.load(card, ignore_metadata_errors=True).data if card.is_file() else None
    there = MetadataConfigs.from_dataset_card_data(DatasetCardData(**data.to_dict())) if data else MetadataConfigs()
    name = config or there.get_default_config_name()
    if there and name not in there:
        what = f"no configuration {config!r} in" if config else "several configurations in"
        raise UserError(f"{what} {folder}", f"there: {', '.join(there)}", "choose one with --config")
    if config and not there:
        raise UserError(f"{folder} has no configurations", f"found --config {config}", "leave out --config")
    chosen = dict(there.get(name, {}))
    if ignored := sorted(set(chosen) - {"data_files", "data_dir", "default", "features", "version"}):
        _log.warning("%s: README.md sets %s, which is not used", folder, ", ".join(ignored))
    return chosen
