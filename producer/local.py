"""Datasets on this machine: which names mean one, and what files, or a folder of ``save_to_disk``, hold."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from contract.errors import UserError, reason
from contract.words import count
from producer.arrow_cache import cached
from producer.columns import Columns, choose_split, choose_text, features_of
from producer.csv_dialect import dialect_of
from producer.csvfiles import CsvReader
from producer.files import COMPRESSIONS, KINDS, LocalFiles, is_pattern, kind_of
from producer.hashing import hashing
from producer.jsonfiles import JsonReader
from producer.library import library
from producer.readers import ArrowReader, Reader, TextReader
from producer.remote import SCHEMES, downloaded
from producer.texts import NOTHING, CsvOptions, DatasetSource, TextDataset

if TYPE_CHECKING:
    import datasets

_log = logging.getLogger("embedmill.producer")


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
    if is_pattern(dataset):
        return os.path.abspath(path), Path(os.path.abspath(path))
    if "://" in dataset:
        raise UserError(f"{dataset} is no address that can be read", f"expected one of {', '.join(SCHEMES)}")
    known = path.suffix.lower() in (*KINDS, *COMPRESSIONS) or kind_of(path.name)[0]
    if path.is_absolute() or dataset.startswith(("./", "../", "~")) or known or any(each in dataset for each in "*?["):
        raise UserError(f"no dataset {dataset}", "expected a Hub id, a file or a folder", f"look: ls {path.parent}")
    return None


def open_saved(path: Path) -> "dict[str, datasets.Dataset]":
    """The splits that ``save_to_disk`` wrote.

    Raises:
        UserError: the folder cannot be read.
    """
    datasets = library()
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


def open_files(
    found: LocalFiles, source: DatasetSource, text: str | None, kept: tuple[str, ...], csv: CsvOptions
) -> TextDataset:
    """The texts of local files, read into the cache unless they are there.

    Args:
        found: the files.
        source: what the user says of them.
        text: the template of a row's text; None for the text column.
        kept: further columns.
        csv: how csv files are written.

    Raises:
        UserError: they cannot be read, or have no such split or column, or no rows.
    """
    split = choose_split(source.split, list(found.splits), found.dataset)
    files = found.splits[split]
    with hashing(found.root, found.all) as revision:
        reader = _reader_of(found, files, csv)
        schema = next(filter(len, map(reader.schema, files)), None)
        if schema is None:
            raise _no_rows(found, split)
        columns = _columns_of(found.dataset, files, reader, schema, text, kept)
        table = cached(reader, files, reader.needed(files, schema, columns), revision)
        if not len(table):
            raise _no_rows(found, split)
        if reader.replaced:
            halves = count(reader.replaced, "half of a surrogate pair", "halves of surrogate pairs")
            _log.warning("%s: %s became U+FFFD", found.dataset, halves)
        return TextDataset(
            found.dataset,
            source.config,
            split,
            columns.text,
            revision(),
            table,
            kept,
            reader.dialect,
            features_of(schema, kept) if reader.has_features else {},
        )


def _reader_of(found: LocalFiles, files: Sequence[Path], csv: CsvOptions) -> Reader:
    """What reads these files."""
    if found.kind == "csv":
        return CsvReader(dialect_of(files, found.dataset, csv.separator, csv.header))
    return READERS[found.kind]()


READERS: dict[str, Callable[[], Reader]] = {
    "json": JsonReader,
    "text": TextReader,
    "parquet": ArrowReader,
    "arrow": ArrowReader,
}
"""Of each kind of ``producer.files.KINDS`` but csv, whose reader needs a dialect too."""


def _columns_of(
    dataset: str, files: Sequence[Path], reader: Reader, schema: pa.Schema, text: str | None, kept: tuple[str, ...]
) -> Columns:
    """The columns of these files that are needed."""
    reader.check_header(files, Columns(text, kept).texts if text is not None else ())
    if text is None:
        text = choose_text(reader.text_columns(files, schema), schema, dataset)
    columns = Columns(text, kept)
    columns.check(schema, dataset, typed=reader.typed)
    return columns


def _no_rows(found: LocalFiles, split: str) -> UserError:
    return UserError(f"{found.dataset} is empty or cannot be read: it has no rows in split {split!r}", NOTHING)
