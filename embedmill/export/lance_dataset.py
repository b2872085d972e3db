"""A Lance dataset with an IVF index."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.errors import UserError, first_line
from contract.words import count
from embedmill.export.source import Floats, Rows, Source
from embedmill.export.target import check_owner, ordered, owner, padded, partitions

_OWNER = b"embedmill"
"""The key of the schema's metadata that says what the dataset was made from."""

_LEAST_ROWS = 256
"""Rows from which an index is made: the fewest that Lance trains one with. Fewer are compared one by one."""


class LanceTarget:
    """See ``Target``. Each shard is one append, which is there in full or not at all.

    Args:
        dataset: made for this job.
        source: the job.
    """

    setting = "nprobes"
    settings: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)

    def __init__(self, dataset: lance.LanceDataset, source: Source) -> None:
        self._dataset, self._source = dataset, source

    def __str__(self) -> str:
        return f"lance:{self._dataset.uri}"

    def present(self) -> Mapping[int, int]:
        there: Counter[int] = Counter()
        for part in self._dataset.to_batches(columns=["row_id"]):
            there.update((part.column(0).to_numpy() // self._source.job.batch_rows).tolist())
        return there

    def add(self, rows: Rows) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), self._source.elements)
        table = pa.table(
            [pa.array(rows.ids), vectors, *rows.kept.columns], schema=self._dataset.schema.remove_metadata()
        )
        self._dataset = lance.write_dataset(table, self._dataset, mode="append")

    def build_index(self, say: Callable[[str], None]) -> str:
        dataset = self._dataset
        if len(dataset.get_fragments()) > 1:
            dataset.optimize.compact_files()  # one fragment for each shard would make every read slow
        made = {name for index in dataset.describe_indices() for name in index.field_names}
        if "row_id" not in made:
            dataset.create_scalar_index("row_id", "BTREE")
        rows = dataset.count_rows()
        cells = partitions(rows)
        if rows >= _LEAST_ROWS and "embedding" not in made:
            dataset.create_index("embedding", "IVF_FLAT", metric="cosine", num_partitions=cells)
        dataset.cleanup_old_versions(timedelta(0))  # the fragments of single shards
        return (
            f"IVF_FLAT, {count(cells, 'partition')}" if rows >= _LEAST_ROWS else f"none: fewer than {_LEAST_ROWS} rows"
        )

    def stored(self, vectors: Floats) -> Floats:
        return vectors

    def vectors(self, ids: npt.NDArray[np.int64]) -> Floats:
        wanted = ", ".join(map(str, np.unique(ids)))
        table = self._dataset.to_table(columns=["row_id", "embedding"], filter=f"row_id IN ({wanted})")
        flat = table["embedding"].combine_chunks().flatten().to_numpy()
        return ordered(ids, table["row_id"].to_numpy(), flat.reshape(table.num_rows, self._source.elements))

    def nearest(self, queries: Floats, most: int, setting: int) -> npt.NDArray[np.int64]:
        return padded([self._one(query, most, setting) for query in queries], most)

    def _one(self, query: Floats, most: int, setting: int) -> list[int]:
        near = {"column": "embedding", "q": query, "k": most, "nprobes": setting, "metric": "cosine"}
        return self._dataset.to_table(columns=["row_id", "_distance"], nearest=near)["row_id"].to_pylist()

    @property
    def usage(self) -> str:
        return f'lance.dataset("{self._dataset.uri}")'


@contextlib.contextmanager
def lance_dataset(path: str, source: Source) -> Iterator[LanceTarget]:
    """A Lance dataset, made if it is not there.

    Args:
        path: a folder, or an address that Lance opens.
        source: what is exported.

    Raises:
        UserError: it is another's, or Lance fails.
    """
    try:
        yield LanceTarget(_opened(path, source), source)
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise UserError(f"Lance cannot write or read {path} ({first_line(error)})") from None


def _opened(path: str, source: Source) -> lance.LanceDataset:
    if "://" not in path and Path(path).exists() and not (Path(path) / "_versions").exists():
        raise UserError(f"{path} is there, and is no Lance dataset", hint="choose another folder, or remove it")
    try:
        dataset = lance.dataset(path)
    except (ValueError, FileNotFoundError):
        schema = pa.schema(
            [
                pa.field("row_id", pa.int64()),
                pa.field("embedding", pa.list_(pa.float32(), source.elements)),
                *source.columns,
            ],
            metadata={_OWNER: owner(source).encode()},
        )
        return lance.write_dataset(schema.empty_table(), path, schema=schema, mode="create")
    found = (dataset.schema.metadata or {}).get(_OWNER)
    check_owner(path, found.decode() if found else None, source)
    return dataset
