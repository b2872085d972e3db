"""The columns of a shard that hold its rows' vectors: their names, their types, and ``RowVectors`` to them and back."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contract.vectors import Layout, RowVectors

VECTOR_COLUMNS: Mapping[Layout, tuple[str, ...]] = {
    "pooled": ("embedding",),
    "tokens": ("embedding",),
    "sparse": ("indices", "weights"),
}
"""Their names."""


def embedding_type(element: pa.DataType, width: int, *, per_token: bool) -> pa.DataType:
    """The type of a shard's ``embedding``.

    A list of fixed size wherever that reads back as it was written. A null one has as many null elements in Arrow once
    it was in Parquet, and pandas makes float64 of a whole column of integers that has nulls among them; under a null in
    a plain list there is nothing.

    Args:
        element: the type of an element.
        width: elements of a vector.
        per_token: whether a row has a vector for each of its tokens; none of them is null by itself.
    """
    fixed = pa.list_(element, width)
    if per_token:
        return pa.list_(fixed)
    return pa.list_(element) if pa.types.is_integer(element) else fixed


def is_per_token(embedding: pa.DataType) -> bool:
    """Whether rows of this ``embedding_type`` have a vector for each of their tokens."""
    return pa.types.is_nested(embedding.value_type)


def vector_types(layout: Layout, element: pa.DataType, width: int) -> dict[str, pa.DataType]:
    """The columns of a row's vectors, name → type.

    Args:
        layout: what a row has.
        element: the type of an element.
        width: elements of a vector; of no meaning where it is sparse.
    """
    if layout == "sparse":
        return {"indices": pa.list_(pa.int32()), "weights": pa.list_(element)}
    return {"embedding": embedding_type(element, width, per_token=layout == "tokens")}


def vector_columns(vectors: RowVectors, without: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
    """The columns of the vectors of ``n`` rows, name → values.

    Args:
        vectors: of the rows that have one, in row order.
        without: ``[n]``: whether a row has none, and so is null.
    """
    values, width = vectors.values, vectors.values.shape[1]
    types = vector_types(vectors.layout, pa.from_numpy_dtype(values.dtype), width)
    counts = np.zeros(len(without), np.intp)
    counts[~without] = vectors.counts
    flat: pa.Array = pa.array(values.reshape(-1))
    if vectors.indices is not None:
        parts = {"indices": pa.array(vectors.indices), "weights": flat}
        return {name: _lists(part, counts, types[name], without) for name, part in parts.items()}
    kind = types["embedding"]
    if pa.types.is_fixed_size_list(kind):
        full = np.zeros((len(without), width), values.dtype)
        full[~without] = values
        column = pa.FixedSizeListArray.from_arrays(pa.array(full.reshape(-1)), type=kind, mask=pa.array(without))
    elif is_per_token(kind):
        column = _lists(pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type), counts, kind, without)
    else:
        column = _lists(flat, counts * width, kind, without)
    return {"embedding": column}


def _lists(
    values: pa.Array, lengths: npt.NDArray[np.intp], kind: pa.DataType, without: npt.NDArray[np.bool_]
) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=pa.array(without))


def vectors_of(table: pa.Table) -> RowVectors:
    """The vectors of a shard's rows that have one, in their order: the inverse of ``vector_columns``.

    Args:
        table: with the columns of the vectors, at least.
    """
    if "weights" in table.column_names:
        weights, indices = (table.column(name).combine_chunks().drop_null() for name in ("weights", "indices"))
        counts = pc.list_value_length(weights).to_numpy().astype(np.intp)
        return RowVectors("sparse", weights.flatten().to_numpy()[:, None], counts, indices.flatten().to_numpy())
    column = table.column("embedding").combine_chunks().drop_null()
    if not is_per_token(column.type):
        width = len(column.flatten()) // max(1, len(column))
        return RowVectors.pooled(column.flatten().to_numpy().reshape(len(column), width))
    counts = pc.list_value_length(column).to_numpy()
    vectors = column.flatten()
    return RowVectors.of_tokens(vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size), counts)
