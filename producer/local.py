"""The texts of local files: their columns are chosen, and the needed ones read into the cache."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from contract.errors import UserError
from contract.words import count
from producer.arrow_cache import cached
from producer.columns import Columns, choose_split, choose_text, features_of
from producer.csv_dialect import dialect_of
from producer.csvfiles import CsvReader
from producer.files import LocalFiles
from producer.hashing import hashing
from producer.jsonfiles import JsonReader
from producer.readers import ArrowReader, Reader, TextReader
from producer.texts import NOTHING, CsvOptions, DatasetSource, TextDataset

_log = logging.getLogger("embedmill.producer")


def open_files(found: LocalFiles, source: DatasetSource) -> TextDataset:
    """The texts of local files, read into the cache unless they are there.

    Args:
        found: the files.
        source: what the user says of them.

    Raises:
        UserError: they cannot be read, or have no such split or column, or no rows.
    """
    split = choose_split(source.split, list(found.splits), found.dataset)
    files = found.splits[split]
    with hashing(found.root, found.all) as revision:
        reader = _reader_of(found, files, source.csv)
        schema = next(filter(len, map(reader.schema, files)), None)
        if schema is None:
            raise _no_rows(found, split)
        columns = _columns_of(source, found.dataset, files, reader, schema)
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
            source.columns,
            reader.dialect,
            features_of(schema, source.columns) if reader.has_features else {},
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
    source: DatasetSource, dataset: str, files: Sequence[Path], reader: Reader, schema: pa.Schema
) -> Columns:
    """The columns of these files that are needed."""
    text = source.text
    reader.check_header(files, Columns(text, source.columns).texts if text is not None else ())
    if text is None:
        text = choose_text(reader.text_columns(files, schema), schema, dataset)
    columns = Columns(text, source.columns)
    columns.check(schema, dataset, typed=reader.typed)
    return columns


def _no_rows(found: LocalFiles, split: str) -> UserError:
    return UserError(f"{found.dataset} is empty or cannot be read: it has no rows in split {split!r}", NOTHING)
