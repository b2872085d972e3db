"""The texts of a dataset: from the Hub, from files, or as ``save_to_disk`` left them."""

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from contract.errors import UserError, reason
from contract.job import SPLIT, CsvDialect, Job
from contract.template import of_column, parse
from contract.words import count
from producer.csvfiles import CsvReader, check_header, dialect_of
from producer.files import COMPRESSIONS, KINDS, LocalFiles, files_of, is_pattern, kind_of, revision_of
from producer.hub import ParquetTable, open_hub
from producer.jsonfiles import JsonReader
from producer.remote import SCHEMES, downloaded
from producer.tables import ArrowTable, is_text, laid_out, reader_of, stored, type_at, values_at

_log = logging.getLogger("embedmill.producer")


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
    table: datasets.Dataset | ParquetTable | ArrowTable
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
        table, template = self.table[rows.start : rows.stop], parse(self.text)
        values = {name: _decoded(values_at(table, name)) for name in dict.fromkeys(template.columns)}
        kept = {name: values_at(table, name) for name in self.columns}
        if template.plain is not None:
            return values[template.plain], kept
        cells = zip(*values.values(), strict=True)
        return [template.render(dict(zip(values, row, strict=True))) for row in cells], kept

    def texts(self, rows: range) -> list[str | None]:
        """The texts alone."""
        return self.read(rows)[0]


def open_dataset(
    dataset: str,
    *,
    config: str | None = None,
    split: str | None = None,
    column: str | None = None,
    text: str | None = None,
    columns: tuple[str, ...] = (),
    revision: str | None = None,
    stream: bool = False,
    separator: str | None = None,
    header: bool = True,
) -> TextDataset:
    """Open a dataset and find its texts.

    Args:
        dataset: Hub id (``imdb``, ``stanfordnlp/imdb``); a csv, tsv, json, jsonl, parquet, arrow or text file, a
            folder or a glob pattern of them, or the address of one (http, https, s3, gs); a folder that
            ``save_to_disk`` wrote.
        config: which configuration, where it has several.
        split: None for ``train``, or the only one there is.
        column: name or dotted path of the column that is the text; None for ``text``, or the only text column there is.
        text: a template of several columns, in place of ``column``.
        columns: further ones, of any type, that ``TextDataset.read`` gives.
        revision: branch, tag or commit on the Hub; None for the latest, and for files.
        stream: leave the rows on the Hub and fetch them as they are asked for; see ``producer.hub.ParquetTable``.
        separator: of a csv file's fields; None to find it.
        header: whether a csv file's first row names the columns.

    Raises:
        UserError: it cannot be found or read, or has no such split or text column, or no rows.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it has to say comes with its exceptions, in one line
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a README beside the data need be no card
    if column is not None and text is not None:
        raise UserError("--text and --text-column exclude each other", mend="leave one of them out")
    if column is not None:
        text = of_column(column)
    try:
        asked = list(dict.fromkeys(parse(text).columns)) if text is not None else []
    except ValueError as error:
        raise UserError(f"--text {text!r} is no template: {error}", mend="--text '{title}\\n{body}'") from None
    with _explained(dataset):
        place = _local(dataset)
        if place is None:
            if separator is not None or not header:
                raise UserError(f"{dataset} is no csv file", mend="leave out --separator and --no-header")
            return _opened_by_datasets(
                *open_hub(dataset, config, revision, stream=stream), config, split, text, asked, columns
            )
        name, path = place
        if revision is not None or stream:
            raise UserError(
                f"{dataset} is on this machine" if name == str(path) else f"{dataset} is no dataset on the Hub",
                "--revision and --stream are for datasets on the Hub",
                "leave them out, or name another dataset",
            )
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _opened_by_datasets(_saved(path), name, revision_of(path), config, split, text, asked, columns)
        found = files_of(name, path, config)
        if found.kind != "csv" and (separator is not None or not header):
            raise UserError(f"{dataset} is no csv file", mend="leave out --separator and --no-header")
        return _opened(found, config, split, text, asked, columns, separator, header)


def dataset_of(job: Job) -> TextDataset:
    """The dataset that a job was begun with, as it was then.

    Raises:
        UserError: it is gone, or holds something else by now.
    """
    local = Path(job.dataset).is_absolute() or job.dataset.startswith(SCHEMES)
    texts = open_dataset(
        job.dataset,
        config=job.config,
        split=job.split,
        text=job.text,
        columns=job.columns,
        revision=None if local else job.revision,
        stream=job.stream,
        separator=job.csv.separator if job.csv else None,
        header=job.csv.header if job.csv else True,
    )
    if texts.revision != job.revision:
        raise UserError(
            f"{job.dataset} was changed (its revision is {texts.revision[:16]})",
            f"job {job.id} embedded revision {job.revision[:16]}",
            "bring that one back, or run the producer again for a new job",
        )
    if min(job.limit or texts.rows, texts.rows) != job.rows:
        raise UserError(
            f"{job.dataset} has {count(texts.rows, 'row')}",
            f"job {job.id} has {job.rows:,} of them" + (f" with the limit {job.limit:,}" if job.limit else ""),
            "run the producer again for a new job",
        )
    return texts


def _opened(
    found: LocalFiles,
    config: str | None,
    split: str | None,
    text: str | None,
    asked: list[str],
    columns: tuple[str, ...],
    separator: str | None,
    header: bool,
) -> TextDataset:
    split = _split(split, list(found.splits), found.dataset)
    files = found.splits[split]
    dialect = dialect_of(files, found.dataset, separator, header) if found.kind == "csv" else None
    reader = reader_of(found.kind, (), (), dialect)
    schema, first = pa.schema([]), files[0]
    for first in files:
        if len(schema := reader.schema(first)):
            break
    if not len(schema):
        raise UserError(f"{found.dataset} is empty or cannot be read: it has no rows in split {split!r}", _SOMETHING)
    if isinstance(reader, CsvReader):
        for file in files:
            if header and reader.names(file):
                check_header(reader, file, asked)
    if text is None:
        texts = reader.texts(first) if isinstance(reader, CsvReader) else _texts(schema)
        text = _chosen(texts, schema, found.dataset)
        asked = list(parse(text).columns)
    untyped = found.kind == "json"  # the reader looks at every value, and tells the row
    _check_columns(schema, asked, columns, found.dataset, typed=not untyped)
    kinds = {name: laid_out(type_at(schema, name) or pa.string()) for name in (*asked, *columns)}
    if dialect:
        _log.info("%s: separator %r, columns %s", first.name, dialect.separator, ", ".join(map(_short, schema.names)))
    reader = reader_of(found.kind, asked, columns, dialect)
    if isinstance(reader, JsonReader):
        kinds |= reader.kept_types(files) | dict.fromkeys(asked, pa.string())
    needed = pa.schema(list(kinds.items()))
    table = stored(reader, files, needed, found.revision, dialect.model_dump() if dialect else None)
    if not len(table):
        raise UserError(f"{found.dataset} is empty or cannot be read: it has no rows in split {split!r}", _SOMETHING)
    if isinstance(reader, JsonReader) and reader.halves:
        halves = count(reader.halves, "half of a surrogate pair", "halves of surrogate pairs")
        _log.warning("%s: %s became U+FFFD", found.dataset, halves)
    features = _features(schema, columns) if found.kind in _TYPED else {}
    return TextDataset(found.dataset, config, split, text, found.revision, table, columns, dialect, features)


def _opened_by_datasets(
    splits: Mapping[str, Any],
    dataset: str,
    revision: str,
    config: str | None,
    split: str | None,
    text: str | None,
    asked: list[str],
    columns: tuple[str, ...],
) -> TextDataset:
    split = _split(split, list(splits), dataset)
    table = splits[split]
    if not table.num_rows:
        raise UserError(f"{dataset} has no rows in split {split!r}", _SOMETHING)
    schema = table.features.arrow_schema
    if text is None:
        text = _chosen(_texts(schema), schema, dataset)
        asked = list(parse(text).columns)
    _check_columns(schema, asked, columns, dataset, typed=True)
    roots = dict.fromkeys(name if name in schema.names else name.split(".")[0] for name in (*asked, *columns))
    needed = table.select_columns(list(roots)).with_format("arrow")
    return TextDataset(dataset, config, split, text, revision, needed, columns, features=_features(schema, columns))


def _features(schema: pa.Schema, columns: Sequence[str]) -> dict[str, str]:
    """The features of these columns that their Arrow type does not say, from the metadata that ``datasets`` writes."""
    found = {}
    for name in columns:
        one = pa.schema([schema.field(name)], metadata=schema.metadata)
        with contextlib.suppress(ValueError):  # a type that the library does not have
            feature = datasets.Features.from_arrow_schema(one)[name]
            if feature != datasets.Features.from_arrow_schema(one.remove_metadata())[name]:
                found[name] = json.dumps(datasets.Features({name: feature}).to_dict()[name])
    return found


_TYPED = ("parquet", "arrow")
"""Kinds of files whose schema may name features of ``datasets``."""

_SOMETHING = "there must be something to embed"


def _local(dataset: str) -> tuple[str, Path] | None:
    """What the job calls a dataset of files, and where they are; None for one on the Hub."""
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


def _saved(path: Path) -> dict[str, datasets.Dataset]:
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


def _split(wanted: str | None, there: list[str], dataset: str) -> str:
    split = _choose(wanted, there, "train", "split", dataset)
    if not re.fullmatch(SPLIT, split):
        raise UserError(f"{split!r} is no name of a split", "it begins the names of files: letters, digits, _, . and -")
    return split


def _texts(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if is_text(field.type) or (field.name == "text" and field.type == pa.null())]


def _chosen(texts: Sequence[str], schema: pa.Schema, dataset: str) -> str:
    """The template of the text column, where none is named."""
    if "text" in schema.names:
        return of_column("text")
    if not texts:
        raise UserError(
            f"{dataset} has no text column (its columns: {', '.join(map(_short, schema.names))})",
            "expected one of strings",
        )
    return of_column(_choose(None, list(texts), "text", "text-column", dataset, among=list(map(_short, schema.names))))


def _check_columns(
    schema: pa.Schema, asked: Sequence[str], columns: Sequence[str], dataset: str, *, typed: bool
) -> None:
    """See that the columns are there, and if ``typed`` that texts are strings.

    Raises:
        UserError: one is not.
    """
    there = ", ".join(map(_short, schema.names))
    for name in asked:
        if (kind := type_at(schema, name)) is None:
            raise UserError(f"no text-column {name!r} in {dataset}", f"there: {there}", "choose one with --text-column")
        if typed and not is_text(kind):
            raise UserError(
                f"column {name!r} of {dataset} holds {kind}",
                f"expected a text column (there: {', '.join(_texts(schema)) or 'none'})",
                "choose one with --text-column",
            )
    for name in columns:
        if name not in schema.names:
            raise UserError(f"no column {name!r} in {dataset}", f"there: {there}", "choose others with --keep-columns")


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}…"


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


def _choose(
    wanted: str | None, there: list[str], usual: str, option: str, dataset: str, among: list[str] | None = None
) -> str:
    if wanted in there:
        return wanted
    if wanted is None and (usual in there or len(there) == 1):
        return usual if usual in there else there[0]
    what = f"no {option} {wanted!r} in" if wanted else f"several choices of {option} in"
    raise UserError(f"{what} {dataset}", f"there: {', '.join(among or there)}", f"choose one with --{option}")


@contextlib.contextmanager
def _explained(dataset: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # a UnicodeError for a file's name
        raise UserError(
            f"{ascii(dataset)[1:-1][:300]} cannot be read ({reason(error)})",
            "expected files that you may read, with names in UTF-8",
        ) from None
