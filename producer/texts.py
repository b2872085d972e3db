"""The texts of one split of a dataset, and what a user says of it before it is opened."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from contract.errors import UserError
from contract.job import CsvDialect
from contract.template import Template, parse
from producer.arrow_cache import ArrowTable
from producer.columns import values_at

if TYPE_CHECKING:  # for a csv they would be imported in vain
    import datasets

    from producer.parquet_table import ParquetTable

_log = logging.getLogger("embedmill.producer")

NOTHING = "there must be something to embed"
"""What is expected of a dataset without rows."""


@dataclass(frozen=True)
class CsvOptions:
    """How csv files are written, as far as it is known before they are read."""

    separator: str | None = None
    """Between two fields; None to find it."""
    header: bool = True
    """Whether the first row names the columns."""


ANY_CSV = CsvOptions()
"""Nothing was said of csv files: the separator is found, and the first row names the columns."""


@dataclass(frozen=True)
class DatasetSource:
    """What a user says of a dataset before it is opened: where its rows are, and which columns are needed."""

    dataset: str
    """Hub id (``imdb``, ``stanfordnlp/imdb``); a csv, tsv, json, jsonl, parquet, arrow or text file, a folder or a glob
    pattern of them, or the address of one (http, https, s3, gs); a folder that ``save_to_disk`` wrote."""
    config: str | None = None
    """Which configuration, where it has several."""
    split: str | None = None
    """None for ``train``, or the only one there is."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; None for the latest, and for files."""
    stream: bool = False
    """Leave the rows on the Hub and fetch them as they are asked for; see ``producer.parquet_table``."""
    text: str | None = None
    """A row's text: a template of ``contract.template``, such as ``{title} {body}``; None for the column ``text``, or
    the only text column there is."""
    columns: tuple[str, ...] = ()
    """Further columns, of any type, which are carried into the shards."""
    csv: CsvOptions = ANY_CSV
    """How csv files are written."""


@dataclass(frozen=True)
class TextDataset:
    """The texts of one split."""

    dataset: str
    """Hub id, absolute path or pattern, or address."""
    config: str | None
    split: str
    text: str
    """A row's text, made of its columns: a template of ``contract.template``."""
    revision: str
    """What it holds: the Hub commit, or a hash over the files."""
    table: "datasets.Dataset | ParquetTable | ArrowTable"
    columns: tuple[str, ...] = ()
    """Columns that are carried into the shards."""
    csv: CsvDialect | None = None
    """How csv files are written; None for all others."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Of those of ``columns`` that are more than their Arrow type, such as images and labels: the feature of the
    ``datasets`` library, as JSON."""

    @property
    def rows(self) -> int:
        return len(self.table)

    def read(self, rows: range) -> tuple[list[str | None], dict[str, pa.Array]]:
        """The texts of these consecutive rows, None where the dataset has none, and their values of ``columns``.

        Bytes of a text that are no UTF-8, which only a dataset read by ``datasets`` can have, become U+FFFD.
        """
        template, table = self._template, self.table[rows.start : rows.stop]
        values = {name: _decoded(values_at(table, name)) for name in dict.fromkeys(template.columns)}
        kept = {name: values_at(table, name) for name in self.columns}
        if template.plain is not None:
            return values[template.plain], kept
        cells = zip(*values.values(), strict=True)
        return [template.render(dict(zip(values, row, strict=True))) for row in cells], kept

    @functools.cached_property
    def _template(self) -> Template:
        return parse(self.text)

    def texts(self, rows: range) -> list[str | None]:
        """The texts alone."""
        return self.read(rows)[0]


@contextlib.contextmanager
def readable(dataset: str, rows: range) -> Iterator[None]:
    """What reading or tokenizing these rows raises becomes a ``UserError`` that names them."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError) as error:  # what Arrow, tokenizers and a lost file raise
        raise UserError(
            f"rows {rows.start} to {rows.stop - 1} of {dataset} cannot be tokenized ({error})",
            hint="correct them, or leave them out with --limit",
        ) from None


def _decoded(column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        _say_replaced()
        raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        return [None if text is None else text.decode("utf-8", errors="replace") for text in raw.to_pylist()]


@functools.cache
def _say_replaced() -> None:
    _log.warning("bytes of a text that are no UTF-8 became U+FFFD")
