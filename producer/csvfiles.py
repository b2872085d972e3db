"""csv files, strictly: the separator, the columns, and rows that are as many fields as the header, or refused."""

import contextlib
import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from contract.errors import UserError, reason
from contract.job import CsvDialect
from producer.bytestream import check_utf8, opened

SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 1 << 20
_SAMPLED_ROWS = 1000
_CELLS = 10_000
_BLOCKS = (1 << 20, 1 << 25, (1 << 31) - 1)
"""Bytes that are parsed at once. A row must fit, so the others are for files with enormous ones."""

_VALUE = re.compile(r"\s*([-+]?(\d[\d_,.]*|\.\d+)(e[-+]?\d+)?%?|true|false|nan)?\s*", re.IGNORECASE)
"""A cell that is no text: a number, a boolean, nothing."""


class _Broken(ValueError):
    """Quotes or line ends where none may be."""


class CsvReader(NamedTuple):
    """Reads the csv files of one dataset, all of one dialect."""

    dialect: CsvDialect

    def schema(self, file: Path) -> pa.Schema:
        """The columns, all of them text; none for an empty file."""
        return pa.schema([(name, pa.string()) for name in self.names(file)])

    def names(self, file: Path) -> list[str]:
        row = next(_rows(file, self.dialect.separator), [])
        if self.dialect.header:
            return row
        return [f"column_{place}" for place in range(1, len(row) + 1)]

    def texts(self, file: Path) -> list[str]:
        """The columns whose first cells are not all numbers, booleans or empty."""
        names, found = self.names(file), set()
        for row in itertools.islice(_rows(file, self.dialect.separator), int(self.dialect.header), _CELLS):
            found |= {name for name, cell in zip(names, row, strict=False) if not _VALUE.fullmatch(cell)}
            if len(found) == len(names):
                break
        return [name for name in names if name in found]

    def batches(self, file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows, with the columns of ``schema``.

        Raises:
            UserError: a row has another number of fields than the header, or is not in UTF-8, or a quote is not closed.
        """
        names = self.names(file)
        missing = [name for name in schema.names if name not in names]
        if names and missing:
            raise UserError(f"{file} has no column {missing[0]!r}", f"there: {', '.join(names)}")
        done = 0
        for block in _BLOCKS if names else ():
            try:
                for batch in self._parsed(file, names, schema, block):
                    if batch.num_rows > done:
                        yield batch.slice(done)
                    done = max(0, done - batch.num_rows)
                return
            except (pa.ArrowInvalid, _Broken) as error:
                if "straddling" in str(error) and block != _BLOCKS[-1]:
                    continue
                raise self._refusal(file, len(names), error) from None

    def _parsed(self, file: Path, names: list[str], schema: pa.Schema, block: int) -> Iterator[pa.RecordBatch]:
        inner = [f"c{place}" for place in range(len(names))]  # names may come twice
        wanted = [inner[names.index(name)] for name in schema.names]
        with opened(file, quiet=block != _BLOCKS[0]) as source:
            reader = pc.open_csv(
                _Quotes(source, self.dialect.separator),
                read_options=pc.ReadOptions(column_names=inner, block_size=block),
                parse_options=pc.ParseOptions(
                    delimiter=self.dialect.separator, newlines_in_values=True, ignore_empty_lines=len(names) > 1
                ),
                convert_options=pc.ConvertOptions(
                    column_types=dict.fromkeys(inner, pa.string()),
                    include_columns=wanted,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
            header = self.dialect.header
            for batch in reader:
                if header and batch.num_rows:
                    blank = batch.column(0).is_null().to_pylist() if len(names) == 1 else [False]
                    if False not in blank:
                        continue
                    batch, header = batch.slice(blank.index(False) + 1), False
                yield pa.record_batch(batch.columns, schema=schema)

    def _refusal(self, file: Path, count: int, error: Exception) -> UserError:
        if "UTF8" in str(error):
            check_utf8(file)
        separator = self.dialect.separator
        line, found = 1, ""
        with opened(file, quiet=True) as source, _any_size():
            reader = csv.reader(_text(source), delimiter=separator, strict=True)
            try:
                for row in reader:
                    if row and len(row) != count:  # a blank line is no row, or that of one column
                        found = f"found {_fields(len(row))}, separated by {separator!r}"
                        break
                    line = reader.line_num + 1
            except csv.Error as wrong:
                found = f"a quote is not closed, or followed by more than {separator!r} ({wrong})"
        if not found and isinstance(error, _Broken):
            return UserError(
                f"{file}: {error}", "expected one kind of line ends; others only in quotes", "mend the file"
            )
        if not found:
            return UserError(f"{file} cannot be read ({reason(error)})", f"expected {_fields(count)} a row")
        return UserError(
            f"{file}, line {line}: {found}",
            f"expected {_fields(count)}, as in the first row",
            "mend the row: a text with separators, quotes or line ends stands in quotes, its quotes doubled; "
            "or see --separator",
        )


class _Quotes(io.RawIOBase):
    """Passes bytes on as long as quotes are where they belong: pyarrow takes what follows a closing quote, and a quote
    that is never closed, for text. A quote in the middle of an unquoted field is a character like any other.
    """

    def __init__(self, source: io.BufferedReader, separator: str) -> None:
        self._source, self._ends = source, np.frombuffer(f"{separator}\n\r".encode(), np.uint8)
        self._held = b"\n"
        """The byte before, and one that is not judged yet."""
        self._inside = self._closed = False
        """Whether what is judged ends inside quotes, and whether it ends with a closing quote."""
        self._line_end = ""
        """What ends the rows, once it is known."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        data = self._held + (chunk or bytes(self._ends[:1]))
        self._judge(np.frombuffer(data, np.uint8), b"\r" in data)
        self._held = data[-2:]
        if not chunk and self._inside:
            raise _Broken("a quote is not closed")
        return chunk

    def _judge(self, data: Any, returns: bool) -> None:
        quotes, inside = np.flatnonzero(data[1:-1] == 34) + 1, self._inside
        turns = self._turns(data, quotes) if len(quotes) else quotes
        self._closed = self._closed and len(data) < 3 if not len(quotes) else self._closed
        if self._line_end != "\n" or returns:
            self._judge_lines(data, lambda places: (np.searchsorted(turns, places) + inside) % 2 == 0)

    def _judge_lines(self, data: Any, unquoted: Callable[[Any], Any]) -> None:
        """See that all rows end alike: a line end inside a text without quotes is most often of another kind."""
        feeds, returns = (np.flatnonzero(data[1:-1] == code) + 1 for code in (10, 13))
        feeds, returns = feeds[unquoted(feeds)], returns[unquoted(returns)]
        ends = {
            "\n": (data[feeds - 1] != 13).any(),
            "\r\n": (data[returns + 1] == 10).any(),
            "\r": (data[returns + 1] != 10).any(),
        }
        for end in (end for end, there in ends.items() if there):
            if self._line_end not in ("", end):
                raise _Broken(f"rows end with {self._line_end!r}, and one with {end!r}")
            self._line_end = end

    def _turns(self, data: Any, quotes: Any) -> Any:
        """The quotes that begin and end quoted fields, as far as they are where they belong."""
        before, after = data[quotes - 1], data[quotes + 1]
        begins, ends = np.isin(before, self._ends), np.isin(after, self._ends) | (after == 34)
        opening = (np.arange(len(quotes)) + self._inside) % 2 == 0
        stray = quotes[0] == 1 and before[0] == 34 and not self._closed and not self._inside
        if not stray and (begins | (before == 34) | ~opening).all() and (ends | opening).all():
            self._inside, self._closed = bool(opening[-1]), not opening[-1] and quotes[-1] == len(data) - 2
            return quotes
        turns, closed = [], 0 if self._closed else -1
        for place, begin, end in zip(quotes.tolist(), begins.tolist(), ends.tolist(), strict=True):
            if self._inside:
                if not end:
                    raise _Broken("a closing quote is followed by text")
                self._inside, closed = False, place
            elif begin or closed == place - 1:
                self._inside = True
            elif data[place - 1] == 92:
                raise _Broken("a backslash escapes a quote")
            else:
                continue  # in the middle of an unquoted field
            turns.append(place)
        self._closed = closed == len(data) - 2
        return np.array(turns, np.intp)


def dialect_of(files: Sequence[Path], name: str, separator: str | None, header: bool) -> CsvDialect:
    """The dialect of a dataset's csv files.

    Raises:
        UserError: several separators are possible, or the files have different ones.
    """
    found: dict[str, Path] = {}
    for file in files:
        text, whole = _sample(file)
        if not text:
            continue
        guess = separator or ("\t" if ".tsv" in file.name.lower() else separator_of(text, whole, str(file)))
        found.setdefault(guess, file)
    if len(found) > 1:
        raise UserError(
            f"the files of {name} have different separators: "
            + ", ".join(f"{guess!r} in {file.name}" for guess, file in found.items()),
            "expected one",
            "name the files of one kind, such as --dataset 'folder/*.tsv'",
        )
    return CsvDialect(separator=next(iter(found), separator or ","), header=header)


def separator_of(text: str, whole: bool, name: str) -> str:
    """What separates the fields of a csv file; "," where there is one column.

    Args:
        text: the file's start.
        whole: whether that is all of it.
        name: the file's, for people.

    Raises:
        UserError: several fit, or the rows have more fields than the header.
    """
    counts = {each: [len(row) for row in _parsed_rows(text, whole, each)] for each in SEPARATORS}
    several = [each for each, fields in counts.items() if fields and fields[0] > 1]
    fit = [each for each in several if len(set(counts[each])) == 1]
    if len(fit) > 1:
        raise UserError(
            f"{name} can be read with the separators {' and '.join(map(repr, fit))}", mend="choose one with --separator"
        )
    if fit or several:
        return fit[0] if fit else max(several, key=lambda each: counts[each][0])
    for each in SEPARATORS[1:]:
        rest = set(counts[each][1:])
        if len(rest) == 1 and rest != {1}:
            raise UserError(
                f"{name}: the header has one field, and the rows have {rest.pop()} with the separator {each!r}",
                "expected as many in both",
                "mend the header, or choose the separator with --separator",
            )
    return ","


def check_header(reader: CsvReader, file: Path, asked: Sequence[str]) -> None:
    """See that the first row names columns, unless it has those that are asked for.

    Raises:
        UserError: it looks like a row.
    """
    names = reader.names(file)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if asked and all(names.count(name) == 1 for name in asked):
        return
    odd = [name for name in names if name in repeated or _VALUE.fullmatch(name) or _is_prose(name)]
    if odd:
        raise UserError(
            f"{file}: the first row looks like a row and not like a header ({odd[0][:60]!r})",
            "expected the columns' names, each once",
            "--no-header, or name the column with --text-column",
        )


def _is_prose(name: str) -> bool:
    return len(name) > 60 or "\n" in name or len(name.split()) > 5 or name.rstrip().endswith((".", "!", "?"))


def _sample(file: Path) -> tuple[str, bool]:
    with opened(file, quiet=True) as source:
        raw = source.read(_SAMPLE)
    return raw.decode("utf-8", "replace"), len(raw) < _SAMPLE


def _parsed_rows(text: str, whole: bool, separator: str) -> list[list[str]]:
    with _any_size():
        rows = list(itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), _SAMPLED_ROWS))
    if not whole and 1 < len(rows) < _SAMPLED_ROWS:
        rows.pop()
    return [row for row in rows if row]


def _rows(file: Path, separator: str) -> Iterator[list[str]]:
    """A file's rows, as far as they are asked for, without blank lines."""
    with opened(file, quiet=True) as source, _any_size():
        yield from (row for row in csv.reader(_text(source), delimiter=separator) if row)


def _text(source: io.BufferedReader) -> io.TextIOWrapper:
    return io.TextIOWrapper(source, encoding="utf-8", errors="replace", newline="")


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
