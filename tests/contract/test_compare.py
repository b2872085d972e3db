import numpy as np
import pytest

from contract.compare import TOLERANCES, Comparison, Tolerance, compare, cosines


def vectors(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_the_figures_are_those_worked_out_by_hand() -> None:
    found = compare(vectors([3, 4], [0, 2]), vectors([4, 3], [0, 1]))
    assert found.vectors == 2
    assert found.mse == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert found.relative_mse == pytest.approx(3 / (16 + 9 + 0 + 1))
    assert found.min_cosine == pytest.approx((12 + 12) / 25)
    assert found.max_difference == 1
    assert found.non_finite == 0


def test_the_same_vectors_are_within_every_tolerance() -> None:
    same = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
    found = compare(same, same.copy())
    assert (found.mse, found.max_difference) == (0, 0)
    assert all(found.within(tolerance) for tolerance in TOLERANCES.values())


def test_the_figures_do_not_depend_on_the_vectors_norm() -> None:
    random = np.random.default_rng(0)
    reference = random.normal(size=(20, 8))
    found = reference + random.normal(size=(20, 8)) / 100
    small, large = compare(found, reference), compare(1000 * found, 1000 * reference)
    assert small.relative_mse == pytest.approx(large.relative_mse)
    assert small.min_cosine == pytest.approx(large.min_cosine)


def test_differences_too_small_for_float32_are_seen() -> None:
    reference = vectors([1, 1e-4])
    found = compare(reference + np.float32(1e-7), reference)
    assert 0 < found.mse < 1e-13
    assert found.min_cosine < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_vectors_are_counted_and_kept_out_of_the_figures(bad: float) -> None:
    found = compare(vectors([1, 2], [bad, 2], [bad, bad]), vectors([1, 2], [1, 2], [1, 2]))
    assert (found.vectors, found.non_finite, found.mse, found.max_difference) == (3, 2, 0, 0)
    assert not found.within(Tolerance(min_cosine=-1, max_relative_mse=1e9))


def test_nothing_finite_is_never_within() -> None:
    for found in (compare(vectors([np.nan, 1]), vectors([1, 1])), compare(np.empty((0, 2)), np.empty((0, 2)))):
        assert np.isnan(found.min_cosine)
        assert not found.within(Tolerance(min_cosine=-1, max_relative_mse=1e9))


def test_a_zero_vector_has_no_direction() -> None:
    assert cosines(vectors([0, 0], [1, 0]), vectors([1, 1], [2, 0])).tolist() == [0, 1]
    assert not compare(vectors([0, 0]), vectors([1, 0])).within(TOLERANCES["fp16"])


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_both_bounds_hold_on_both_sides(precision: str) -> None:
    tolerance = TOLERANCES[precision]

    def found(**changes: float) -> Comparison:
        fields = {"min_cosine": tolerance.min_cosine, "relative_mse": tolerance.max_relative_mse} | changes
        return Comparison(vectors=1, mse=0, max_difference=0, non_finite=0, **fields)

    assert found().within(tolerance)
    assert not found(min_cosine=tolerance.min_cosine - 1e-9).within(tolerance)
    assert not found(relative_mse=tolerance.max_relative_mse + 1e-9).within(tolerance)


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_the_two_bounds_mean_the_same_for_vectors_of_one_norm(precision: str) -> None:
    tolerance = TOLERANCES[precision]
    angle = np.arccos(tolerance.min_cosine)
    at_the_bound = compare(np.array([[np.cos(angle), np.sin(angle)]]), np.array([[1.0, 0.0]]))
    assert at_the_bound.relative_mse == pytest.approx(2 * (1 - tolerance.min_cosine), rel=1e-6)
    assert at_the_bound.relative_mse <= 2 * tolerance.max_relative_mse


def test_vectors_of_another_shape_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\)"):
        compare(np.ones((1, 2)), np.ones((1, 3)))
