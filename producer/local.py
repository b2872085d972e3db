"""Datasets on this machine: which names mean one, and what files, or a folder of ``save_to_disk``, hold."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from contract.errors import UserError, reason
from contract.job import CsvDialect
from contract.words import count
from producer.arrow_cache import cached
from producer.columns import (
    Columns,
    choose_split,
    choose_text,
    columns_in,
    features_of,
    plain_type,
    shortened,
    text_columns,
    type_at,
)
from producer.csv_dialect import dialect_of
from producer.csvfiles import CsvReader, check_header
from producer.files import COMPRESSIONS, KINDS, LocalFiles, is_pattern, kind_of
from producer.hashing import hashing
from producer.jsonfiles import JsonReader
from producer.library import library
from producer.readers import Reader, reader_of
from producer.remote import SCHEMES, downloaded
from producer.texts import NOTHING, CsvOptions, DatasetSource, TextDataset

if TYPE_CHECKING:
    import datasets

_TYPED = ("parquet", "arrow")
"""Kinds of files whose schema may name features of ``datasets``."""

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
        dialect = dialect_of(files, found.dataset, csv.separator, csv.header) if found.kind == "csv" else None
        schema, columns = _columns_of(found, split, text, kept, dialect)
        reader, needed = _reader_of(found, files, schema, columns, dialect)
        table = cached(reader, files, needed, revision, dialect.model_dump() if dialect else None)
        if isinstance(reader, JsonReader) and reader.halves and len(table):
            halves = count(reader.halves, "half of a surrogate pair", "halves of surrogate pairs")
            _log.warning("%s: %s became U+FFFD", found.dataset, halves)
        if not len(table):
            raise _no_rows(found, split)
        features = features_of(schema, kept) if found.kind in _TYPED else {}
        return TextDataset(
            found.dataset, source.config, split, columns.text, revision(), table, kept, dialect, features
        )


def _columns_of(
    found: LocalFiles, split: str, text: str | None, kept: tuple[str, ...], dialect: CsvDialect | None
) -> tuple[pa.Schema, Columns]:
    """The schema of a split's files, and the columns of it that are needed."""
    files = found.splits[split]
    reader = reader_of(found.kind, (), (), dialect)
    first, schema = _first_schema(reader, files)
    if not len(schema):
        raise _no_rows(found, split)
    candidates = text_columns(schema)
    if isinstance(reader, CsvReader):
        for file in files:
            if reader.dialect.header and reader.names(file):
                check_header(reader, file, columns_in(text))
        candidates = reader.texts(first) if text is None else []
    columns = Columns(choose_text(candidates, schema, found.dataset) if text is None else text, kept)
    columns.check(schema, found.dataset, typed=found.kind != "json")  # whose reader looks at every value
    if dialect:
        names = ", ".join(map(shortened, schema.names))
        _log.info("%s: separator %r, columns %s", first.name, dialect.separator, names)
    return schema, columns


def _first_schema(reader: Reader, files: Sequence[Path]) -> tuple[Path, pa.Schema]:
    """The first file that has columns, and its schema; an empty one where none has any."""
    for file in files:
        if len(schema := reader.schema(file)):
            return file, schema
    return files[-1], pa.schema([])


def _reader_of(
    found: LocalFiles, files: Sequence[Path], schema: pa.Schema, columns: Columns, dialect: CsvDialect | None
) -> tuple[Reader, pa.Schema]:
    """What reads the needed columns of these files, and the schema that they have then."""
    kinds = {name: plain_type(type_at(schema, name) or pa.string()) for name in columns.needed}
    reader = reader_of(found.kind, columns.texts, columns.kept, dialect)
    if isinstance(reader, JsonReader):
        kinds |= reader.kept_types(files) | dict.fromkeys(columns.texts, pa.string())
    return reader, pa.schema(list(kinds.items()))


def _no_rows(found: LocalFiles, split: str) -> UserError:
    return UserError(f"{found.dataset} is empty or cannot be read: it has no rows in split {split!r}", NOTHING)
