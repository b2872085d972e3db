"""Reading one shard of a job, and saying what is wrong with a file that is none."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contract.compare import TOLERANCES
from contract.form import Stored
from contract.job import Job, job_id
from contract.shard import ShardInfo, info_of, open_file

_AT_ONCE = 16
"""Shards that are read side by side: an object store takes its time for each."""

_ROWS = 64
"""Of which the vectors are held at once: at token level they may be a hundred megabytes."""

_COLUMNS = {"row_id": pa.int64(), "n_tokens": pa.int32(), "truncated": pa.bool_(), "error": pa.string()}


_Result = TypeVar("_Result")


class BadShard(Exception):
    """A batch has no file that can be taken for its shard; the message says why."""


class Missing(BadShard):
    """The file is not there."""


class Unreadable(BadShard):
    """The file is truncated, corrupt or not embedmill's."""


class Stranger(BadShard):
    """The shard was made for another job, batch or engine."""


@contextmanager
def open_shard(job: Job, batch: int) -> Iterator[tuple[pq.ParquetFile, ShardInfo]]:
    """A batch's shard, with the columns it must have, and what its footer says of it. No row is read yet.

    Keep the body to reading: an error of the file that comes up there is reported as the shard's, too.

    Raises:
        BadShard: one of the kinds above.
    """
    try:
        with open_file(job.shard(batch)) as file:
            info = info_of(file.schema_arrow.metadata)
            _check_columns(file.schema_arrow, job)
            _check_origin(info, job, batch)
            yield file, info
    except FileNotFoundError:
        raise Missing("not there") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise Unreadable(" ".join(str(error).split())[:200] or type(error).__name__) from None


def side_by_side(read: Callable[[int], _Result], batches: Iterable[int]) -> Iterator[tuple[int, _Result]]:
    """Each batch with what ``read`` makes of its shard, in order. No more results are held than are read at once."""
    left = iter(batches)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(itertools.islice(left, _AT_ONCE)):
            yield from zip(some, pool.map(read, some), strict=True)


def _check_columns(schema: pa.Schema, job: Job) -> None:
    there = ", ".join(f"{field.name} {field.type}" for field in schema)
    for name, kind in _COLUMNS.items():
        if name not in schema.names or schema.field(name).type != kind:
            raise ValueError(f"no column {name} of {kind} (there: {there})")
    kind = schema.field("embedding").type if "embedding" in schema.names else pa.null()
    vector = kind.value_type if pa.types.is_list(kind) else kind
    if not pa.types.is_fixed_size_list(vector) or vector.value_type != job.form.element:
        raise ValueError(f"no column embedding of vectors of {job.form.element} (there: {there})")
    if missing := [name for name in job.columns if name not in schema.names]:
        raise ValueError(f"no column {missing[0]} of the dataset (there: {there})")


def _check_origin(info: ShardInfo, job: Job, batch: int) -> None:
    # A job's folder may have been renamed since; what its job.json says still gives the name that the shards carry.
    if info.job not in (job.id, job_id(job.identity, job.dataset)):
        raise Stranger(f"made for job {info.job}")
    if info.batch != batch:
        raise Stranger(f"made for batch {info.batch}")
    if info.engine != job.fingerprint:
        raise Stranger(f"made by engine {info.engine}, the job's is {job.fingerprint}")
    if info.precision not in TOLERANCES:
        raise Stranger(f"made in precision {info.precision}, which has no tolerance here ({', '.join(TOLERANCES)})")


def values(file: pq.ParquetFile, column: str) -> npt.NDArray[Any]:
    """One of the plain columns: ``row_id`` int64, ``n_tokens`` int32 or ``truncated`` bool, ``[rows]``.

    Raises:
        ValueError: it has nulls, or not as many values as the footer says rows.
    """
    found = file.read(columns=[column]).column(column)
    if found.null_count or len(found) != file.metadata.num_rows:
        raise ValueError(f"{len(found) - found.null_count} values of {column} for {file.metadata.num_rows} rows")
    return found.to_numpy()


def embeddings(file: pq.ParquetFile, width: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Read every vector, and so compare every page with its checksum; no more than a few rows are held.

    Args:
        file: the shard.
        width: what each must have, in elements.

    Returns:
        Which rows have none, and which have one with a value that is not finite: bool ``[rows]`` both.

    Raises:
        ValueError: they are of another width.
    """
    kind = file.schema_arrow.field("embedding").type
    there = (kind if pa.types.is_fixed_size_list(kind) else kind.value_type).list_size
    if there != width:
        raise ValueError(f"vectors of {there} elements, expected {width}")
    null, wild = np.zeros((2, file.metadata.num_rows), bool)
    start = 0
    for part in file.iter_batches(_ROWS, columns=["embedding"]):
        column = part.column(0)
        null[start : start + len(column)] = column.is_null().to_numpy(zero_copy_only=False)
        if not _finite(column):
            wild[start : start + len(column)] = [not _finite(column.slice(row, 1)) for row in range(len(column))]
        start += len(column)
    return null, wild


def _finite(column: pa.Array) -> bool:
    while not pa.types.is_primitive(column.type):
        column = column.flatten()  # which leaves nulls out
    return bool(np.isfinite(column.to_numpy(zero_copy_only=False)).all())


def errors(file: pq.ParquetFile) -> npt.NDArray[np.bool_]:
    """Which rows say why they have no vector, bool ``[rows]``."""
    return file.read(columns=["error"]).column("error").is_valid().to_numpy()


def kept(file: pq.ParquetFile, columns: Sequence[str], places: Sequence[int]) -> list[list[Any]]:
    """The values of the dataset's columns in the rows at these places, a list for each row."""
    table = file.read(columns=list(columns)).take(pa.array(places, pa.int64()))
    values = [column.combine_chunks() for column in table.columns]
    return [[plain(column, place) for column in values] for place in range(len(places))]


def plain(values: pa.Array, place: int) -> Any:
    """A value as Python has it; one that it cannot have, as a date after the year 9999, as Arrow prints it."""
    try:
        return values[place].as_py()
    except (OverflowError, ValueError):
        return str(values.slice(place, 1))


def vectors(file: pq.ParquetFile, places: Iterable[int]) -> list[Stored]:
    """The vectors of the rows at these places, each ``[1, width]``, or ``[tokens, width]`` at token level."""
    column = file.read(columns=["embedding"]).column("embedding").combine_chunks()
    pooled = pa.types.is_fixed_size_list(column.type)
    hidden = (column.type if pooled else column.type.value_type).list_size
    rows = (column[place].values for place in places)
    found = ((row if pooled else row.flatten()).to_numpy(zero_copy_only=False) for row in rows)
    # A copy each: a view of one row would keep the whole shard in memory.
    return [row.reshape(-1, hidden).copy() for row in found]
