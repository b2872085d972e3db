"""Reading one shard of a job, and saying what is wrong with a file that is none."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.compare import TOLERANCES
from contract.digest import ColumnDigest
from contract.form import Stored, VectorForm
from contract.job import Job
from contract.shard import ShardInfo, embedding_type, info_of, is_per_token, open_file
from contract.words import count

_AT_ONCE = 16
"""Shards that are read side by side: an object store takes its time for each."""

_ROWS, _TOKEN_ROWS = 1024, 64
"""Rows that are held at once. At token level 64 rows' vectors may be a hundred megabytes."""

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
    if not any(kind == due for due in _embedding_types(kind, job.form.element)):
        raise ValueError(f"no column embedding of vectors of {job.form.element} (there: {there})")
    if missing := [name for name in job.columns if name not in schema.names]:
        raise ValueError(f"no column {missing[0]} of the dataset (there: {there})")


def _embedding_types(kind: pa.DataType, element: pa.DataType) -> Iterator[pa.DataType]:
    """What a column of vectors may be, of each row and of each token; the width is the column's own, if it has one."""
    vector = kind.value_type if pa.types.is_list(kind) else kind
    width = vector.list_size if pa.types.is_fixed_size_list(vector) else 0
    for per_token in (False, True):
        yield embedding_type(element, width, per_token=per_token)


def _check_origin(info: ShardInfo, job: Job, batch: int) -> None:
    if info.job != job.id:
        raise Stranger(f"made for job {info.job}")
    if info.batch != batch:
        raise Stranger(f"made for batch {info.batch}")
    if info.engine != job.fingerprint:
        raise Stranger(f"made by engine {info.engine}, the job's is {job.fingerprint}")
    if info.precision not in TOLERANCES:
        raise Stranger(f"made in precision {info.precision}, which has no tolerance here ({', '.join(TOLERANCES)})")


def row_ids(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
    """The rows' ids, int64 ``[rows]``.

    Raises:
        ValueError: some are null, or there are not as many as the footer says rows.
    """
    found = file.read(columns=["row_id"]).column("row_id")
    if found.null_count or len(found) != file.metadata.num_rows:
        raise ValueError(
            f"{count(len(found) - found.null_count, 'value')} of row_id for {count(file.metadata.num_rows, 'row')}"
        )
    return found.to_numpy()


@dataclass(frozen=True, eq=False)
class ShardRows:
    """What a shard says of each of its ``n`` rows, every value of it read."""

    row_id: npt.NDArray[np.int64]
    n_tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_]
    """Rows with an error."""
    null: npt.NDArray[np.bool_]
    """Rows without a vector."""
    non_finite: npt.NDArray[np.bool_]
    """Rows with a value that is NaN, infinite or null in a vector."""
    zero: npt.NDArray[np.bool_]
    """Rows with a vector of which every value is 0. A quantized vector has no zero."""
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    """Between which Euclidean norms each row's vectors are; the lowest and the highest at token level, 1 for a row
    without a vector. See ``VectorForm.norm_range``."""
    digests: Mapping[str, str]
    """Of each column, by its name."""


def read_rows(file: pq.ParquetFile, form: VectorForm, elements: int) -> ShardRows:
    """Read every value of a shard, and so compare every page with its checksum; only some rows are held at once.

    Args:
        file: the shard.
        form: the form of its vectors.
        elements: of a vector, before it is quantized.

    Raises:
        ValueError: a column has nulls, or not as many values as rows; or the vectors have another width.
    """
    kind = file.schema_arrow.field("embedding").type
    per_token = is_per_token(kind)
    if kind != embedding_type(form.element, width := form.width(elements), per_token=per_token):
        there = (kind.value_type if per_token else kind).list_size
        raise ValueError(f"vectors of {count(there, 'element')}, expected {width:,}")
    digests = {name: ColumnDigest() for name in file.schema_arrow.names}
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("row_id", "n_tokens", "truncated", "failed")}
    judged = []
    for part in file.iter_batches(_TOKEN_ROWS if per_token else _ROWS):
        for name, digest in digests.items():
            digest.update(part.column(name))
        for name in ("row_id", "n_tokens", "truncated"):
            columns[name].append(_without_null(name, part.column(name)))
        columns["failed"].append(part.column("error").is_valid().to_numpy(zero_copy_only=False))
        judged.append(_judged(part.column("embedding"), form, elements))
    vectors = np.concatenate(judged) if judged else np.empty(0, _JUDGED)
    if len(vectors) != file.metadata.num_rows:
        raise ValueError(f"{count(len(vectors), 'row')}, the footer says {file.metadata.num_rows:,}")
    arrays: dict[str, Any] = {name: vectors[name] for name in _JUDGED.names or ()}
    arrays |= {name: np.concatenate(parts) if parts else np.empty(0, bool) for name, parts in columns.items()}
    return ShardRows(
        **arrays,
        digests={name: digest.hexdigest() for name, digest in digests.items()},
    )


_JUDGED = np.dtype([("null", "?"), ("non_finite", "?"), ("zero", "?"), ("low", "f8"), ("high", "f8")])


def _judged(column: pa.Array, form: VectorForm, elements: int) -> npt.NDArray[np.void]:
    """What ``ShardRows`` says of some rows' vectors, an element of ``_JUDGED`` for each row."""
    found = np.zeros(len(column), _JUDGED)
    found["null"] = column.is_null().to_numpy(zero_copy_only=False)
    found["low"] = found["high"] = 1
    owners, width = np.flatnonzero(~found["null"]), form.width(elements)
    column = column.drop_null()
    if is_per_token(column.type):
        owners = np.repeat(owners, column.value_lengths().to_numpy(zero_copy_only=False))
        column = column.flatten()
    for there in pc.unique(pc.list_value_length(column)).to_pylist():
        if there != width:  # a plain list's type does not say it
            raise ValueError(f"a vector of {count(there, 'element')}, expected {width:,}")
    # A null in place of a number becomes NaN.
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(owners), width)
    finite = np.isfinite(values).all(axis=1)
    found["non_finite"][owners[~finite]] = True
    values, owners = values[finite], owners[finite]
    if form.dtype in ("float32", "float16"):
        found["zero"][owners[~values.any(axis=1)]] = True
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    if len(first):
        low, high = form.norm_range(values, elements)
        found["low"][owners[first]] = np.minimum.reduceat(low, first)
        found["high"][owners[first]] = np.maximum.reduceat(high, first)
    return found


def _without_null(name: str, values: pa.Array) -> npt.NDArray[Any]:
    if values.null_count:
        raise ValueError(f"{count(len(values) - values.null_count, 'value')} of {name} for {count(len(values), 'row')}")
    return values.to_numpy(zero_copy_only=False)


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
    per_token = is_per_token(column.type)
    rows = (column[place].values for place in places)
    found = ((row.flatten() if per_token else row).to_numpy(zero_copy_only=False) for row in rows)
    shape = (-1, column.type.value_type.list_size) if per_token else (1, -1)
    # A copy each: a view of one row would keep the whole shard in memory.
    return [row.reshape(shape).copy() for row in found]
