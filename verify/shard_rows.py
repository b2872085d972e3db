"""Every value of a shard, read once: what all rows are checked for, sampled or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.digest import ColumnDigest
from contract.form import VectorForm
from contract.shard import embedding_type, is_per_token
from contract.words import count

_ROWS, _TOKEN_ROWS = 1024, 64
"""Rows that are in memory at once. At token level 64 rows' vectors may be a hundred megabytes."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """What was seen of each of a shard's ``n`` rows when every value of it was read; arrays are ``[n]``."""

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
    """The lowest and the highest Euclidean norm that a row's vectors may have, see ``VectorForm.norm_range``; 1 for a
    row without a vector."""
    digests: Mapping[str, str]
    """Of each column, by its name."""


def read_rows(file: pq.ParquetFile, form: VectorForm, elements: int) -> ShardRows:
    """Read every value of a shard, and so check the checksum of every page. A part of the rows is in memory at a time.

    Args:
        file: the shard.
        form: the form of its vectors.
        elements: of a vector, before it is quantized.

    Raises:
        ValueError: a column has nulls, or not as many values as rows; or the vectors have another width.
    """
    per_token = _check_width(file, form, elements)
    digests = {name: ColumnDigest() for name in file.schema_arrow.names}
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("row_id", "n_tokens", "truncated", "failed")}
    vector_facts = []
    for part in file.iter_batches(_TOKEN_ROWS if per_token else _ROWS):
        for name, digest in digests.items():
            digest.update(part.column(name))
        for name in ("row_id", "n_tokens", "truncated"):
            columns[name].append(_without_null(name, part.column(name)))
        columns["failed"].append(part.column("error").is_valid().to_numpy(zero_copy_only=False))
        vector_facts.append(_facts_of(part.column("embedding"), form, elements))
    facts = np.concatenate(vector_facts) if vector_facts else np.empty(0, _VECTOR_FACTS)
    if len(facts) != file.metadata.num_rows:
        raise ValueError(f"{count(len(facts), 'row')}, the footer says {file.metadata.num_rows:,}")
    arrays: dict[str, Any] = {name: facts[name] for name in _VECTOR_FACTS.names or ()}
    arrays |= {name: np.concatenate(parts) if parts else np.empty(0, bool) for name, parts in columns.items()}
    return ShardRows(**arrays, digests={name: digest.hexdigest() for name, digest in digests.items()})


def _check_width(file: pq.ParquetFile, form: VectorForm, elements: int) -> bool:
    """Whether the shard has vectors for each token; ValueError where the vectors have another width."""
    kind = file.schema_arrow.field("embedding").type
    per_token, width = is_per_token(kind), form.width(elements)
    if kind != embedding_type(form.element, width, per_token=per_token):
        there = (kind.value_type if per_token else kind).list_size
        raise ValueError(f"vectors of {count(there, 'element')}, expected {width:,}")
    return per_token


_VECTOR_FACTS = np.dtype([("null", "?"), ("non_finite", "?"), ("zero", "?"), ("low", "f8"), ("high", "f8")])


def _facts_of(column: pa.Array, form: VectorForm, elements: int) -> npt.NDArray[np.void]:
    """The fields of ``ShardRows`` that vectors decide, one element for each row of the column."""
    facts = np.zeros(len(column), _VECTOR_FACTS)
    facts["null"] = column.is_null().to_numpy(zero_copy_only=False)
    facts["low"] = facts["high"] = 1
    owners, width = np.flatnonzero(~facts["null"]), form.width(elements)
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
    facts["non_finite"][owners[~finite]] = True
    values, owners = values[finite], owners[finite]
    if form.dtype in ("float32", "float16"):
        facts["zero"][owners[~values.any(axis=1)]] = True
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    if len(first):
        low, high = form.norm_range(values, elements)
        facts["low"][owners[first]] = np.minimum.reduceat(low, first)
        facts["high"][owners[first]] = np.maximum.reduceat(high, first)
    return facts


def _without_null(name: str, values: pa.Array) -> npt.NDArray[Any]:
    if values.null_count:
        raise ValueError(f"{count(len(values) - values.null_count, 'value')} of {name} for {count(len(values), 'row')}")
    return values.to_numpy(zero_copy_only=False)
