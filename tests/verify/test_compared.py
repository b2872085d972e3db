from dataclasses import astuple

import numpy as np
import pytest

from contract.compare import compare
from verify.comparison import ComparedRow, compare_row, excerpt, total
from verify.reference import ExpectedRow
from verify.sample import SampledRow
from verify.sampled_rows import ShardRow
from verify.stats import VectorRules

ROW = SampledRow(row_id=7, batch=0, index=7, n_tokens=5, truncated=False, stratum="1-32")


def judged(found: np.ndarray, reference: np.ndarray, precision: str = "fp32") -> ComparedRow:
    expected = ExpectedRow(ROW, "some text", 5, reference.astype(np.float32))
    return compare_row(ShardRow(found.astype(np.float32), precision), expected, rules(expected))


def rules(expected: ExpectedRow, max_length: int = 512) -> VectorRules:
    return VectorRules(expected.vectors.shape[1], max_length, unit_norm=False)


def unit(*elements: float) -> np.ndarray:
    vector = np.array([elements])
    return vector / np.linalg.norm(vector)


def test_the_total_of_rows_is_the_comparison_of_all_their_vectors() -> None:
    chance = np.random.default_rng(3)
    references = [chance.normal(size=(tokens, 8)) * tokens for tokens in (1, 5, 2, 9)]
    founds = [(reference + chance.normal(size=reference.shape) * 1e-3).astype(np.float32) for reference in references]
    founds[1][2, 3] = np.nan
    founds[2][:] = np.inf
    rows = [judged(found, reference) for found, reference in zip(founds, references, strict=True)]
    together = compare(np.concatenate(founds), np.concatenate(references).astype(np.float32))
    assert astuple(total(rows)) == pytest.approx(astuple(together), rel=1e-9)
    assert total(rows).non_finite == 3


def test_the_total_of_nothing_finite_keeps_to_no_tolerance() -> None:
    nothing = total([judged(np.full((1, 4), np.nan), np.ones((1, 4)))])
    assert (nothing.vectors, nothing.non_finite) == (1, 1)
    assert np.isnan(nothing.mse)


def test_a_row_that_agrees_has_no_problem() -> None:
    assert judged(unit(1, 2, 3), unit(1, 2, 3)).problem == ""


def test_a_turned_row_breaks_the_cosine() -> None:
    turned = unit(1, 0.02)  # cosine 0.9998
    assert "cosine 0.99980" in judged(turned, unit(1, 0)).problem
    assert "below 0.9999" in judged(turned, unit(1, 0), "fp16").problem


def test_a_scaled_row_breaks_the_relative_mse_although_its_cosine_is_one() -> None:
    assert "relative MSE" in judged(1.05 * unit(1, 2), unit(1, 2)).problem


def test_a_row_at_the_lowest_cosine_of_its_precision_is_not_stopped_by_the_other_bound() -> None:
    assert judged(unit(1, 0.0137), unit(1, 0), "fp16").problem == ""  # cosine 0.999906, relative MSE 1.9e-4
    assert judged(unit(1, 0.0137), unit(1, 0), "fp32").problem != ""


def test_a_row_that_is_not_finite() -> None:
    assert judged(np.array([[1, np.inf]]), unit(1, 0)).problem == "NaN or infinity in 1 of 1 vector"


def test_vectors_of_another_shape() -> None:
    compared = judged(np.ones((3, 4)), np.ones((5, 4)))
    assert compared.problem == "3 × 4 elements, expected 5 × 4"
    assert compared.comparison is None


def test_a_reference_that_is_not_finite_lets_nothing_pass() -> None:
    assert judged(unit(1, 2), np.array([[np.nan, 1]])).problem


def test_lengths_and_flags_must_agree() -> None:
    def lengths(n_tokens: int, max_length: int) -> str:
        expected = ExpectedRow(ROW, "some text", n_tokens, unit(1, 0).astype(np.float32))
        return compare_row(ShardRow(unit(1, 0), "fp32"), expected, rules(expected, max_length)).length_problem

    assert lengths(5, 512) == ""
    assert lengths(6, 512) == "n_tokens 5, recomputed 6"
    assert lengths(5, 4) == "truncated is False at 5 tokens"


def test_an_excerpt_is_one_short_printable_line() -> None:
    text = "\x1b[31mred\0\n[bold]and\ttoo " + "long " * 1000
    expected = ExpectedRow(ROW, text, 5, unit(1, 0).astype(np.float32))
    kept = compare_row(ShardRow(unit(1, 0), "fp32"), expected, rules(expected)).text
    assert len(kept) <= 402
    shown = excerpt(kept, 60)
    for line in (kept, shown):
        assert line.isprintable()
        assert line.startswith("[31mred [bold]and too long")
        assert line.endswith(" …")
    assert len(shown) <= 62
