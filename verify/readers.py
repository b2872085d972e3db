"""Files read as records, one reader for each kind, each from another library than the producer's.

A reader goes through a file once, holds one record or one block of records at a time, and counts every row. Only the
rows that are wanted are made into Python values.
"""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from contract.errors import UserError
from contract.job import CsvDialect
from contract.words import count
from verify.values import value_at

Record = Mapping[str, Any]
"""A row's values by column, as Python has them; of nested columns dicts and lists."""

_Raw = TypeVar("_Raw")

_CSV = "Python's csv"


class FileRows(NamedTuple):
    """The rows of one file, as one reader reads them."""

    rows: int
    """How many the file has."""
    records: dict[int, Record]
    """The wanted ones, by their index in the file."""
    reader: str
    """The library that read it, for people, such as ``Python's csv``."""


def from_csv(file: Path, wanted: Collection[int], dialect: CsvDialect) -> FileRows:
    """By Python's ``csv``. An empty cell is null. Where there is one column, an empty line is a row.

    Raises:
        UserError: the file is not UTF-8, or a row has more or fewer fields than the first.
    """
    csv.field_size_limit(sys.maxsize)
    with _open_text(file) as opened:
        rows = csv.reader(opened, delimiter=dialect.separator, strict=True)
        blank, first = 0, next(rows, None)
        while first == []:
            blank, first = blank + 1, next(rows, None)
        if first is None:
            return FileRows(0, {}, _CSV)
        width, header = len(first), dialect.header
        names = first if header else [f"column_{number}" for number in range(1, width + 1)]

        def records() -> Iterator[list[str]]:
            if not header:
                yield from [[""]] * (blank if width == 1 else 0)
                yield first
            for row in rows:
                if len(row) == width:
                    yield row
                elif not row and width == 1:
                    yield [""]
                elif row:
                    raise UserError(f"{file}, line {rows.line_num} has {count(len(row), 'field')}", f"expected {width}")

        return _take(
            records(), wanted, lambda row: {name: cell or None for name, cell in zip(names, row, strict=True)}, _CSV
        )


def from_json(file: Path, wanted: Collection[int], columns: Sequence[str], kept: Sequence[str]) -> FileRows:
    """An object a line, or one array of objects, which is read whole into memory.

    By the library that the producer does not use for them: of arrays, and where columns are kept, that is orjson, else
    Python's ``json``. What orjson does not take, such as NaN and halves of surrogate pairs, is Python's in both. Half
    of a surrogate pair becomes U+FFFD.

    Raises:
        UserError: the file is not UTF-8, or a row is no object.
    """
    with _open_bytes(file) as opened:
        start = opened.read(1 << 16).lstrip()[:1]
    with _open_bytes(file) as opened:
        if start == b"[":
            rows = _by_orjson(opened.read())
            return _take(rows, wanted, lambda value: _object(file, value), "orjson")
        parse, reader = (_by_orjson, "orjson") if kept else (json.loads, "Python's json")
        lines = (line for line in opened if line.strip())
        return _take(lines, wanted, lambda line: _object(file, parse(line)), reader)


def _by_orjson(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        return json.loads(raw)


def from_text(file: Path, wanted: Collection[int], columns: Sequence[str], kept: Sequence[str]) -> FileRows:
    """Bytes cut at LF, CR LF and CR, where the producer's reader is Python's text files. An empty line is a row too.

    Raises:
        UserError: the file is not UTF-8.
    """
    with _open_bytes(file) as opened:
        lines = (part for line in opened for part in line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"))
        return _take(lines, wanted, lambda line: {"text": line.decode("utf-8")}, "bytes cut into lines")


def from_parquet(file: Path, wanted: Collection[int], columns: Sequence[str], kept: Sequence[str]) -> FileRows:
    """By DuckDB; by pyarrow where a column's type is one that DuckDB lacks, such as durations, and where two columns'
    names differ in case only, which DuckDB does not tell apart.

    Raises:
        UserError: the file cannot be read.
    """
    schema = pq.read_schema(file)
    folded = Counter(name.lower() for name in schema.names)
    by_duckdb = [
        name
        for name in columns
        if name in schema.names and folded[name.lower()] == 1 and _known(schema.field(name).type)
    ]
    pattern = glob.escape(str(file))
    with duckdb.connect() as connection:
        (rows,) = connection.execute("SELECT num_rows FROM parquet_file_metadata(?)", [pattern]).fetchall()[0]
        names = ", ".join(['file_row_number AS "\ufdd0"', *('"' + name.replace('"', '""') + '"' for name in by_duckdb)])
        query = f"SELECT {names} FROM read_parquet(?, file_row_number=true) WHERE file_row_number IN (SELECT unnest(?))"
        found = connection.sql(query, params=[pattern, sorted(wanted)]).to_arrow_table().combine_chunks()
    numbers = found.column(0).to_pylist()
    columns_found = {name: column.combine_chunks() for name, column in zip(by_duckdb, found.columns[1:], strict=True)}
    records: dict[int, Record] = {
        number: {name: value_at(values, index) for name, values in columns_found.items()}
        for index, number in enumerate(numbers)
    }
    by_pyarrow = [name for name in columns if name in schema.names and name not in by_duckdb]
    if by_pyarrow:
        batches = pq.ParquetFile(file).iter_batches(columns=by_pyarrow)
        for number, record in _from_batches(batches, wanted).records.items():
            records[number] = {**records[number], **record}
    return FileRows(int(rows), records, "DuckDB and pyarrow" if by_pyarrow else "DuckDB")


def from_arrow(file: Path, wanted: Collection[int], columns: Sequence[str], kept: Sequence[str]) -> FileRows:
    """By pyarrow, straight from the file, which is a stream as ``save_to_disk`` writes it, or an Arrow file."""
    with pa.memory_map(str(file)) as source:
        magic = source.read(6) == b"ARROW1"
        source.seek(0)
        if magic:
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        return _from_batches(
            (batch.select([c for c in columns if c in batch.schema.names]) for batch in batches), wanted
        )


def _from_batches(batches: Iterable[pa.RecordBatch], wanted: Collection[int]) -> FileRows:
    start, in_order = 0, sorted(wanted)
    records: dict[int, Record] = {}
    for batch in batches:
        end = start + len(batch)
        for number in in_order[bisect_left(in_order, start) : bisect_left(in_order, end)]:
            records[number] = {name: value_at(batch.column(name), number - start) for name in batch.schema.names}
        start = end
    return FileRows(start, records, "pyarrow")


def _take(raw: Iterable[_Raw], wanted: Collection[int], record: Callable[[_Raw], Record], reader: str) -> FileRows:
    chosen, records, number = set(wanted), {}, -1
    for number, value in enumerate(raw):
        if number in chosen:
            records[number] = record(value)
    return FileRows(number + 1, records, reader)


def _object(file: Path, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{file} has a row that is {type(value).__name__}", "expected an object in each row")
    return {name: _whole(inner) for name, inner in value.items()}


def _whole(value: Any) -> Any:
    """The value with U+FFFD in place of each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return value


_DUCKDB = (
    *("is_boolean", "is_integer", "is_float32", "is_float64", "is_date32", "is_decimal128", "is_string"),
    *("is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view"),
)


def _known(kind: pa.DataType) -> bool:
    """Whether DuckDB gives the values of a Parquet column of this type as pyarrow does."""
    if pa.types.is_dictionary(kind):
        return _known(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _known(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_known(field.type) for field in kind)
    return any(getattr(pa.types, test)(kind) for test in _DUCKDB)


@contextmanager
def _open_text(file: Path) -> Iterator[IO[str]]:
    """A file's text, its line ends as they are."""
    with _open_bytes(file) as opened, io.TextIOWrapper(opened, encoding="utf-8", newline="") as text:
        yield text


@contextmanager
def _open_bytes(file: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by its suffix, without a byte order mark at their start."""
    with _OPEN.get(file.suffix.lower(), Path.open)(file, "rb") as opened:
        if opened.peek(3).startswith(codecs.BOM_UTF8):
            opened.read(len(codecs.BOM_UTF8))
        yield cast(IO[bytes], opened)


def _open_zstandard(file: Path, mode: str) -> IO[bytes]:
    return io.BufferedReader(zstandard.open(file, mode))


_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstandard}
