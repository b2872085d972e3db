"""What reads local files, strictly: what each kind's reader does, and the readers of text, Parquet and Arrow files."""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from contract.errors import UserError, reason
from contract.job import CsvDialect
from producer.bytestream import check_utf8, opened
from producer.columns import Columns, is_text, plain_type, text_columns, type_at, values_at

_ROWS = 1000
"""Rows of a record batch."""


class Reader(ABC):
    """Reads the files of one dataset, all of one kind."""

    typed = True
    """Whether every row has the types of ``schema``."""
    has_features = False
    """Whether a schema may name features of ``datasets``."""
    dialect: CsvDialect | None = None
    """How csv files are written; None for all others."""
    replaced = 0
    """Halves of surrogate pairs that became U+FFFD, as far as rows were read."""

    @abstractmethod
    def schema(self, file: Path) -> pa.Schema:
        """The columns that a file has; none for an empty file."""

    def text_columns(self, files: Sequence[Path], schema: pa.Schema) -> list[str]:
        """The columns that may be the text column where none is named."""
        return text_columns(schema)

    def check_header(self, files: Sequence[Path], asked: Sequence[str]) -> None:  # noqa: B027 (most have no header)
        """See that what names the columns of these files is no row, unless it has those that are asked for."""

    def needed(self, files: Sequence[Path], schema: pa.Schema, columns: Columns) -> pa.Schema:
        """The schema with which ``batches`` gives the needed columns of these files."""
        return pa.schema([(name, plain_type(type_at(schema, name) or pa.string())) for name in columns.needed])

    @abstractmethod
    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """A file's rows, with the columns of ``schema``, which may be dotted paths."""


class TextReader(Reader):
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


class ArrowReader(Reader):
    """Reads Parquet and Arrow files."""

    has_features = True

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
        for index, value in enumerate(raw.to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError as wrong:
                raise UserError(
                    f"{file}: row {first + index} has {value[wrong.start : wrong.start + 4]!r}, which is no UTF-8, "
                    f"in column {name}",
                    "expected UTF-8",
                    "correct the row, or leave it out",
                ) from None
        raise error


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn the errors of Arrow's readers into a ``UserError`` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{file} is empty or cannot be read ({reason(error)})", "expected a whole file that its suffix names"
        ) from None


def _arrow(file: Path) -> Any:
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_stream(mapped)
