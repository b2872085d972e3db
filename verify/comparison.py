"""The sampled rows: what their shards hold against what PyTorch computes and the dataset has."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.compare import TOLERANCES, Comparison, Tolerance, compare
from contract.form import VectorForm
from contract.words import count
from verify.sample import SampledRow
from verify.sampled_rows import ShardRow, read_sampled
from verify.stats import VectorRules
from verify.values import same

if TYPE_CHECKING:  # PyTorch and datasets take seconds to import
    from verify.readings import Readings
    from verify.reference import ExpectedRow, Reference

_CHUNK = 4096
"""Sampled rows whose vectors are in memory at the same time."""

_TEXT = 400
"""Characters of a row's text that are kept."""


@dataclass(frozen=True)
class ComparedRow:
    """A row and how far it is from the reference."""

    row: SampledRow
    precision: str
    """A key of ``TOLERANCES``."""
    comparison: Comparison | None
    """None where the row has no vectors of the reference's shape."""
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
    hash_problem: str = ""
    """How its ``text_hash`` is not its text's; empty if it is."""

    @property
    def problem(self) -> str:
        problems = (self.length_problem, self.vector_problem, self.kept_problem, self.hash_problem)
        return "; ".join(part for part in problems if part)


@dataclass(frozen=True)
class ComparedSample:
    """All sampled rows that could be compared."""

    rows: tuple[ComparedRow, ...]
    """By row id."""
    unreadable: Mapping[int, str]
    """The batches whose shards could not be read, and why."""


def compare_sample(
    rows: Iterable[SampledRow],
    readings: "Readings",
    reference: "Reference",
    rules: VectorRules,
    step: Callable[[], object] = lambda: None,
) -> ComparedSample:
    """Compute the sampled rows again and compare each. Rows that the dataset does not have are left out.

    Args:
        rows: the sample.
        readings: its texts and kept values, by the second reader.
        reference: the model, and the job whose shards are read.
        rules: what the vectors must be.
        step: called after each row.
    """
    compared: list[ComparedRow] = []
    unreadable: dict[int, str] = {}
    in_order = sorted((row for row in rows if row.row_id in readings.texts), key=lambda row: (row.batch, row.index))
    for start in range(0, len(in_order), _CHUNK):
        found, bad = read_sampled(reference.job, in_order[start : start + _CHUNK])
        unreadable |= bad
        for expected in reference.recompute(found, readings.texts):
            row_id = expected.row.row_id
            text, kept = readings.texts[row_id], readings.kept[row_id]
            compared.append(compare_row(found[expected.row], expected, rules, text, kept))
            step()
    return ComparedSample(tuple(sorted(compared, key=lambda one: one.row.row_id)), unreadable)


def compare_row(
    found: ShardRow, expected: "ExpectedRow", rules: VectorRules, text: str | None = None, kept: Sequence[Any] = ()
) -> ComparedRow:
    """Compare one row.

    Of a quantized vector, the nearest vector that quantizes to the same values is compared (``VectorForm.nearest``), so
    that the tolerances are the same for every dtype.

    Args:
        found: what its shard holds.
        expected: what PyTorch gives.
        rules: what the vectors must be.
        text: the dataset's, without the prefix.
        kept: the dataset's values of the kept columns.
    """
    comparison, power, problem = _compare_vectors(found, expected, rules.form)
    return ComparedRow(
        row=expected.row,
        precision=found.precision,
        comparison=comparison,
        power=power,
        length_problem=_wrong_length(expected, rules.most_tokens),
        vector_problem=problem,
        text=excerpt(expected.text or "", _TEXT),
        kept_problem="" if same(list(found.kept), list(kept)) else "a kept column has another value",
        hash_problem=_wrong_hash(found, text),
    )


def _compare_vectors(
    found: ShardRow, expected: "ExpectedRow", form: VectorForm
) -> tuple[Comparison | None, float, str]:
    """The comparison, the reference's mean square, and how the tolerance is broken."""
    reference = expected.vectors
    if expected.text is None:
        return None, 0.0, "it has a vector, and the dataset has no text there, or a blank one"
    vectors = found.with_zeros(reference.shape[1])
    if (there := vectors.shape) != (shape := (len(reference), form.width(reference.shape[1]))):
        return None, 0.0, f"{there[0]} × {count(there[1], 'element')}, expected {shape[0]} × {shape[1]}"
    nearest = form.nearest(vectors, reference)
    comparison = compare(nearest, reference)
    finite = np.isfinite(nearest).all(axis=1)
    power = float(np.mean(reference[finite].astype(np.float64) ** 2)) if finite.any() else 0.0
    return comparison, power, _breach(comparison, TOLERANCES[found.precision])


def row_limit(tolerance: Tolerance) -> float:
    """The highest relative MSE of one row; the tolerance's own bound is for a whole sample.

    A vector of the right norm at cosine 0.9999 has a relative MSE of 2 * (1 - 0.9999) = 2e-4. The limit is at least
    that, so that a row that passes the bound on the cosine is not stopped by this one.
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


def _wrong_hash(found: ShardRow, text: str | None) -> str:
    """By Python's ``hashlib`` alone: a wrong hash gives other rows this one's vector."""
    due = None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
    return "" if found.text_hash == due else "text_hash is another text's"


def _wrong_length(expected: "ExpectedRow", most_tokens: int) -> str:
    row, tokens = expected.row, expected.n_tokens
    if row.n_tokens != tokens:
        return f"n_tokens {row.n_tokens}, recomputed {tokens}"
    if row.truncated != (tokens > most_tokens):
        return f"truncated is {row.truncated} at {count(tokens, 'token')}"
    return ""


def excerpt(text: str, length: int) -> str:
    """The text's first characters as one printable line; ``…`` where it goes on."""
    start = "".join(char if char.isprintable() else " " for char in text[: 2 * length])
    short = " ".join(start.split())[:length]
    return short + (" …" if len(text) > len(short) else "")


def total(rows: Iterable[ComparedRow]) -> Comparison:
    """All rows as one: what ``contract.compare.compare`` gives for all of their vectors together."""
    comparisons = [(row.comparison, row.power) for row in rows if row.comparison]
    vectors = sum(one.vectors for one, _ in comparisons)
    non_finite = sum(one.non_finite for one, _ in comparisons)
    finite = [(one, power, number) for one, power in comparisons if (number := one.vectors - one.non_finite)]
    if not finite:
        return Comparison(vectors, np.nan, np.nan, np.nan, np.nan, non_finite)
    weight = vectors - non_finite
    mse = sum(one.mse * number for one, _, number in finite) / weight
    power = sum(power * number for _, power, number in finite) / weight
    return Comparison(
        vectors=vectors,
        mse=mse,
        relative_mse=mse / power if power else np.nan,
        min_cosine=min(one.min_cosine for one, _, _ in finite),
        max_difference=max(one.max_difference for one, _, _ in finite),
        non_finite=non_finite,
    )
