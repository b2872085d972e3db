"""Opening the shards of a job, saying what is wrong with a file that is none, and reading some of its rows."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contract.compare import TOLERANCES
from contract.form import Quantized
from contract.job import Job
from contract.shard import ShardInfo, info_of, open_file
from contract.vector_columns import is_per_token, vector_types
from contract.vectors import Layout, dense_of
from contract.words import count
from verify.values import value_at

CONCURRENT = 16
"""Shards that are read at the same time: an object store takes its time for each."""

_COLUMNS = {
    "row_id": pa.int64(),
    "n_tokens": pa.int32(),
    "truncated": pa.bool_(),
    "error": pa.string(),
    "text_hash": pa.binary(),
}

_Result = TypeVar("_Result")


class BadShard(Exception):
    """A batch's file is missing or is not its shard; the message is the reason."""


class MissingShard(BadShard):
    """The file is not there."""


class UnreadableShard(BadShard):
    """The file is truncated, corrupt or not embedmill's."""


class ForeignShard(BadShard):
    """The shard was made for another job, batch or engine."""


@contextmanager
def open_shard(job: Job, batch: int) -> Iterator[tuple[pq.ParquetFile, ShardInfo]]:
    """A batch's shard, its columns checked, and its footer. No row is read yet.

    Errors of the file inside the ``with`` block are raised as ``UnreadableShard`` too.

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
        raise MissingShard("not there") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UnreadableShard(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_concurrently(read: Callable[[int], _Result], batches: Iterable[int]) -> Iterator[tuple[int, _Result]]:
    """Each batch with what ``read`` returns for it, in order. At most ``CONCURRENT`` results are in memory."""
    left = iter(batches)
    with ThreadPoolExecutor(CONCURRENT) as pool:
        while some := list(itertools.islice(left, CONCURRENT)):
            yield from zip(some, pool.map(read, some), strict=True)


def _check_columns(schema: pa.Schema, job: Job) -> None:
    there = ", ".join(f"{field.name} {field.type}" for field in schema)
    for name, kind in _COLUMNS.items():
        if name not in schema.names or schema.field(name).type != kind:
            raise ValueError(f"no column {name} of {kind} (there: {there})")
    if not any(_has_vectors(schema, layout, job.form.element) for layout in get_args(Layout)):
        raise ValueError(f"no column embedding of vectors of {job.form.element} (there: {there})")
    if missing := [name for name in job.columns if name not in schema.names]:
        raise ValueError(f"no column {missing[0]} of the dataset (there: {there})")


def _has_vectors(schema: pa.Schema, layout: Layout, element: pa.DataType) -> bool:
    """Whether a shard has the columns of this layout, of vectors of any width."""
    kind = schema.field("embedding").type if "embedding" in schema.names else pa.null()
    vector = kind.value_type if pa.types.is_list(kind) else kind
    width = vector.list_size if pa.types.is_fixed_size_list(vector) else 0
    types = vector_types(layout, element, width)
    return all(name in schema.names and schema.field(name).type == kind for name, kind in types.items())


def _check_origin(info: ShardInfo, job: Job, batch: int) -> None:
    if info.job != job.id:
        raise ForeignShard(f"made for job {info.job}")
    if info.batch != batch:
        raise ForeignShard(f"made for batch {info.batch}")
    if info.engine != job.fingerprint:
        raise ForeignShard(f"made by engine {info.engine}, the job's is {job.fingerprint}")
    if info.precision not in TOLERANCES:
        raise ForeignShard(f"made in precision {info.precision}, which has no tolerance here ({', '.join(TOLERANCES)})")


def row_ids(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
    """The rows' ids, int64 ``[rows]``.

    Raises:
        ValueError: some are null, or there are not as many as the footer says rows.
    """
    ids = file.read(columns=["row_id"]).column("row_id")
    if ids.null_count or len(ids) != file.metadata.num_rows:
        raise ValueError(
            f"{count(len(ids) - ids.null_count, 'value')} of row_id for {count(file.metadata.num_rows, 'row')}"
        )
    return ids.to_numpy()


@dataclass(frozen=True, eq=False)
class ShardRow:
    """One row of a shard, as it is compared."""

    vectors: Quantized
    """``[1, width]``, or ``[tokens, width]`` at token level, in the job's form; of a sparse vector the elements that
    are not zero, ``[1, active]``."""
    precision: str
    """A key of ``TOLERANCES``."""
    kept: Sequence[Any] = ()
    """The values of the job's kept columns, as ``verify.values`` gives them."""
    text_hash: bytes | None = None
    """Null where the worker knew of no text."""
    indices: npt.NDArray[np.int32] | None = None
    """Of a sparse vector: which of its elements they are, ``[active]``."""

    def with_zeros(self, elements: int) -> Quantized:
        """``vectors``; a sparse one as ``[1, elements]``."""
        return self.vectors if self.indices is None else dense_of(self.indices, self.vectors[0], elements)


def rows_at(job: Job, batch: int, indices: Sequence[int]) -> list[ShardRow]:
    """The rows at these indices of a batch's shard.

    Raises:
        BadShard: the shard cannot be read.
    """
    with open_shard(job, batch) as (file, info):
        kept = _kept(file, job.columns, indices)
        hashes = file.read(columns=["text_hash"]).column("text_hash").take(pa.array(indices, pa.int64())).to_pylist()
        if "embedding" in file.schema_arrow.names:
            found = zip(_lists(file, "embedding", indices), kept, hashes, strict=True)
            return [ShardRow(vectors, info.precision, values, text) for vectors, values, text in found]
        weights, places = (_lists(file, name, indices) for name in ("weights", "indices"))
        return [
            ShardRow(vectors, info.precision, values, text, where[0])
            for vectors, values, text, where in zip(weights, kept, hashes, places, strict=True)
        ]


def _kept(file: pq.ParquetFile, columns: Sequence[str], indices: Sequence[int]) -> list[list[Any]]:
    table = file.read(columns=list(columns)).take(pa.array(indices, pa.int64()))
    return [[value_at(column, row) for column in table.columns] for row in range(len(indices))]


def _lists(file: pq.ParquetFile, name: str, indices: Iterable[int]) -> list[npt.NDArray[Any]]:
    column = file.read(columns=[name]).column(name).combine_chunks()
    per_token = is_per_token(column.type)
    rows = (column[index].values for index in indices)
    values = ((row.flatten() if per_token else row).to_numpy(zero_copy_only=False) for row in rows)
    shape = (-1, column.type.value_type.list_size) if per_token else (1, -1)
    # A copy each: a view of one row would keep the whole shard in memory.
    return [row.reshape(shape).copy() for row in values]
