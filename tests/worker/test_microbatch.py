import numpy as np
import pytest

from worker.microbatch import cut_by_budget


@pytest.mark.parametrize("seed", range(20))
def test_every_row_with_tokens_is_in_one_micro_batch(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 513, random.integers(1, 400))
    microbatches = cut_by_budget(lengths, token_budget=int(random.integers(1, 5000)))
    rows = np.concatenate([micro.rows for micro in microbatches]) if microbatches else np.array([])
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length > 0]


@pytest.mark.parametrize("seed", range(20))
def test_no_micro_batch_of_several_rows_is_over_the_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    for micro in cut_by_budget(random.integers(1, 513, 300), token_budget=1000):
        assert len(micro.rows) == 1 or micro.tokens <= 1000


def test_padding_is_trimmed_to_the_longest_row_of_each_micro_batch() -> None:
    lengths = np.array([3, 10, 4, 9])
    assert [(micro.rows.tolist(), micro.length) for micro in cut_by_budget(lengths, token_budget=20)] == [
        ([1, 3], 10),
        ([2, 0], 4),
    ]


def test_rows_of_one_length_need_no_padding() -> None:
    microbatches = cut_by_budget([7] * 10, token_budget=21)
    assert sum(micro.tokens for micro in microbatches) == 70


def test_a_row_longer_than_the_budget_is_computed_alone() -> None:
    assert [micro.rows.tolist() for micro in cut_by_budget([512, 512], token_budget=100)] == [[0], [1]]


def test_a_batch_without_any_text_needs_no_computing() -> None:
    assert cut_by_budget([0, 0], token_budget=100) == []
