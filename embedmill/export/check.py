"""Whether a target has what the job has, and how good its index is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedmill.export.source import Floats, Source
from embedmill.export.target import Target
from verify.neighbours import nearest, unit

NEIGHBOURS = 10
LEAST = 0.95
"""The recall that is looked for."""

_SAMPLE = 200
"""Rows that are read back, and whose neighbours are compared."""

_SAME = 1e-6
"""Two cosines that differ by no more are equal: of rows equally near, any is right."""


@dataclass(frozen=True)
class Checked:
    """What was found."""

    rows: int
    """In the target."""
    wrong_batches: tuple[int, ...]
    """Those of which it has more or fewer rows than the job."""
    expected: int
    """Of the job, with a vector."""
    compared: int
    """Rows that were read back."""
    differing: tuple[int, ...]
    """Ids of those whose vector is another one."""
    recall: float | None
    """The share of the ``NEIGHBOURS`` nearest rows that the index finds; None for a job of one row."""
    setting: int
    """The setting of the index with which it does."""

    @property
    def passed(self) -> bool:
        return not self.wrong_batches and not self.differing and (self.recall is None or self.recall >= LEAST)


def check(target: Target, source: Source) -> Checked:
    """Count the target's rows, read a sample of vectors back, and compare the neighbours that its index finds for them
    with those of an exact search over the job: with the first setting that finds ``LEAST`` of them, or the last."""
    ids, vectors = source.sample(_SAMPLE, seed=1)
    back = target.vectors(ids)
    differing = ids[(back != target.stored(vectors)).any(axis=1)]
    recall, setting = _recall(target, source, ids, vectors)
    there = target.present()
    return Checked(
        rows=sum(there.values()),
        wrong_batches=wrong_batches(there, source),
        expected=source.total,
        compared=len(ids),
        differing=tuple(differing.tolist()),
        recall=recall,
        setting=setting,
    )


def wrong_batches(there: Mapping[int, int], source: Source) -> tuple[int, ...]:
    """The batches of which a target has not as many rows as the job.

    Args:
        there: what ``Target.present`` gave.
        source: the job.
    """
    expected = {batch: rows for batch, rows in enumerate(source.expected) if rows}
    return tuple(batch for batch in sorted({*there, *expected}) if there.get(batch, 0) != expected.get(batch, 0))


def _recall(target: Target, source: Source, ids: npt.NDArray[np.int64], queries: Floats) -> tuple[float | None, int]:
    most = min(NEIGHBOURS, source.total - 1)
    if not most:
        return None, target.settings[0]
    exact = nearest(source, ids.tolist(), queries, np.ones(source.job.rows, np.bool_), most)
    least = exact.cosines[:, -1:] - _SAME
    recall, setting = 0.0, target.settings[0]
    for setting in target.settings:
        found = target.nearest(queries, most + 1, setting)
        cosines = _cosines(target, queries, found)
        right = (found[:, :, None] == exact.rows[:, None, :]).any(axis=2) | (cosines >= least)
        good = right & (found >= 0) & (found != ids[:, None])
        recall = float(np.minimum(good.sum(axis=1), most).mean() / most)
        if recall >= LEAST:
            break
    return recall, setting


def _cosines(target: Target, queries: Floats, found: npt.NDArray[np.int64]) -> Floats:
    """Of each query to the rows found for it, ``[q, n]``, by the vectors that the target has stored."""
    vectors = unit(target.vectors(found.reshape(-1))).reshape(*found.shape, queries.shape[1])
    cosines: Floats = np.einsum("qe,qne->qn", unit(queries), vectors)
    return cosines
