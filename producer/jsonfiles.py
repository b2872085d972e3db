"""json and jsonl files: an object a line, or an array of objects; only the needed values are looked at."""

import codecs
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from contract.errors import UserError, reason
from producer.bytestream import check_utf8, no_utf8, opened
from producer.columns import Columns
from producer.readers import Reader

_FIRST = 10_000
"""Rows that say which columns there are."""
_ROWS = 1000
"""Rows of a record batch."""
_CHUNK = 1 << 20
_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
_TOKEN = 16
"""Characters of the longest token but a string: what is wrong within them may be cut off."""


class JsonReader(Reader):
    """Reads the json files of one dataset. JSON can spell half of a surrogate pair, which no UTF-8 text can hold."""

    typed = False  # every value of a text is looked at instead

    def __init__(self) -> None:
        self._texts: tuple[str, ...] = ()
        """Columns that must be strings or null, by name or dotted path."""
        self._kept: list[str] = []
        """Further columns, of any type."""

    def schema(self, file: Path) -> pa.Schema:
        """The columns of the first rows: a type that is null or struct is that of all values seen."""
        rows = [row for _, row in itertools.islice(_objects(file, False, quiet=True), _FIRST)]
        return pa.schema(list(_struct(rows)))

    def needed(self, files: Sequence[Path], schema: pa.Schema, columns: Columns) -> pa.Schema:
        """Texts are strings; a kept column has the type that its values have over all rows.

        Raises:
            UserError: a column has values of several types.
        """
        self._texts, self._kept = columns.texts, [name for name in columns.kept if name not in columns.texts]
        found: dict[str, pa.Schema] = {}
        for file in files if self._kept else ():
            for rows in _chunked(_objects(file, True, quiet=True)):
                for name in self._kept:
                    values = [self._clean(_at(row, name)) for _, row in rows]
                    try:
                        kind = pa.schema([("value", pa.array(values).type)])
                        found[name] = pa.unify_schemas([found.get(name, kind), kind], promote_options="permissive")
                    except (pa.ArrowException, OverflowError) as error:
                        raise UserError(
                            f"column {name!r} of {file} has values of several types ({reason(error)})",
                            "a column that is kept has one type",
                            "leave it out of --keep-columns",
                        ) from None
        types = dict.fromkeys(columns.needed, pa.string())
        return pa.schema(list((types | {name: kind.field("value").type for name, kind in found.items()}).items()))

    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows, with the columns of ``schema``.

        Raises:
            UserError: it is no JSON, or has another value than a string or null for a text.
        """
        for rows in _chunked(_objects(file, bool(self._kept))):
            columns = []
            for field in schema:
                values = [_at(row, field.name) for _, row in rows]
                if field.name in self._texts:
                    self._check(file, field.name, rows, values)
                try:
                    columns.append(pa.array(values, field.type))
                except UnicodeEncodeError:
                    columns.append(pa.array([self._clean(value) for value in values], field.type))
            yield pa.record_batch(columns, schema=schema)

    def _check(self, file: Path, name: str, rows: Sequence[tuple[int, Any]], values: Sequence[Any]) -> None:
        for (index, _), value in zip(rows, values, strict=True):
            if value is not None and type(value) is not str:
                raise UserError(
                    f"{file}: row {index} has {_KINDS.get(type(value), 'a value')}, {json.dumps(value)[:60]}, "
                    f"in column {name}",
                    "expected a string or null",
                    "correct the row, or choose another with --text-column",
                )

    def _clean(self, value: Any) -> Any:
        """The value with U+FFFD for each half of a surrogate pair."""
        if isinstance(value, dict):
            return {self._clean(key): self._clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        if not isinstance(value, str) or value.isascii():
            return value
        self.replaced += (halves := sum("\ud800" <= character <= "\udfff" for character in value))
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if halves else value


def _objects(file: Path, exact: bool, *, quiet: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects with their row numbers, from 0.

    Args:
        file: what to read.
        exact: have integers of any size as they are; orjson makes those beyond 64 bits floats.
        quiet: without a progress bar.
    """
    with opened(file, quiet=quiet) as source:
        start = source.peek(_CHUNK).lstrip()[:1]
        values = _array(file, source) if start == b"[" else _lines(file, source, exact)
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                raise UserError(
                    f"{file}: row {index} is {_KINDS.get(type(value), 'null')}, {json.dumps(value)[:60]}",
                    "expected an object a line, or an array of objects",
                )
            yield index, value


def _lines(file: Path, source: io.BufferedReader, exact: bool) -> Iterator[Any]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8")) if exact else orjson.loads(line)
        except UnicodeDecodeError as error:
            raise no_utf8(file, number, error) from None
        except ValueError:
            value = _odd(file, number, line)
        yield value


def _odd(file: Path, number: int, line: bytes) -> Any:
    """What orjson takes for no JSON and Python's json reads: NaN, halves of surrogate pairs, deep nesting."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise no_utf8(file, number, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}, line {number}: no JSON ({reason(error)})", "expected an object a line, or an array of objects"
        ) from None


def _array(file: Path, source: io.BufferedReader) -> Iterator[Any]:
    """The items of an array, one after the other: json.load would hold them all."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")().decode
    text, position, end, first, count = "[", 1, False, True, 0
    source.read(source.peek(_CHUNK).index(b"[") + 1)
    while True:
        try:
            start = _after_space(text, position)
            if first and text[start] == "]":
                mark, stop = "]", start
            else:
                value, stop = decoder.raw_decode(text, start)
                stop = _after_space(text, stop)
                mark = text[stop]
        except (IndexError, json.JSONDecodeError, RecursionError) as error:
            # What was cut off by the end of what is read so far goes on in the next bytes.
            cut = isinstance(error, IndexError) or "Unterminated" in str(error) or error.pos > len(text) - _TOKEN  # type: ignore[union-attr]
            if end or not cut:
                raise _no_array(file, count, reason(error)) from None
            chunk = source.read(max(_CHUNK, len(text)))
            end = not chunk
            try:
                text, position = text[position:] + decode(chunk, end), 0
            except UnicodeDecodeError:
                check_utf8(file)
                raise
            continue
        if mark == "]" and first:
            break
        yield value
        position, first, count = stop + 1, False, count + 1
        if mark == "]":
            break
        if mark != ",":
            raise _no_array(file, count, f"{mark!r} follows an item")
    if (text[stop + 1 :] + decode(source.read())).strip():
        raise _no_array(file, count, "there is more after the array")


def _no_array(file: Path, row: int, why: str) -> UserError:
    return UserError(f"{file}, row {row}: no JSON ({why})", "expected an object a line, or an array of objects")


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _at(row: Any, path: str) -> Any:
    """The value of a column, or of a field of a nested one; a column that is literally named so wins."""
    if path in row:
        return row[path]
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _chunked(rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    while chunk := list(itertools.islice(rows, _ROWS)):
        yield chunk


def _struct(rows: Sequence[dict[str, Any]]) -> pa.StructType:
    """The fields of these objects. A field with values of several types is shown as binary, which is no text."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.struct(
        [(name.encode("utf-8", "replace").decode(), _kind([row.get(name) for row in rows])) for name in names]
    )


def _kind(values: Sequence[Any]) -> pa.DataType:
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if kinds == {str}:
        return pa.string()
    if kinds == {dict}:
        return _struct(present)
    try:
        return pa.infer_type(present)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return pa.binary()
