"""The needed columns of local files, written once to an Arrow file in the cache and memory-mapped from then on."""

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.errors import UserError, reason
from producer.bytestream import check_utf8, opened
from producer.csvfiles import CsvReader
from producer.jsonfiles import JsonReader

_ROWS = 1000
"""Rows of a record batch."""

_log = logging.getLogger("embedmill.producer")


class Reader(Protocol):
    """Reads the files of one kind."""

    def schema(self, file: Path) -> pa.Schema:
        """The columns that a file has."""

    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """A file's rows, with the columns of ``schema``, which may be dotted paths."""


class TextReader:
    """Reads text files: a line is a row, and the column is ``text``."""

    def schema(self, file: Path) -> pa.Schema:
        return pa.schema([("text", pa.string())])

    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        lines: list[str] = []
        with opened(file) as source:
            try:
                for line in _text_lines(source):
                    lines.append(line)
                    if len(lines) == _ROWS:
                        yield pa.record_batch([pa.array(lines, pa.string())] * len(schema), schema=schema)
                        lines = []
            except UnicodeDecodeError:
                check_utf8(file)
                raise
        if lines:
            yield pa.record_batch([pa.array(lines, pa.string())] * len(schema), schema=schema)


class ArrowReader:
    """Reads Parquet and Arrow files."""

    def schema(self, file: Path) -> pa.Schema:
        with _readable(file):
            if _is_parquet(file):
                return pq.read_schema(file)
            with _arrow(file) as reader:
                return reader.schema

    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        there, row = self.schema(file), 0
        for name in schema.names:
            if type_at(there, name) is None:
                raise UserError(f"{file} has no column {name!r}", f"there: {', '.join(there.names)}")
        with _readable(file):
            for batch in self._batches(file, schema):
                arrays = [_cast(values_at(batch, field.name), field.type) for field in schema]
                for field, values in zip(schema, arrays, strict=True):
                    _check(file, field.name, values, row)
                row += batch.num_rows
                yield pa.record_batch(arrays, schema=schema)

    def _batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        if _is_parquet(file):
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(_ROWS, columns=schema.names)
        else:
            with _arrow(file) as reader:
                if isinstance(reader, pa.RecordBatchFileReader):
                    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
                else:
                    yield from reader


class ArrowTable:
    """Rows in an Arrow file that is memory-mapped where they are asked for; pickled it is the file's name."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, rows: slice) -> pa.Table:
        start, stop, _ = rows.indices(len(self))
        return self._table.slice(start, stop - start)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowTable, (self._file,)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self._file))).read_all()


def stored(
    reader: Reader, files: Sequence[Path], schema: pa.Schema, revision: str, dialect: Mapping[str, Any] | None
) -> ArrowTable:
    """The rows of these files, read now or taken from the cache.

    Args:
        reader: what reads them.
        files: in the rows' order.
        schema: the columns that are needed, by name or dotted path, with their types.
        revision: what the dataset holds.
        dialect: what else decides how they are read.

    Raises:
        UserError: a file cannot be read.
    """
    root = os.path.commonpath([file.parent for file in files])
    key = json.dumps([[os.path.relpath(file, root) for file in files], schema.to_string(), dialect])
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    target = Path(datasets.config.HF_DATASETS_CACHE, "embedmill", revision, f"{name}.arrow")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_suffix(f".{os.getpid()}")
        try:
            with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for file in files:
                    before = sink.tell()
                    for batch in reader.batches(file, schema):
                        if batch.num_rows:
                            writer.write_batch(batch)
                    if sink.tell() == before:
                        _log.warning("%s has no rows", file)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)
    return ArrowTable(target)


def type_at(schema: pa.Schema | pa.StructType, path: str) -> pa.DataType | None:
    """The type of a column, or of a field of a nested one; a column that is literally named so wins."""
    fields = {field.name: field.type for field in schema}
    if path in fields:
        return fields[path]
    kind: pa.DataType | None = None
    for place, name in enumerate(path.split(".")):
        if place and not pa.types.is_struct(kind):
            return None
        fields = {field.name: field.type for field in kind or ()} if place else fields
        if (kind := fields.get(name)) is None:
            return None
    return kind


def values_at(table: pa.RecordBatch | pa.Table, path: str) -> pa.Array:
    """The values of a column, or of a field of a nested one, where there is one: ``type_at``."""
    if path in table.schema.names:
        values = table.column(path)
    else:
        first, *rest = path.split(".")
        values = pc.struct_field(table.column(first), rest)
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def is_text(kind: pa.DataType) -> bool:
    """Whether its values are strings, however they are laid out."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def laid_out(kind: pa.DataType) -> pa.DataType:
    """The type that values are kept as: strings as one of two types that every reader knows."""
    if not is_text(kind):
        return kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.large_string() if pa.types.is_large_string(kind) else pa.string()


def reader_of(kind: str, texts: Sequence[str], kept: Sequence[str], dialect: Any) -> Reader:
    """What reads files of this kind."""
    match kind:
        case "csv":
            return CsvReader(dialect)
        case "json":
            return JsonReader(texts, kept)
        case "text":
            return TextReader()
    return ArrowReader()


def _text_lines(source: Any) -> Iterator[str]:
    """Lines end with LF, CR LF or CR; those are no part of a text, and no other character ends one."""

    for line in io.TextIOWrapper(source, encoding="utf-8", newline=None):
        yield line.removesuffix("\n")


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values if values.type == kind else values.cast(kind)


def _check(file: Path, name: str, values: pa.Array, first: int) -> None:
    """See that strings are UTF-8: Parquet only says so."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        if not is_text(values.type):
            raise
        raw = values.cast(pa.large_binary() if pa.types.is_large_string(values.type) else pa.binary())
        for place, value in enumerate(raw.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError as wrong:
                raise UserError(
                    f"{file}: row {first + place} has {value[wrong.start : wrong.start + 4]!r}, which is no UTF-8, "
                    f"in column {name}",
                    "expected UTF-8",
                    "mend the row, or leave it out",
                ) from None
        raise error


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


class _readable:
    """Turns the errors of Arrow's readers into a ``UserError`` that names the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError | ValueError):
            raise UserError(
                f"{self._file} is empty or cannot be read ({reason(error)})",
                "expected a whole file that its suffix names",
            ) from None


def _arrow(file: Path) -> Any:
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_stream(mapped)
