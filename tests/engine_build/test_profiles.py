import numpy as np
import pytest

from contract.errors import UserError
from contract.plan import PackedProfile, PaddedProfile
from engine_build.profiles import (
    check_packed,
    check_padded,
    packed_profiles,
    packed_shapes,
    padded_profiles,
    padded_shapes,
)
from worker.runtime.microbatch import cut_packed, cut_padded


@pytest.mark.parametrize("max_length", [3, 64, 65, 128, 300, 512, 2048, 40_000])
def test_the_default_padded_profiles_take_any_batch(max_length: int) -> None:
    lengths = np.random.default_rng(0).integers(1, max_length + 1, 500)
    profiles = padded_profiles(max_length)
    check_padded(profiles, max_length)
    assert sum(len(micro.rows) for micro in cut_padded(lengths, profiles)) == 500
    assert all(profile.max.tokens <= max(16_384, max_length) for profile in profiles)


@pytest.mark.parametrize("max_length", [3, 64, 300, 512])  # longer rows are never packed
@pytest.mark.parametrize("multiprocessors", [2, 14, 40, 58, 108, 132])
def test_the_default_packed_profiles_take_any_batch(max_length: int, multiprocessors: int) -> None:
    lengths = np.random.default_rng(0).integers(1, max_length + 1, 500)
    profiles = packed_profiles(multiprocessors)
    check_packed(profiles, max_length)
    assert sum(len(micro.rows) for micro in cut_packed(lengths, profiles)) == 500


def test_the_default_profiles_of_512_tokens_on_an_h200() -> None:
    assert list(map(str, padded_profiles(512))) == [
        "1-256x1-64",
        "1-128x65-128",
        "1-64x129-256",
        "1-32x257-512",
    ]
    assert list(map(str, padded_profiles(8192)))[3:] == [
        "1-32x257-512",
        "1-16x513-1024",
        "1-8x1025-2048",
        "1-4x2049-4096",
        "1-2x4097-8192",
    ]
    sizes = "1056x33792", "528x16896", "264x8448", "132x4224", "66x2112"
    assert tuple(map(str, packed_profiles(132))) == sizes


def test_profiles_that_leave_the_longest_rows_out_are_refused() -> None:
    with pytest.raises(UserError, match=r"no profile takes rows of 512 tokens; given: 1-8x1-256; .*--profile 1-32x512"):
        check_padded([PaddedProfile.parse("1-8x1-256")], 512)
    with pytest.raises(UserError, match=r"no profile takes rows of 512 tokens; given: 8x256; .*--profile 64x2048"):
        check_packed([PackedProfile(8, 256)], 512)


def test_a_profile_longer_than_a_row_is_refused_unless_it_is_packed() -> None:
    with pytest.raises(UserError, match="1-8x1-1024 is longer than a row"):
        check_padded([PaddedProfile.parse("1-8x1-1024")], 512)
    check_packed([PackedProfile(8, 1024)], 512)


def test_a_padded_profiles_shapes_are_its_range_and_it_is_fastest_at_the_largest() -> None:
    assert padded_shapes(PaddedProfile.parse("1-32x257-512")) == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), ((1, 257), (32, 512), (32, 512))
    )


def test_a_packed_profiles_shapes_are_fixed_but_for_the_longest_row() -> None:
    assert "row_of_token" not in packed_shapes(PackedProfile(8, 1024), 512, "cls")
    shapes = packed_shapes(PackedProfile(8, 1024), 512, "mean")
    assert shapes["input_ids"] == shapes["row_of_token"] == ((1024,), (1024,), (1024,))
    assert shapes["cu_seqlens"] == ((11,), (11,), (11,))
    assert shapes["longest"] == ((1,), (512,), (512,))
