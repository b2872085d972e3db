"""A text column of a dataset: from the Hub, from a file, from a folder, or as ``save_to_disk`` left it."""

import contextlib
import glob
import gzip
import hashlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.packaged_modules.csv.csv import Csv

from contract.errors import UserError, reason
from contract.files import sha256_of
from contract.job import SPLIT, Job
from producer.hub import ParquetTable, open_hub

_CSV = {"keep_default_na": False, "na_values": [""]}
"""pandas would read the texts "NA", "None" and "null" as missing; only an empty cell is."""

_BIG = 1 << 28
"""Bytes of local files from which on several processes read them."""

_log = logging.getLogger("embedmill.producer")


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
    table: datasets.Dataset | ParquetTable
    columns: tuple[str, ...] = ()
    """Columns that are carried into the shards."""

    @property
    def rows(self) -> int:
        return len(self.table)

    def read(self, rows: range) -> tuple[list[str | None], dict[str, pa.Array]]:
        """The texts of these consecutive rows, None where the dataset has none, and their values of ``columns``.

        Bytes of a text that are no UTF-8 become U+FFFD, as in a text editor.
        """
        table = self.table[rows.start : rows.stop]
        return _decoded(table[self.column]), {name: table[name].combine_chunks() for name in self.columns}

    def texts(self, rows: range) -> list[str | None]:
        """The texts alone."""
        return self.read(rows)[0]


def open_dataset(
    dataset: str,
    *,
    config: str | None = None,
    split: str | None = None,
    column: str | None = None,
    columns: tuple[str, ...] = (),
    revision: str | None = None,
    stream: bool = False,
) -> TextDataset:
    """Open a dataset and find its text column.

    Args:
        dataset: Hub id (``imdb``, ``stanfordnlp/imdb``); a csv, tsv, json, jsonl, parquet or text file, or a folder of
            them; a folder that ``save_to_disk`` wrote.
        config: which configuration, where it has several.
        split: None for ``train``, or the only one there is.
        column: None for ``text``, or the only text column there is.
        columns: further ones, of any type, that ``TextDataset.read`` gives.
        revision: branch, tag or commit on the Hub; None for the latest, and for what is local.
        stream: leave the rows on the Hub and fetch them as they are asked for; see ``producer.hub.ParquetTable``.

    Raises:
        UserError: it cannot be found or read, or has no such split or text column, or no rows.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it has to say comes with its exceptions, in one line
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a README beside the data need be no card
    path = Path(os.path.expanduser(dataset))  # pathlib's fails for a user that is not there
    with _explained(path):
        there = path.exists()
    if there:
        if revision is not None or stream:
            raise UserError(
                f"{dataset} is on this machine",
                "--revision and --stream are for datasets on the Hub",
                "leave them out, or name another dataset",
            )
        path = path.resolve()
        with _explained(path):
            revision = _revision(path)
        splits: Mapping[str, Any] = _open_local(path, config, revision)
        dataset = str(path)
    elif path.is_absolute() or dataset.startswith(("./", "../", "~")) or path.suffix.lower() in _SUFFIXES:
        raise UserError(f"no dataset {dataset}", "expected a Hub id, a file or a folder", f"look: ls {path.parent}")
    else:
        splits, dataset, revision = open_hub(dataset, config, revision, stream=stream)
    split = _choose(split, list(splits), "train", "split", dataset)
    if not re.fullmatch(SPLIT, split):
        raise UserError(f"{split!r} is no name of a split", "it begins the names of files: letters, digits, _, . and -")
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
    missing = [name for name in columns if name not in features]
    if missing:
        raise UserError(
            f"no column {missing[0]!r} in {dataset}",
            f"there: {', '.join(features)}",
            "choose others with --keep-columns",
        )
    needed = table.select_columns([*{column: None} | dict.fromkeys(columns)]).with_format("arrow")
    return TextDataset(dataset, config, split, column, revision, needed, columns)


def dataset_of(job: Job) -> TextDataset:
    """The dataset that a job was begun with, as it was then.

    Raises:
        UserError: it is gone, or holds something else by now.
    """
    revision = None if Path(job.dataset).is_absolute() else job.revision
    texts = open_dataset(
        job.dataset,
        config=job.config,
        split=job.split,
        column=job.column,
        columns=job.columns,
        revision=revision,
        stream=job.stream,
    )
    if texts.revision != job.revision:
        raise UserError(
            f"{job.dataset} was changed (its revision is {texts.revision[:16]})",
            f"job {job.id} embedded revision {job.revision[:16]}",
            "bring that one back, or run the producer again for a new job",
        )
    if min(job.limit or texts.rows, texts.rows) != job.rows:
        raise UserError(
            f"{job.dataset} has {texts.rows:,} rows",
            f"job {job.id} has {job.rows:,} of them" + (f" with the limit {job.limit:,}" if job.limit else ""),
            "run the producer again for a new job",
        )
    return texts


def _decoded(column: pa.ChunkedArray) -> list[str | None]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        return [None if text is None else text.decode("utf-8", errors="replace") for text in raw.to_pylist()]


_JSON = {".json", ".jsonl", ".ndjson"}
_SUFFIXES = _JSON | {".csv", ".tsv", ".parquet", ".txt", ".arrow", ".gz", ".zst", ".xz"}


def _choose(
    wanted: str | None, there: list[str], usual: str, option: str, dataset: str, among: list[str] | None = None
) -> str:
    if wanted in there:
        return wanted
    if wanted is None and (usual in there or len(there) == 1):
        return usual if usual in there else there[0]
    what = f"no {option} {wanted!r} in" if wanted else f"several choices of {option} in"
    raise UserError(f"{what} {dataset}", f"there: {', '.join(among or there)}", f"choose one with --{option}")


def _open_local(path: Path, config: str | None, revision: str) -> dict[str, datasets.Dataset]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(path)
        except Exception as error:
            raise UserError(
                f"{path} is empty or cannot be read ({reason(error)})", "expected what save_to_disk wrote, with rows"
            ) from None
        if isinstance(saved, datasets.DatasetDict):
            return dict(saved)
        named = re.match(r"\w+", str(saved.split or ""))  # a part of a split is saved as train[:10]
        return {named[0] if named else "train": saved}
    # datasets knows a local file again by its time; two contents of one time must not be taken for each other.
    cache = Path(datasets.config.HF_DATASETS_CACHE, "embedmill", revision)
    try:
        return _built(path, config, cache)
    except Exception as error:  # each reader has exceptions of its own
        unreadable = _unreadable(path, error)
    with contextlib.suppress(Exception):
        if mended := _without_lone_surrogates(path, cache / "mended"):
            return _built(mended, config, cache)
    raise unreadable


def _built(path: Path, config: str | None, cache: Path) -> dict[str, datasets.Dataset]:
    folder, files = (path, None) if path.is_dir() else (path.parent, glob.escape(str(path)))
    options = {"data_files": files, "cache_dir": str(cache)}
    builder = datasets.load_dataset_builder(str(folder), config, **options)
    if isinstance(builder, Csv):
        builder = datasets.load_dataset_builder(str(folder), config, **options, **_CSV)
    taken = {file for part in builder.config.data_files.values() for file in part}
    big = sum(Path(file).stat().st_size for file in taken) >= _BIG
    # A process reads whole files; one at a time reads them all in the same order.
    processes = min(len(taken), len(os.sched_getaffinity(0))) if big else 1
    builder.download_and_prepare(num_proc=processes if processes > 1 else None)
    left = [file.name for file in _files(path) if _SUFFIXES & set(file.suffixes) and str(file) not in taken]
    if left:
        _log.warning("%s: one kind of files makes the dataset; left out: %s", path, ", ".join(left[:10]))
    return dict(builder.as_dataset())


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is empty or cannot be read ({reason(error.__cause__ or error)})",
        "expected csv, tsv, json, jsonl, parquet or text files with rows, in UTF-8",
        "rename the folder: its name reads as a pattern" if path.is_dir() and glob.has_magic(str(path)) else "",
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # a UnicodeError for a file's name
        raise UserError(
            f"{ascii(str(path))[:300]} cannot be read ({reason(error)})",
            "expected files that you may read, with names in UTF-8",
        ) from None


def _revision(path: Path) -> str:
    """A hash over a local dataset's files: their names inside it and their bytes."""
    digest = hashlib.sha256()
    for file in _files(path):
        name = file.name if file == path else file.relative_to(path)
        digest.update(f"{name}\0{sha256_of(file)}\0".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """The file itself; or a folder's files, in order, without hidden ones."""
    if path.is_file():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)", re.DOTALL
)
"""A JSON escape sequence: a surrogate pair, half of one, or any other."""


def _without_lone_surrogates(path: Path, folder: Path) -> Path | None:
    """A copy in ``folder`` with U+FFFD for each half of a surrogate pair in JSON files; None where there is no half.

    JSON can spell half of a pair, which no UTF-8 text can hold. One such row must not cost the file: same rows, same
    order. What is no JSON is linked to.
    """
    copy = folder / path.name
    if copy.exists():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        mended = False
        for file in _files(path):
            target = Path(scratch, path.name, file.relative_to(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _JSON & set(file.suffixes):
                target.symlink_to(file)
                continue
            opened = gzip.open if file.suffix == ".gz" else open
            with opened(file, "rb") as source, opened(target, "wb") as written:
                for line in source:
                    clean = _ESCAPE.sub(_replaced, line)
                    mended |= clean != line
                    written.write(clean)
        if not mended:
            return None
        return Path(scratch, path.name).rename(copy)


def _replaced(escape: re.Match[bytes]) -> bytes:
    """Half a pair is six bytes long and begins ``\\ud8`` to ``\\udf``; all else stays as it is."""
    half = len(escape[0]) == 6 and escape[0][1:3].lower() == b"ud"
    return rb"\ufffd" if half else escape[0]
