"""How near the rows of a shard are to queries."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.engine import EngineSpec
from contract.form import VectorForm
from contract.vectors import RowVectors


class Similarity(Protocol):
    """How similar some queries are to the rows of a shard.

    Args:
        queries: their vectors, as the engine gives them.
        spec: the engine.
        form: of the rows' vectors.
    """

    name: str
    columns: Sequence[str]
    """The columns of a shard that it needs; all of them are null in the same rows."""

    @property
    def queries(self) -> int:
        """How many."""
        ...

    def of(self, table: pa.Table) -> npt.NDArray[np.float32]:
        """The similarities, ``[queries, rows]``.

        Args:
            table: at least one row, with ``columns``, in which nothing is null.
        """
        ...


class Cosine:
    """Of one vector for each row; see ``Similarity``."""

    name: str = "cosine"
    columns: Sequence[str] = ("embedding",)

    def __init__(self, queries: RowVectors, spec: EngineSpec, form: VectorForm) -> None:
        self._form = form
        self._queries = _unit(form.shortened(queries.values, normalize=spec.normalize))

    @property
    def queries(self) -> int:
        return len(self._queries)

    def of(self, table: pa.Table) -> npt.NDArray[np.float32]:
        stored = table["embedding"].chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
        return self._queries @ _unit(self._form.dequantized(stored, self._queries.shape[1])).T


class DotProduct:
    """Of sparse vectors; see ``Similarity``."""

    name: str = "dot product"
    columns: Sequence[str] = ("indices", "weights")

    def __init__(self, queries: RowVectors, spec: EngineSpec, form: VectorForm) -> None:
        self._queries = np.concatenate([*queries.split(spec.hidden)])

    @property
    def queries(self) -> int:
        return len(self._queries)

    def of(self, table: pa.Table) -> npt.NDArray[np.float32]:
        indices, weights = (table[name].chunk(0) for name in self.columns)
        lengths = indices.value_lengths().to_numpy()
        values = weights.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        products = self._queries[:, indices.flatten().to_numpy()] * values
        return np.add.reduceat(products, np.cumsum(lengths) - lengths, axis=1)  # no row of a shard has none


def _unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
