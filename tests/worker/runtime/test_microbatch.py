import itertools

import numpy as np
import pytest

from contract.plan import PackedProfile, PaddedProfile
from worker.runtime.microbatch import cut_by_budget, cut_end_to_end, cut_packed, cut_padded

SCORES = 10**12
"""More than any micro-batch has."""


@pytest.mark.parametrize("seed", range(20))
def test_every_row_with_tokens_is_in_one_micro_batch(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 513, random.integers(1, 400))
    microbatches = cut_by_budget(lengths, token_budget=int(random.integers(1, 5000)), score_budget=SCORES)
    rows = np.concatenate([micro.rows for micro in microbatches]) if microbatches else np.array([])
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length > 0]


@pytest.mark.parametrize("seed", range(20))
def test_no_micro_batch_of_several_rows_is_over_the_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    for micro in cut_by_budget(random.integers(1, 513, 300), token_budget=1000, score_budget=SCORES):
        assert len(micro.rows) == 1 or micro.tokens <= 1000


def test_padding_is_trimmed_to_the_longest_row_of_each_micro_batch() -> None:
    lengths = np.array([3, 10, 4, 9])
    assert [
        (micro.rows.tolist(), micro.length) for micro in cut_by_budget(lengths, token_budget=20, score_budget=SCORES)
    ] == [
        ([1, 3], 10),
        ([2, 0], 4),
    ]


def test_rows_are_padded_to_the_width_that_is_asked_for() -> None:
    microbatches = cut_by_budget([3, 10, 4, 9], 36, SCORES, width=lambda length: -(-length // 8) * 8)
    assert [(micro.rows.tolist(), micro.length, micro.tokens) for micro in microbatches] == [
        ([1, 3], 16, 32),
        ([2, 0], 8, 16),
    ]


def test_rows_of_one_length_need_no_padding() -> None:
    microbatches = cut_by_budget([7] * 10, token_budget=21, score_budget=SCORES)
    assert sum(micro.tokens for micro in microbatches) == 70


def test_a_row_longer_than_the_budget_is_computed_alone() -> None:
    assert [micro.rows.tolist() for micro in cut_by_budget([512, 512], token_budget=100, score_budget=SCORES)] == [
        [0],
        [1],
    ]


def test_a_batch_without_any_text_needs_no_computing() -> None:
    assert cut_by_budget([0, 0], token_budget=100, score_budget=SCORES) == []


@pytest.mark.parametrize("seed", range(20))
def test_an_attention_never_has_more_scores_than_its_budget_but_for_a_single_row(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 4096, 200)
    microbatches = cut_by_budget(lengths, token_budget=32_768, score_budget=1 << 22)
    assert all(len(micro.rows) == 1 or len(micro.rows) * micro.length**2 <= 1 << 22 for micro in microbatches)
    assert max(len(micro.rows) for micro in microbatches) > 8
    assert sorted(np.concatenate([micro.rows for micro in microbatches])) == np.flatnonzero(lengths).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_rows_end_to_end_have_no_padding_and_are_in_one_micro_batch(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 700, random.integers(1, 400))
    microbatches = cut_end_to_end(lengths, token_budget=512)
    assert all(micro.tokens == lengths[micro.rows].sum() for micro in microbatches)
    assert all(micro.length == lengths[micro.rows].max() for micro in microbatches)
    assert all(micro.tokens <= 512 or len(micro.rows) == 1 for micro in microbatches)
    assert sorted(row for micro in microbatches for row in micro.rows) == np.flatnonzero(lengths).tolist()
    # As full as they can be with the longest first: the next row would not have fitted in.
    for one, after in itertools.pairwise(microbatches):
        assert one.tokens + lengths[after.rows[0]] > 512


PROFILES = [PaddedProfile.parse(text) for text in ("1x1-512", "1-64x1-64", "1-32x65-512", "16x128")]


@pytest.mark.parametrize("seed", range(20))
def test_rectangles_keep_to_their_profiles_and_hold_every_row_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 513, random.integers(1, 400))
    microbatches = cut_padded(lengths, PROFILES)
    for micro in microbatches:
        profile, rows = PROFILES[micro.profile], micro.tokens // micro.length
        assert profile.min.rows <= rows <= profile.max.rows
        assert len(micro.rows) <= rows
        assert profile.min.length <= micro.length <= profile.max.length
        assert lengths[micro.rows].max() <= micro.length
    assert sorted(np.concatenate([micro.rows for micro in microbatches])) == np.flatnonzero(lengths).tolist()


def test_of_the_profiles_that_fit_the_one_that_computes_least_is_used() -> None:
    of_one = cut_padded([300], PROFILES)
    assert [(micro.profile, micro.length, micro.tokens) for micro in of_one] == [(0, 304, 304)]
    short = cut_padded([60] * 100, PROFILES)
    assert [(micro.profile, len(micro.rows), micro.length) for micro in short] == [(1, 64, 64), (1, 36, 64)]
    full = cut_padded([128] * 16, [PaddedProfile.parse("1-8x1-512"), PROFILES[3]])
    assert [(micro.profile, micro.tokens) for micro in full] == [(1, 2048)]


def test_a_row_that_no_profile_takes_is_an_error() -> None:
    with pytest.raises(ValueError, match="a row of 65 tokens is longer than every profile: 1-64x1-64"):
        cut_padded([65], [PROFILES[1]])


@pytest.mark.parametrize("shortest", [512, 256, 100])
@pytest.mark.parametrize("seed", range(20))
def test_packed_rows_fit_and_none_is_left_out(seed: int, shortest: int) -> None:
    """Also where the smallest profile does not take the longest row."""
    random = np.random.default_rng(seed)
    profiles = [PackedProfile(20, 2048), PackedProfile(6, shortest)]
    lengths = random.integers(0, 513, random.integers(1, 300))
    microbatches = cut_packed(lengths, profiles)
    for micro in microbatches:
        profile = profiles[micro.profile]
        assert micro.tokens == profile.tokens >= lengths[micro.rows].sum()
        assert len(micro.rows) <= profile.rows
        assert lengths[micro.rows].max() == micro.length
    rows = np.concatenate([micro.rows for micro in microbatches]) if microbatches else np.array([])
    assert sorted(rows) == np.flatnonzero(lengths).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_next_to_nothing_of_packed_rows_is_padding(seed: int) -> None:
    random = np.random.default_rng(seed)
    profiles = [PackedProfile(512, 16384), PackedProfile(128, 4096), PackedProfile(32, 1024)]
    lengths = random.integers(64, 513, random.integers(1, 1500))
    *filled, last = cut_packed(lengths, profiles)
    assert all(micro.tokens - lengths[micro.rows].sum() < 512 for micro in filled)
    padding = last.tokens - lengths[last.rows].sum()
    assert padding <= 1024 or padding < last.tokens / 2
    assert [micro.profile for micro in filled] == sorted(micro.profile for micro in filled)


def test_short_rows_fill_what_a_long_one_leaves() -> None:
    microbatches = cut_packed([500, 400, 300, 90, 10, 20], [PackedProfile(8, 1000)])
    assert [micro.rows.tolist() for micro in microbatches] == [[0, 1, 5, 4], [2, 3]]


def test_the_profile_that_computes_the_most_for_its_cost_is_used() -> None:
    profiles = [PackedProfile(8, 1000), PackedProfile(8, 200), PackedProfile(8, 400)]
    assert [micro.profile for micro in cut_packed([500, 500, 150], profiles)] == [0, 1]
    assert [micro.profile for micro in cut_packed([20] * 10, profiles)] == [1, 1]  # each takes 8 rows
    assert [micro.profile for micro in cut_packed([100] * 5, profiles)] == [2, 1]  # 1,000 would be half padding
    assert [micro.profile for micro in cut_packed([110] * 8, profiles)] == [0]


def test_a_profile_for_short_rows_takes_no_longer_one() -> None:
    profiles = [PackedProfile(100, 1000, 64), PackedProfile(20, 1000), PackedProfile(20, 100)]
    microbatches = cut_packed([65] + [60] * 30 + [10] * 90, profiles)
    assert [(micro.profile, len(micro.rows)) for micro in microbatches] == [(1, 19), (0, 25), (0, 77)]
    assert max(micro.length for micro in microbatches if micro.profile == 0) == 60


def test_rows_of_any_length_leave_little_padding() -> None:
    """With the profiles of an H100: rows that are so short that a profile has too few rows for them cost most."""
    profiles = [
        PackedProfile(2112, 33792, 128),
        PackedProfile(528, 33792),
        PackedProfile(528, 8448),
        PackedProfile(132, 2112),
    ]
    for shortest, longest in ((8, 64), (16, 16), (20, 200), (48, 512), (512, 512)):
        lengths = np.random.default_rng(longest).integers(shortest, longest + 1, 600_000 // (shortest + longest))
        computed = sum(micro.tokens for micro in cut_packed(lengths, profiles))
        assert lengths.sum() / computed > 0.96, (shortest, longest)
