"""Opening the shards of a job, and saying what is wrong with a file that is none."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from contract.compare import TOLERANCES
from contract.job import Job
from contract.shard import ShardInfo, info_of, open_file
from contract.vector_columns import vector_types
from contract.vectors import Layout

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
