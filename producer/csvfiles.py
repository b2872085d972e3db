"""csv files, strictly: the columns, and rows that are as many fields as the header, or refused."""

import contextlib
import csv
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from contract.errors import UserError, reason
from contract.job import CsvDialect
from producer.bytestream import check_utf8, opened
from producer.columns import Columns, shortened
from producer.csv_dialect import any_field_size, as_text, csv_rows
from producer.csv_quotes import BrokenQuotes, QuoteChecker
from producer.files import kind_of
from producer.readers import Reader

_CELLS = 10_000
_BLOCKS = (1 << 20, 1 << 25, (1 << 31) - 1)
"""Bytes that are parsed at once. A row must fit, so the others are for files with enormous ones."""

_VALUE = re.compile(r"\s*([-+]?(\d[\d_,.]*|\.\d+)(e[-+]?\d+)?%?|true|false|nan)?\s*", re.IGNORECASE)
"""A cell that is no text: a number, a boolean, nothing."""


_log = logging.getLogger("embedmill.producer")


class CsvReader(Reader):
    """Reads the csv files of one dataset, all of one dialect."""

    dialect: CsvDialect

    def __init__(self, dialect: CsvDialect) -> None:
        self.dialect = dialect

    def schema(self, file: Path) -> pa.Schema:
        """The columns, all of them text; none for an empty file."""
        return pa.schema([(name, pa.string()) for name in self.names(file)])

    def names(self, file: Path) -> list[str]:
        row = next(csv_rows(file, self.dialect.separator), [])
        if self.dialect.header:
            return row
        return [f"column_{number}" for number in range(1, len(row) + 1)]

    def check_header(self, files: Sequence[Path], asked: Sequence[str]) -> None:
        """See that the first row of each file names columns, unless it has those that are asked for.

        Raises:
            UserError: it looks like a row.
        """
        for file in files if self.dialect.header else ():
            names = self.names(file)
            if asked and all(names.count(name) == 1 for name in asked):
                continue
            repeated = {name for name in names if names.count(name) > 1}
            odd = [name for name in names if name in repeated or _VALUE.fullmatch(name) or _is_prose(name)]
            if odd:
                raise UserError(
                    f"{file}: the first row looks like a row and not like a header ({odd[0][:60]!r})",
                    "expected the columns' names, each once",
                    "--no-header, or name the column with --text-column",
                )

    def text_columns(self, files: Sequence[Path], schema: pa.Schema) -> list[str]:
        """The columns whose first cells, in the first file that has columns, are not all numbers, booleans or empty."""
        file, names, found = self._first(files), schema.names, set()
        for row in itertools.islice(csv_rows(file, self.dialect.separator), int(self.dialect.header), _CELLS):
            found |= {name for name, cell in zip(names, row, strict=False) if not _VALUE.fullmatch(cell)}
            if len(found) == len(names):
                break
        return [name for name in names if name in found]

    def needed(self, files: Sequence[Path], schema: pa.Schema, columns: Columns) -> pa.Schema:
        """All of them text; says which columns there are."""
        names = ", ".join(map(shortened, schema.names))
        _log.info("%s: separator %r, columns %s", self._first(files).name, self.dialect.separator, names)
        return pa.schema([(name, pa.string()) for name in columns.needed])

    def _first(self, files: Sequence[Path]) -> Path:
        """The first of these files that has columns."""
        return next(file for file in files if self.names(file))

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
            except (pa.ArrowInvalid, BrokenQuotes) as error:
                if "straddling" in str(error) and block != _BLOCKS[-1]:
                    continue
                raise self._refusal(file, len(names), error) from None

    def _parsed(self, file: Path, names: list[str], schema: pa.Schema, block: int) -> Iterator[pa.RecordBatch]:
        inner = [f"c{number}" for number in range(len(names))]  # names may come twice
        wanted = [inner[names.index(name)] for name in schema.names]
        with _checked(file, self.dialect.separator, quiet=block != _BLOCKS[0]) as (source, look):
            reader = pc.open_csv(
                source,
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
                look()
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
        with opened(file, quiet=True) as source, any_field_size():
            reader = csv.reader(as_text(source), delimiter=separator, strict=True)
            try:
                for row in reader:
                    if row and len(row) != count:  # a blank line is no row, or that of one column
                        found = f"found {_fields(len(row))}, separated by {separator!r}"
                        break
                    line = reader.line_num + 1
            except csv.Error as wrong:
                found = f"a quote is not closed, or followed by more than {separator!r} ({wrong})"
        if not found and not isinstance(error, BrokenQuotes):
            error = _broken_quotes(file, separator) or error
        if not found and isinstance(error, BrokenQuotes):
            return UserError(
                f"{file}: {error}", "expected one kind of line ends; others only in quotes", "correct the file"
            )
        if not found:
            return UserError(f"{file} cannot be read ({reason(error)})", f"expected {_fields(count)} a row")
        return UserError(
            f"{file}, line {line}: {found}",
            f"expected {_fields(count)}, as in the first row",
            "correct the row: a text with separators, quotes or line ends stands in quotes, its quotes doubled; "
            "or see --separator",
        )


@contextlib.contextmanager
def _checked(file: Path, separator: str, *, quiet: bool) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A csv file for pyarrow, and what raises as soon as its quotes are found to be broken. By the end of the ``with``
    block the whole file is checked.

    pyarrow reads an uncompressed file itself, while a thread checks it: bytes that go through Python take twice as
    long. A compressed one is decompressed only once.

    Raises:
        BrokenQuotes: see ``QuoteChecker.read``.
    """
    with opened(file, quiet=quiet) as source:
        checker = QuoteChecker(source, separator)
        if kind_of(file.name)[1]:
            yield checker, lambda: None
            return
        ended = threading.Event()
        with ThreadPoolExecutor(1, "quotes") as pool:
            checked = pool.submit(checker.read_all, lambda: not ended.is_set())
            try:
                yield pa.OSFile(os.fsencode(file)), lambda: checked.result() if checked.done() else None
                checked.result()
            finally:
                ended.set()


def _broken_quotes(file: Path, separator: str) -> BrokenQuotes | None:
    """What is wrong with a file's quotes, where pyarrow has refused it for another reason."""
    with opened(file, quiet=True) as source:
        try:
            QuoteChecker(source, separator).read_all(lambda: True)
        except BrokenQuotes as error:
            return error
    return None


def _is_prose(name: str) -> bool:
    return len(name) > 60 or "\n" in name or len(name.split()) > 5 or name.rstrip().endswith((".", "!", "?"))


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
