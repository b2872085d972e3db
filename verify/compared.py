"""One sampled row: what its shard holds against what PyTorch gives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.compare import TOLERANCES, Comparison, Tolerance, compare
from contract.form import Stored, VectorForm
from contract.job import Job
from contract.words import count
from verify.sample import Row
from verify.shards import BadShard, kept, open_shard, vectors
from verify.source import same

_PLAIN = VectorForm()

_EXCERPT, _TEXT = 60, 400
"""Characters of a row's text that are shown in the terminal, and in the report."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a shard holds of a sampled row."""

    vectors: Stored
    """``[1, width]``, or ``[tokens, width]`` at token level, in the job's form."""
    precision: str
    """A key of ``TOLERANCES``."""
    kept: Sequence[Any] = ()
    """The values of the dataset's columns that the shard has."""


@dataclass(frozen=True, eq=False)
class Recomputed:
    """What a row should be."""

    row: Row
    text: str | None
    """With its prefix; None where the dataset has none, or a blank one."""
    n_tokens: int
    """Before truncation, special tokens counted; 0 without a text."""
    vectors: npt.NDArray[np.float32]
    """``[1, elements]``; at token level ``[min(n_tokens, max_length), elements]``; no row of it without a text"""
    kept: Sequence[Any] = ()
    """The dataset's values of the columns that are carried into the shards."""


@dataclass(frozen=True)
class Compared:
    """A row and how far it is from the reference."""

    row: Row
    precision: str
    comparison: Comparison | None
    """None where there is nothing of one shape to compare."""
    power: float
    """Mean square of the reference's elements, of finite vectors only."""
    length_problem: str
    """How its ``n_tokens`` or ``truncated`` is wrong; empty if they are right."""
    vector_problem: str
    """How its vectors break the tolerance; empty if they keep to it."""
    text: str
    """Its text's beginning, one printable line."""
    kept_problem: str = ""
    """How its kept columns differ from the dataset's; empty if they are the same."""

    @property
    def excerpt(self) -> str:
        """As much of the text as fits into a line of the terminal."""
        return _excerpt(self.text, _EXCERPT)

    @property
    def problem(self) -> str:
        return "; ".join(part for part in (self.length_problem, self.vector_problem, self.kept_problem) if part)


def read_found(job: Job, rows: Iterable[Row]) -> tuple[dict[Row, Found], dict[int, str]]:
    """The sampled rows' vectors, read one shard at a time; and the batches whose shards could not be read, with why."""
    by_batch: dict[int, list[Row]] = {}
    for row in rows:
        by_batch.setdefault(row.batch, []).append(row)
    found: dict[Row, Found] = {}
    unreadable: dict[int, str] = {}
    for batch, some in sorted(by_batch.items()):
        try:
            with open_shard(job, batch) as (file, info):
                places = [row.place for row in some]
                read = zip(vectors(file, places), kept(file, job.columns, places), strict=True)
        except BadShard as error:
            unreadable[batch] = str(error)
            continue
        found |= {row: Found(vector, info.precision, more) for row, (vector, more) in zip(some, read, strict=True)}
    return found, unreadable


def compare_row(
    found: Found, expected: Recomputed, max_length: int, form: VectorForm = _PLAIN, *, windowed: bool = False
) -> Compared:
    """Compare one row.

    Of a quantized vector, what is compared is the vector nearest to the reference that is stored like it: see
    ``VectorForm.nearest``. So all tolerances are those of vectors that are not quantized.

    Args:
        found: what its shard holds.
        expected: what PyTorch gives.
        max_length: the engine's, in tokens.
        form: the form of what the shard holds.
        windowed: whether longer texts have windows and are not truncated.
    """
    row, comparison, power = expected.row, None, 0.0
    if expected.text is None:
        vector_problem = "it has a vector, and the dataset has no text there, or a blank one"
    elif found.vectors.shape != (due := (len(expected.vectors), form.width(expected.vectors.shape[1]))):
        there = found.vectors.shape
        vector_problem = f"{there[0]} × {count(there[1], 'element')}, expected {due[0]} × {due[1]}"
    else:
        nearest = form.nearest(found.vectors, expected.vectors)
        comparison = compare(nearest, expected.vectors)
        finite = np.isfinite(nearest).all(axis=1)
        power = float(np.mean(expected.vectors[finite].astype(np.float64) ** 2)) if finite.any() else 0.0
        vector_problem = _breach(comparison, TOLERANCES[found.precision])
    return Compared(
        row=row,
        precision=found.precision,
        comparison=comparison,
        power=power,
        length_problem=_wrong_length(row, expected.n_tokens, truncated=expected.n_tokens > max_length and not windowed),
        vector_problem=vector_problem,
        text=_excerpt(expected.text or "", _TEXT),
        kept_problem=_wrong_kept(found.kept, expected.kept),
    )


def row_limit(tolerance: Tolerance) -> float:
    """The highest relative MSE of one row.

    The bound on relative MSE is for a whole sample. For one row it is never below what a vector of the right norm has
    at the lowest cosine allowed, so that a row is not let through by one bound and stopped by the other.
    """
    return max(tolerance.max_relative_mse, 2 * (1 - tolerance.min_cosine))


def _breach(comparison: Comparison, tolerance: Tolerance) -> str:
    most = row_limit(tolerance)
    if comparison.non_finite:
        return f"NaN or infinity in {comparison.non_finite} of {count(comparison.vectors, 'vector')}"
    if not comparison.min_cosine >= tolerance.min_cosine:
        return f"cosine {comparison.min_cosine:.7f}, below {tolerance.min_cosine}"
    if not comparison.relative_mse <= most:
        return f"relative MSE {comparison.relative_mse:.1e}, above {most:.1e}"
    return ""


def _wrong_length(row: Row, n_tokens: int, *, truncated: bool) -> str:
    if row.n_tokens != n_tokens:
        return f"n_tokens {row.n_tokens}, recomputed {n_tokens}"
    return "" if row.truncated == truncated else f"truncated is {row.truncated} at {count(n_tokens, 'token')}"


def _wrong_kept(found: Sequence[Any], expected: Sequence[Any]) -> str:
    agree = len(found) == len(expected) and all(map(same, found, expected))
    return "" if agree else "a kept column has another value"


def _excerpt(text: str, length: int) -> str:
    """One printable line: a row's text may hold line ends and control characters."""
    start = "".join(char if char.isprintable() else " " for char in text[: 2 * length])
    short = " ".join(start.split())[:length]
    return short + (" …" if len(text) > len(short) else "")


def total(rows: Sequence[Compared]) -> Comparison:
    """All rows as one: what ``contract.compare.compare`` gives for all of their vectors together."""
    comparisons = [(row.comparison, row.power) for row in rows if row.comparison]
    finite = [(one, power, one.vectors - one.non_finite) for one, power in comparisons if one.vectors > one.non_finite]
    vectors = sum(one.vectors for one, _ in comparisons)
    non_finite = sum(one.non_finite for one, _ in comparisons)
    if not finite:
        return Comparison(vectors, np.nan, np.nan, np.nan, np.nan, non_finite)
    weight = vectors - non_finite
    mse = sum(one.mse * count for one, _, count in finite) / weight
    power = sum(power * count for _, power, count in finite) / weight
    return Comparison(
        vectors=vectors,
        mse=mse,
        relative_mse=mse / power if power else np.nan,
        min_cosine=min(one.min_cosine for one, _, _ in finite),
        max_difference=max(one.max_difference for one, _, _ in finite),
        non_finite=non_finite,
    )
