"""Row accounting, from Parquet metadata and ``row_id`` alone: every row is in its shard exactly once.

A batch is a fixed slice of the dataset, so its shard must hold exactly those row ids, in order. Each shard is checked
by itself: however many there are, memory holds the ids of a few.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from contract.findings import Findings
from contract.job import Job
from contract.verdict import RowAccounting
from contract.words import count
from verify.shards import BadShard, ForeignShard, MissingShard, open_shard, read_concurrently


@dataclass(frozen=True)
class Accounting:
    """The counts of all shards, and which batches and files they are about."""

    counts: RowAccounting
    readable: tuple[int, ...]
    """The batches whose shards could be read."""
    at_fault: tuple[int, ...]
    """The batches whose shard is there and has a fault."""
    unexpected_files: tuple[str, ...]
    """The names of all files in ``data/`` that are no shard's."""

    @property
    def passed(self) -> bool:
        return self.counts.passed


def account(job: Job) -> Accounting:
    """Count a job's shards and rows."""
    expected = {job.shard(batch).name for batch in range(job.batches)}
    unexpected = sorted(set(job.data.names()) - expected)
    total, readable, at_fault = RowAccounting(unexpected_files=Findings.of(unexpected)), [], []
    for batch, counts in read_concurrently(functools.partial(_of_shard, job), range(job.batches)):
        total += counts
        if counts.shards:
            readable.append(batch)
        if not counts.passed and not counts.missing_shards.count:
            at_fault.append(batch)
    return Accounting(total, tuple(readable), tuple(at_fault), tuple(unexpected))


def _of_shard(job: Job, batch: int) -> RowAccounting:
    wanted, name = job.row_range(batch), job.shard(batch).name
    expected = RowAccounting(expected_shards=1, expected_rows=len(wanted))
    try:
        with open_shard(job, batch) as (file, _):
            ids = _row_ids(file)
    except MissingShard:
        return expected + RowAccounting(missing_rows=Findings.of(wanted), missing_shards=Findings.of([name]))
    except BadShard as error:
        bad = Findings.of([f"{name}: {error}"])
        foreign = isinstance(error, ForeignShard)
        kind = RowAccounting(foreign_shards=bad) if foreign else RowAccounting(unreadable=bad)
        return expected + kind + RowAccounting(missing_rows=Findings.of(wanted))
    read = expected + RowAccounting(shards=1, rows=len(ids))
    in_order = np.arange(wanted.start, wanted.stop)
    if np.array_equal(ids, in_order):
        return read
    found, counts = np.unique(ids, return_counts=True)
    belongs = (found >= wanted.start) & (found < wanted.stop)
    return read + RowAccounting(
        missing_rows=Findings.of(np.setdiff1d(in_order, found).tolist()),
        rows_twice=Findings.of(found[belongs & (counts > 1)].tolist()),
        foreign_rows=Findings.of(found[~belongs].tolist()),
        disordered=Findings.of([name] if (ids[1:] < ids[:-1]).any() else []),
    )


def _row_ids(file: pq.ParquetFile) -> npt.NDArray[np.int64]:
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
