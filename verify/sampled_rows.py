"""The sampled rows as their shards hold them, each shard read once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contract.form import Quantized
from contract.job import Job
from contract.vector_columns import is_per_token
from contract.vectors import dense_of
from verify.sample import SampledRow
from verify.shards import BadShard, open_shard
from verify.values import value_at


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


def read_sampled(job: Job, rows: Iterable[SampledRow]) -> tuple[dict[SampledRow, ShardRow], dict[int, str]]:
    """What the shards hold of these rows.

    Returns:
        Each row with what its shard holds of it, and the batches whose shards could not be read, with why.
    """
    by_batch: dict[int, list[SampledRow]] = {}
    for row in rows:
        by_batch.setdefault(row.batch, []).append(row)
    found: dict[SampledRow, ShardRow] = {}
    unreadable: dict[int, str] = {}
    for batch, some in sorted(by_batch.items()):
        try:
            found |= zip(some, rows_at(job, batch, [row.index for row in some]), strict=True)
        except BadShard as error:
            unreadable[batch] = str(error)
    return found, unreadable


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
