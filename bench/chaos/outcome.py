"""A run's rows against those of the undisturbed run."""

from dataclasses import dataclass

import numpy as np

from contract.job import Job
from contract.shard import open_file


@dataclass(frozen=True)
class Outcome:
    """The rows of a run against the undisturbed one's."""

    rows: int
    lost: int
    twice: int
    different: int
    failed: tuple[int, ...]
    """Rows that have an error."""


def rows_of(job: Job) -> dict[int, list[tuple[object, str | None]]]:
    """Every row of a job's shards: row id → each (vector or None, error) that there is of it."""
    found: dict[int, list[tuple[object, str | None]]] = {}
    for name in sorted(job.data.names()):
        with open_file(job.data / name) as file:
            table = file.read()
        columns = (table["row_id"].to_pylist(), table["embedding"].to_numpy(), table["error"].to_pylist())
        for row, vector, error in zip(*columns, strict=True):
            found.setdefault(row, []).append((vector, error))
    return found


def compare(job: Job | None, undisturbed: Job) -> Outcome:
    """Compare a run's rows with those of the undisturbed one. Vectors may differ by rounding, which depends on what
    they are computed together with: 1e-5 of elements about 1."""
    expected, found = rows_of(undisturbed), rows_of(job) if job else {}
    failed = tuple(sorted(row for row, there in found.items() if any(error for _, error in there)))
    different = 0
    for row, [(vector, _)] in expected.items():
        for other, error in found.get(row, []):
            if error:
                continue
            same = (vector is None) == (other is None) and (
                vector is None or np.allclose(np.asarray(vector), np.asarray(other), rtol=0, atol=1e-5)
            )
            different += not same
    return Outcome(
        rows=len(expected),
        lost=len(expected.keys() - found.keys()),
        twice=sum(len(there) > 1 for there in found.values()),
        different=different + len(found.keys() - expected.keys()),
        failed=failed,
    )
