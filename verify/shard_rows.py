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
from contract.vector_columns import is_per_token, vector_types
from contract.vectors import Layout
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


def read_rows(file: pq.ParquetFile, layout: Layout, form: VectorForm, elements: int) -> ShardRows:
    """Read every value of a shard, and so check the checksum of every page. A part of the rows is in memory at a time.

    Args:
        file: the shard.
        layout: what its rows have.
        form: the form of its vectors.
        elements: of a vector, before it is quantized.

    Raises:
        ValueError: a column has nulls, or not as many values as rows; or the vectors have another width.
    """
    _check_types(file.schema_arrow, layout, form, elements)
    digests = {name: ColumnDigest() for name in file.schema_arrow.names}
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("row_id", "n_tokens", "truncated", "failed")}
    vector_facts = []
    for part in file.iter_batches(_TOKEN_ROWS if layout == "tokens" else _ROWS):
        for name, digest in digests.items():
            digest.update(part.column(name))
        for name in ("row_id", "n_tokens", "truncated"):
            columns[name].append(_without_null(name, part.column(name)))
        columns["failed"].append(part.column("error").is_valid().to_numpy(zero_copy_only=False))
        vector_facts.append(
            _facts_of_sparse(part, elements) if layout == "sparse" else _facts_of(part["embedding"], form, elements)
        )
    facts = np.concatenate(vector_facts) if vector_facts else np.empty(0, _VECTOR_FACTS)
    if len(facts) != file.metadata.num_rows:
        raise ValueError(f"{count(len(facts), 'row')}, the footer says {file.metadata.num_rows:,}")
    arrays: dict[str, Any] = {name: facts[name] for name in _VECTOR_FACTS.names or ()}
    arrays |= {name: np.concatenate(parts) if parts else np.empty(0, bool) for name, parts in columns.items()}
    return ShardRows(**arrays, digests={name: digest.hexdigest() for name, digest in digests.items()})


def _check_types(schema: pa.Schema, layout: Layout, form: VectorForm, elements: int) -> None:
    """ValueError where the columns of the vectors have other types, such as vectors of another width."""
    for name, kind in vector_types(layout, form.element, form.width(elements)).items():
        there = schema.field(name).type if name in schema.names else pa.null()
        if there != kind:
            widths = _width(there), _width(kind)
            if None in widths or widths[0] == widths[1]:
                raise ValueError(f"vectors of type {there}, expected a column {name} of {kind}")
            raise ValueError(f"vectors of {count(int(widths[0] or 0), 'element')}, expected {widths[1]:,}")


def _width(kind: pa.DataType) -> int | None:
    """Elements of the vectors of a column of this type; None where that does not say it."""
    vector = kind.value_type if pa.types.is_list(kind) else kind
    return vector.list_size if pa.types.is_fixed_size_list(vector) else None


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


def _facts_of_sparse(rows: pa.RecordBatch, elements: int) -> npt.NDArray[np.void]:
    """As ``_facts_of``, of ``indices`` and ``weights``.

    Raises:
        ValueError: a row's indices do not ascend within a vector of so many elements, or are not as many as its
            weights.
    """
    indices, weights = rows["indices"], rows["weights"]
    facts = np.zeros(len(rows), _VECTOR_FACTS)
    facts["null"] = indices.is_null().to_numpy(zero_copy_only=False)
    facts["low"] = facts["high"] = 1
    lengths = [pc.fill_null(pc.list_value_length(column), -1).to_numpy() for column in (indices, weights)]
    if (lengths[0] != lengths[1]).any():
        row = rows["row_id"][int(np.flatnonzero(lengths[0] != lengths[1])[0])]
        raise ValueError(f"row {row} has not as many weights as indices")
    owners = np.repeat(np.arange(len(rows)), np.maximum(lengths[0], 0))
    numbers = pc.fill_null(indices.flatten(), -1).to_numpy()
    falls = np.flatnonzero((np.diff(numbers) <= 0) & (np.diff(owners) == 0))
    outside = np.flatnonzero((numbers < 0) | (numbers >= elements))
    if len(bad := [*falls, *outside]):
        row = rows["row_id"][int(owners[bad[0]])]
        raise ValueError(f"the indices of row {row} do not ascend from 0 to below {elements:,}")
    values = weights.flatten().to_numpy(zero_copy_only=False)  # a null in place of a number becomes NaN
    facts["non_finite"][owners[~np.isfinite(values)]] = True
    facts["zero"] = ~facts["null"]
    facts["zero"][owners[values != 0]] = False
    return facts


def _without_null(name: str, values: pa.Array) -> npt.NDArray[Any]:
    if values.null_count:
        raise ValueError(f"{count(len(values) - values.null_count, 'value')} of {name} for {count(len(values), 'row')}")
    return values.to_numpy(zero_copy_only=False)
