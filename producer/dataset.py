"""A text column of a dataset: from the Hub, from a file, from a folder, or as ``save_to_disk`` left it."""

import glob
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from contract.errors import UserError
from contract.files import sha256_of

_CSV = {"keep_default_na": False, "na_values": [""]}
"""pandas would read the texts "NA", "None" and "null" as missing; only an empty cell is."""


@dataclass(frozen=True)
class TextDataset:
    """One text column of one split."""

    dataset: str
    """Hub id, or absolute path."""
    config: str | None
    split: str
    column: str
    revision: str
    """What it holds: the Hub commit, or a hash over the local files."""
    table: datasets.Dataset

    @property
    def rows(self) -> int:
        return len(self.table)

    def texts(self, rows: range) -> list[str | None]:
        """The texts of these consecutive rows; None where the dataset has none.

        Bytes that are no UTF-8 become U+FFFD, as in a text editor.
        """
        column = self.table[rows.start : rows.stop][self.column]
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
            return [None if text is None else text.decode("utf-8", errors="replace") for text in raw.to_pylist()]


def open_dataset(
    dataset: str, *, config: str | None = None, split: str | None = None, column: str | None = None
) -> TextDataset:
    """Open a dataset and find its text column.

    Args:
        dataset: Hub id (``imdb``, ``stanfordnlp/imdb``); a csv, tsv, json, jsonl, parquet or text file, or a folder of
            them; a folder that ``save_to_disk`` wrote.
        config: which configuration, where it has several.
        split: None for ``train``, or the only one there is.
        column: None for ``text``, or the only text column there is.

    Raises:
        UserError: it cannot be found or read, or has no such split or text column, or no rows.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(dataset).expanduser()
    if path.exists():
        path = path.resolve()
        splits, revision = _open_local(path, config), _revision(path)
        dataset = str(path)
    elif path.is_absolute() or dataset.startswith(("./", "../", "~")) or path.suffix.lower() in _SUFFIXES:
        raise UserError(f"no dataset {dataset}", "expected a Hub id, a file or a folder", f"look: ls {path.parent}")
    else:
        splits, revision = _open_hub(dataset, config)
    split = _choose(split, list(splits), "train", "split", dataset)
    table = splits[split]
    features = table.features
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    if column is not None and column in features and column not in texts:
        raise UserError(
            f"column {column!r} of {dataset} holds {features[column]}",
            f"expected a text column (there: {', '.join(texts) or 'none'})",
            "choose one with --text-column",
        )
    if not table.num_rows:
        raise UserError(f"{dataset} has no rows in split {split!r}", "there must be something to embed")
    if not texts:
        raise UserError(f"{dataset} has no text column (its columns: {', '.join(features)})", "expected one of strings")
    column = _choose(column, texts, "text", "text-column", dataset, among=list(features))
    return TextDataset(
        dataset, config, split, column, revision, table.select_columns([column]).with_format("arrow")
    )


_SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".arrow", ".gz", ".zst", ".xz"}


def _choose(
    wanted: str | None, there: list[str], usual: str, option: str, dataset: str, among: list[str] | None = None
) -> str:
    if wanted in there:
        return wanted
    if wanted is None and (usual in there or len(there) == 1):
        return usual if usual in there else there[0]
    what = f"no {option} {wanted!r} in" if wanted else f"several choices of {option} in"
    raise UserError(f"{what} {dataset}", f"there: {', '.join(among or there)}", f"choose one with --{option}")


def _open_local(path: Path, config: str | None) -> dict[str, datasets.Dataset]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(path)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read ({_reason(error)})", "expected what save_to_disk wrote") from None
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    try:
        return _built(path, config)
    except DatasetGenerationError as error:
        if "surrogate" not in str(error.__cause__) or not path.is_file():
            raise _unreadable(path, error) from None
        # JSON can spell half of a surrogate pair, which no UTF-8 text can hold. One such row must not cost the file.
        return _built(_without_lone_surrogates(path), config)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _built(path: Path, config: str | None) -> dict[str, datasets.Dataset]:
    folder, files = (path, None) if path.is_dir() else (path.parent, glob.escape(path.name))
    builder = datasets.load_dataset_builder(str(folder), config, data_files=files)
    if type(builder).__name__ == "Csv":
        builder = datasets.load_dataset_builder(str(folder), config, data_files=files, **_CSV)
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def _open_hub(dataset: str, config: str | None) -> tuple[dict[str, datasets.Dataset], str]:
    try:
        builder = datasets.load_dataset_builder(dataset, config)
        builder.download_and_prepare()
        return dict(builder.as_dataset()), str(builder.hash)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise UserError(
            f"no dataset {dataset}, or no network ({_reason(error)})",
            "expected a Hub id such as imdb, a file, or a folder",
            "without network: python -m producer --dataset /path/to/file.jsonl",
        ) from None
    except (ValueError, OSError, RuntimeError) as error:  # an unknown config is a ValueError that lists the known ones
        raise UserError(f"{dataset} cannot be read ({_reason(error)})", mend="see --config and --split") from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({_reason(error.__cause__ or error)})",
        "expected csv, tsv, json, jsonl, parquet or text files with rows",
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _revision(path: Path) -> str:
    """A hash over a local dataset's files: their names inside it and their bytes."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        if not any(part.startswith(".") for part in Path(name).parts):
            digest.update(f"{name}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)", re.DOTALL
)
"""A JSON escape sequence: a surrogate pair, half of one, or any other."""


def _without_lone_surrogates(path: Path) -> Path:
    """A copy of a JSON file in the datasets cache whose halves of surrogate pairs are U+FFFD; same rows, same order."""
    copy = Path(datasets.config.HF_DATASETS_CACHE, "embedmill", sha256_of(path), path.name)
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        staging = copy.with_name(f".{copy.name}.{os.getpid()}")
        with path.open("rb") as source, staging.open("wb") as target:
            for line in source:
                target.write(_ESCAPE.sub(_replaced, line))
        staging.replace(copy)
    return copy


def _replaced(escape: re.Match[bytes]) -> bytes:
    """Half a pair is six bytes long and begins ``\\ud8`` to ``\\udf``; all else stays as it is."""
    half = len(escape[0]) == 6 and escape[0][1:3].lower() == b"ud"
    return rb"\ufffd" if half else escape[0]
