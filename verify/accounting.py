"""Row accounting, from Parquet metadata and ``row_id`` alone: every row is in its shard exactly once.

A batch is a fixed slice of the dataset, so its shard must hold exactly those row ids, in order. That is a statement
about one shard alone: however many there are, memory holds the ids of a few.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

from contract.job import Job
from verify.findings import NONE, Findings, Tally
from verify.shards import BadShard, Missing, Stranger, open_shard, row_ids, side_by_side


@dataclass(frozen=True)
class Accounting(Tally):
    """What the shards hold against what they must hold. True when every row is there once."""

    expected_shards: int = 0
    shards: int = 0
    """Shards of this job that could be read."""
    expected_rows: int = 0
    rows: int = 0
    """Rows in those shards, whether they belong there or not."""
    missing_shards: Findings = NONE
    unreadable: Findings = NONE
    """Files in a shard's place that are truncated, corrupt or not embedmill's."""
    strangers: Findings = NONE
    """Shards that another job, batch or engine made. Their rows are not counted as this job's."""
    unexpected_files: Findings = NONE
    """Whatever else lies in ``data/``; readers of Parquet folders stumble over it."""
    missing_rows: Findings = NONE
    rows_twice: Findings = NONE
    foreign_rows: Findings = NONE
    """Rows in a shard that is not theirs, or in no slice of the dataset at all."""
    disordered: Findings = NONE
    """Shards whose rows are not in the dataset's order."""
    readable: tuple[int, ...] = ()
    """The batches whose shards could be read."""
    at_fault: tuple[int, ...] = ()
    """The batches with a file in their shard's place that has any of these faults."""
    strays: tuple[str, ...] = ()
    """The names of all unexpected files."""

    def __bool__(self) -> bool:
        return self.rows == self.expected_rows and not any(self.findings.values())


def account(job: Job) -> Accounting:
    """Count a job's shards and rows."""
    expected = {job.shard(batch).name for batch in range(job.batches)}
    strays = sorted(set(job.data.names()) - expected)
    total, readable, at_fault = Accounting(unexpected_files=Findings.of(strays)), [], []
    for batch, one in side_by_side(functools.partial(_of_shard, job), range(job.batches)):
        total += one
        if one.shards:
            readable.append(batch)
        if not one and not one.missing_shards:
            at_fault.append(batch)
    return replace(total, readable=tuple(readable), at_fault=tuple(at_fault), strays=tuple(strays))


def _of_shard(job: Job, batch: int) -> Accounting:
    wanted, name = job.row_range(batch), job.shard(batch).name
    due = Accounting(expected_shards=1, expected_rows=len(wanted))
    try:
        with open_shard(job, batch) as (file, _):
            ids = row_ids(file)
    except Missing:
        return due + Accounting(missing_rows=Findings.of(wanted), missing_shards=Findings.of([name]))
    except BadShard as error:
        why = Findings.of([f"{name}: {error}"])
        kind = Accounting(strangers=why) if isinstance(error, Stranger) else Accounting(unreadable=why)
        return due + kind + Accounting(missing_rows=Findings.of(wanted))
    read = due + Accounting(shards=1, rows=len(ids))
    every = np.arange(wanted.start, wanted.stop)
    if np.array_equal(ids, every):
        return read
    found, counts = np.unique(ids, return_counts=True)
    belongs = (found >= wanted.start) & (found < wanted.stop)
    return read + Accounting(
        missing_rows=Findings.of(np.setdiff1d(every, found).tolist()),
        rows_twice=Findings.of(found[belongs & (counts > 1)].tolist()),
        foreign_rows=Findings.of(found[~belongs].tolist()),
        disordered=Findings.of([name] if (ids[1:] < ids[:-1]).any() else []),
    )
