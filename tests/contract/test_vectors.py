import numpy as np
import numpy.typing as npt
import pytest

from contract.vectors import RowVectors

DENSE = np.array([[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, -3, 0], [0, 0, 0, np.nan]], np.float32)
TOKENS = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
COUNTS = np.array([1, 3, 2])


def as_lists(rows: RowVectors, width: int) -> list[list[list[float]]]:
    return [row.tolist() for row in rows.split(width)]


def test_a_sparse_row_has_what_is_not_zero_and_gives_it_back() -> None:
    rows = RowVectors.sparse(DENSE)
    assert rows.counts.tolist() == [2, 0, 2, 1]
    assert rows.indices is not None
    assert rows.indices.tolist() == [1, 3, 0, 2, 3]
    np.testing.assert_array_equal(np.concatenate([*rows.split(4)]), DENSE)


@pytest.mark.parametrize(
    "rows", [RowVectors.pooled(TOKENS), RowVectors.of_tokens(TOKENS, COUNTS), RowVectors.sparse(TOKENS)]
)
def test_rows_are_taken_joined_and_replaced_whole(rows: RowVectors) -> None:
    width, due = 2, as_lists(rows, 2)
    odd = np.arange(len(rows)) % 2 == 1
    assert as_lists(rows.take(odd), width) == [row for row, wanted in zip(due, odd, strict=True) if wanted]
    order = np.concatenate([np.flatnonzero(odd), np.flatnonzero(~odd)])
    assert as_lists(RowVectors.joined([rows.take(odd), rows.take(~odd)], order), width) == due
    assert as_lists(rows.replaced(np.flatnonzero(odd), rows.take(odd)), width) == due


def test_a_row_may_be_replaced_by_one_with_more_values() -> None:
    rows = RowVectors.sparse(DENSE).replaced(np.array([1, 3]), RowVectors.sparse(np.ones((2, 4), np.float32)))
    np.testing.assert_array_equal(np.concatenate([*rows.split(4)]), [DENSE[0], [1] * 4, DENSE[2], [1] * 4])


def test_values_are_dropped_and_rows_stay() -> None:
    rows = RowVectors.of_tokens(TOKENS, COUNTS).without(np.array([True, False, True, False, False, False]))
    assert rows.counts.tolist() == [0, 2, 2]
    assert rows.values.tolist() == TOKENS[[1, 3, 4, 5]].tolist()


@pytest.mark.parametrize(
    ("rows", "unfit"),
    [
        (RowVectors.sparse(DENSE), [1, 3]),
        (RowVectors.pooled(np.nan_to_num(DENSE)), [1, 3]),
        (RowVectors.pooled(DENSE), [1, 3]),
        (RowVectors.of_tokens(DENSE, np.array([1, 2, 1])), [1, 2]),
        (RowVectors.of_tokens(TOKENS, np.array([0, 4, 2])), [0]),
    ],
)
def test_unfit_is_what_is_not_finite_or_zero_or_nothing(rows: RowVectors, unfit: npt.NDArray[np.intp]) -> None:
    assert rows.unfit().tolist() == unfit
