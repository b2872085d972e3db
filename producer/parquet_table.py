"""The rows of Parquet files on the Hub, read where they are: one row group at a time, only the selected columns."""

import bisect
import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast
from huggingface_hub import HfFileSystem
from tqdm.contrib.concurrent import thread_map

from contract.errors import UserError, reason

_AT_ONCE = 16
"""Footers that are read at the same time."""


class RowGroup(NamedTuple):
    """A row group that has rows."""

    file: int
    """The index of its file."""
    number: int
    """Its index in the file."""
    rows: int


class ParquetTable:
    """A split's rows in Parquet files on the Hub. Nothing is kept on disk, and one row group in memory.

    It is to the producer what a ``datasets.Dataset`` is: it has ``features`` and ``num_rows``, and a slice of it is a
    ``pyarrow.Table``. Only the columns that are selected, of the row groups that are asked for, are fetched.

    Args:
        files: their ``hf://`` addresses, pinned to a commit, in the rows' order.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files, self._columns = list(files), None
        self._hub = HfFileSystem()
        self._held: tuple[int, pa.Table] | None = None

    @functools.cached_property
    def features(self) -> datasets.Features:
        """The columns and their types, from the first file."""
        return datasets.Features.from_arrow_schema(self._footer(self._files[0]).schema.to_arrow_schema())

    @property
    def num_rows(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return self.num_rows

    def select_columns(self, columns: list[str]) -> "ParquetTable":
        """The same rows with these columns alone."""
        selected = copy.copy(self)
        selected._columns, selected._held = columns, None  # type: ignore[assignment]
        return selected

    def with_format(self, kind: str) -> "ParquetTable":
        """Itself: Arrow is the only format."""
        return self

    def __getitem__(self, rows: slice) -> pa.Table:
        """These consecutive rows.

        Raises:
            UserError: the Hub does not give them.
        """
        start, stop, _ = rows.indices(self.num_rows)
        parts, number = [], bisect.bisect_right(self._ends, start)
        while start < stop:
            begin, end = self._ends[number] - self._groups[number].rows, self._ends[number]
            parts.append(self._group(number).slice(start - begin, min(stop, end) - start))
            start, number = end, number + 1
        return pa.concat_tables(parts)

    @functools.cached_property
    def _footers(self) -> list[pq.FileMetaData]:
        for folder in {file.rsplit("/", 1)[0] for file in self._files}:
            with _explained(folder):
                self._hub.ls(folder)  # one request, in place of one for each file
        quiet = not datasets.utils.is_progress_bar_enabled()
        return thread_map(
            self._footer, self._files, max_workers=_AT_ONCE, desc="Reading footers", unit="file", disable=quiet
        )

    @functools.cached_property
    def _groups(self) -> list[RowGroup]:
        groups = (
            RowGroup(file, number, footer.row_group(number).num_rows)
            for file, footer in enumerate(self._footers)
            for number in range(footer.num_row_groups)
        )
        return [group for group in groups if group.rows]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(group.rows for group in self._groups))

    def _footer(self, file: str) -> pq.FileMetaData:
        return self._read(file, pq.read_metadata)

    def _group(self, number: int) -> pa.Table:
        """A row group; the last one is held, because batches follow one another."""
        if self._held is None or self._held[0] != number:
            group = self._groups[number]
            self._held = None
            table = self._read(
                self._files[group.file],
                lambda source: pq.ParquetFile(
                    source, metadata=self._footers[group.file], pre_buffer=True
                ).read_row_group(group.number, columns=self._columns),
            )
            # datasets casts each file to the first one's types; the rows of a batch may come from two.
            kinds = self.features.arrow_schema
            self._held = number, table_cast(table, pa.schema([kinds.field(name) for name in table.column_names]))
        return self._held[1]

    def _read(self, file: str, read: Callable[[Any], Any]) -> Any:
        # Each range is asked for once, and just as Parquet wants it: reading ahead would fetch other columns.
        with _explained(file), self._hub.open(file, "rb", cache_type="none") as source:
            return read(source)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the network, of HTTP, of Parquet
        raise UserError(
            f"{address} cannot be read ({reason(error)})",
            hint="run the same command again: a job goes on where it was",
        ) from None
