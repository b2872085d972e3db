"""A job's dataset, read by the second readers: the number of its rows, and the texts and values of some."""

import json
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem, hf_hub_download

from contract.errors import UserError, reason
from contract.job import CsvDialect, Job
from producer.files import files_of, kind_of
from producer.remote import SCHEMES, downloaded
from verify.readers import FileRows, Record, from_arrow, from_csv, from_json, from_parquet, from_text
from verify.values import value_at


class SourceRow(NamedTuple):
    """One row of the dataset."""

    text: str | None
    """Without the prefix; None where the row has none."""
    kept: list[Any]
    """The values of the columns that are carried into the shards."""


class Source(NamedTuple):
    """A dataset as the second reader reads it."""

    rows: int
    """Of the whole split, whatever the job's limit is."""
    wanted: dict[int, SourceRow]
    """By row id."""
    reader: str
    """For people, such as ``Python's csv``."""


READERS: dict[str, Callable[[Path, Collection[int], Sequence[str], Sequence[str]], FileRows]] = {
    "json": from_json,
    "text": from_text,
    "parquet": from_parquet,
    "arrow": from_arrow,
}
"""Of each kind of ``producer.files.KINDS`` but csv, whose reader needs a dialect too."""


def read_source(job: Job, wanted: Collection[int]) -> Source:
    """Read some rows of a job's dataset, and count all.

    Args:
        job: the job.
        wanted: row ids.

    Raises:
        UserError: the dataset is gone or cannot be read.
    """
    template = parts_of(job.text)
    columns = [*dict.fromkeys(column for _, column in template if column is not None), *job.columns]
    if job.stream:
        rows, records, reader = _streamed(job, wanted, columns)
    else:
        kind, files = _files(job)
        rows, records, reader = _read(job, kind, files, wanted, columns)
    found = {
        row: SourceRow(text_of(template, record), [record.get(name) for name in job.columns])
        for row, record in records.items()
    }
    return Source(rows, found, reader)


def _read(
    job: Job, kind: str, files: Sequence[Path], wanted: Collection[int], columns: Sequence[str]
) -> tuple[int, dict[int, Record], str]:
    start, left, roots = 0, sorted(wanted), _roots(columns)
    records: dict[int, Record] = {}
    read, readers = None if kind == "csv" else READERS[kind], dict[str, None]()
    for file in files:
        inside = [row - start for row in left[bisect_left(left, start) :]]
        try:
            rows = read(file, inside, roots, job.columns) if read else from_csv(file, inside, _dialect(job.csv, file))
        except UserError:
            raise
        except Exception as error:  # each library has exceptions of its own
            raise UserError(
                f"{file} cannot be read by the verifier's reader ({reason(error)})",
                "expected what the producer read",
            ) from None
        records |= {start + number: record for number, record in rows.records.items()}
        readers[rows.reader] = None
        start += rows.rows
    return start, records, " and ".join(readers)


def _dialect(dialect: CsvDialect | None, file: Path) -> CsvDialect:
    """The job's dialect; for a Hub dataset, which ``datasets`` reads, that library's defaults."""
    return dialect or CsvDialect(separator="\t" if ".tsv" in file.suffixes else ",", header=True)


def _roots(columns: Sequence[str]) -> list[str]:
    """The columns a file may have for these names: ``doc.text`` may be a column, or a path into the column ``doc``."""
    return list(dict.fromkeys(root for name in columns for root in (name, name.split(".")[0])))


def _files(job: Job) -> tuple[str, list[Path]]:
    """The kind and the files of the job's split, on this disk."""
    path = downloaded(job.dataset) if job.dataset.startswith(SCHEMES) else Path(job.dataset)
    if not path.is_absolute():
        return _downloaded_from_hub(job)
    if (path / "dataset_dict.json").is_file():
        path /= job.split
    if (path / "state.json").is_file():
        return "arrow", _saved(path)
    found = files_of(job.dataset, path, job.config)
    return found.kind, found.splits.get(job.split, [])


def _saved(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_files"):
            raise ValueError("it has files of indices")
        return [folder / part["filename"] for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be read ({reason(error)})", "expected what save_to_disk wrote") from None


def _hub_files(job: Job) -> list[str]:
    """The addresses of the split's files on the Hub, pinned to the job's commit."""
    builder = datasets.load_dataset_builder(job.dataset, job.config, revision=job.revision)
    return [str(file) for file in (builder.config.data_files or {}).get(job.split, [])]


def _downloaded_from_hub(job: Job) -> tuple[str, list[Path]]:
    try:
        hub = HfFileSystem()
        paths = [hub.resolve_path(file).path_in_repo for file in _hub_files(job)]  # type: ignore[union-attr]
        files = [Path(hf_hub_download(job.dataset, path, repo_type="dataset", revision=job.revision)) for path in paths]
    except Exception as error:  # of the network, of HTTP
        raise UserError(
            f"{job.dataset} cannot be fetched ({reason(error)})", hint="run the same command again"
        ) from None
    kinds = {kind_of(file.name)[0] for file in files}
    if len(kinds) != 1 or None in kinds:
        raise UserError(
            f"{job.dataset} is made of files that the verifier has no reader for", f"found {kinds or 'none'}"
        )
    return str(kinds.pop()), files


def _streamed(job: Job, wanted: Collection[int], columns: Sequence[str]) -> tuple[int, dict[int, Record], str]:
    """Fetches only the row groups of the wanted rows, by pyarrow: the producer uses other functions of it."""
    hub, start, left = HfFileSystem(), 0, sorted(wanted)
    records: dict[int, Record] = {}
    for address in _hub_files(job):
        with hub.open(address, "rb") as opened, pq.ParquetFile(opened) as file:
            inside = [name for name in _roots(columns) if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if indices := [
                    row - start for row in left[bisect_left(left, start) : bisect_left(left, start + count)]
                ]:
                    table = file.read_row_group(group, columns=inside).combine_chunks()
                    values = {name: table.column(name).combine_chunks() for name in table.column_names}
                    records |= {start + at: {name: value_at(one, at) for name, one in values.items()} for at in indices}
                start += count
    return start, records, "pyarrow, row group by row group"


def parts_of(template: str) -> list[tuple[str, str | None]]:
    r"""A job's ``text`` cut into pairs: a literal, and the column that follows it; None after the last literal.

    ``"{a}: {b.c}\n"`` gives ``("", "a"), (": ", "b.c"), ("\n", None)``. The syntax is that of ``contract.template``,
    parsed here a second time.
    """
    found: list[tuple[str, str | None]] = []
    literal, letters = "", iter(template)
    for letter in letters:
        if letter == "\\":
            literal += {"n": "\n", "t": "\t"}.get(following := next(letters), following)
        elif letter == "}":
            literal += next(letters)
        elif letter == "{":
            name = _name(letters)
            if name is None:
                literal += "{"
            else:
                found.append((literal, name))
                literal = ""
        else:
            literal += letter
    return [*found, (literal, None)]


def _name(letters: Iterator[str]) -> str | None:
    """The column's name up to its closing brace; None where the brace is doubled and so means itself."""
    name = ""
    for letter in letters:
        if letter == "{" and not name:
            return None
        if letter == "}":
            return name
        name += next(letters) if letter == "\\" else letter
    raise ValueError("a brace is not closed")


def text_of(template: Sequence[tuple[str, str | None]], record: Record) -> str | None:
    """A row's text; None where all of its columns are null. Bytes that are no UTF-8 become U+FFFD."""
    values = [None if column is None else _text(_value(record, column)) for _, column in template]
    if all(value is None for value in values):
        return None
    return "".join(
        literal + ("" if value is None else value) for (literal, _), value in zip(template, values, strict=True)
    )


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _value(record: Record, column: str) -> Any:
    """A column's value, or that of a dotted path into it; None where anything on the way is null or not there."""
    if column in record:
        return record[column]
    found: Any = record
    for part in column.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
