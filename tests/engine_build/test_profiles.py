import numpy as np
import pytest

from contract.errors import UserError
from contract.plan import Profile
from engine_build.profiles import check_profiles, packed_profiles, packed_shapes, padded_profiles, padded_shapes
from worker.microbatch import cut_by_profiles, cut_packed


@pytest.mark.parametrize("max_length", [3, 64, 65, 128, 300, 512, 2048, 40_000])
def test_the_default_padded_profiles_take_any_batch(max_length: int) -> None:
    lengths = np.random.default_rng(0).integers(1, max_length + 1, 500)
    profiles = padded_profiles(max_length)
    check_profiles(profiles, max_length, packed=False)
    assert sum(len(micro.rows) for micro in cut_by_profiles(lengths, profiles)) == 500
    assert all(profile.rows * profile.length <= max(16_384, max_length) for profile in profiles)


@pytest.mark.parametrize("max_length", [3, 64, 300, 512])  # longer rows are never packed
@pytest.mark.parametrize("multiprocessors", [2, 14, 40, 58, 108, 132])
def test_the_default_packed_profiles_take_any_batch(max_length: int, multiprocessors: int) -> None:
    lengths = np.random.default_rng(0).integers(1, max_length + 1, 500)
    profiles = packed_profiles(multiprocessors)
    check_profiles(profiles, max_length, packed=True)
    assert sum(len(micro.rows) for micro in cut_packed(lengths, profiles)) == 500


def test_the_default_profiles_of_512_tokens_on_an_h200() -> None:
    assert list(map(str, padded_profiles(512))) == [
        "1-256x1-64",
        "1-128x65-128",
        "1-64x129-256",
        "1-32x257-512",
    ]
    sizes = "1-1056x1-33792", "1-528x1-16896", "1-264x1-8448", "1-132x1-4224", "1-66x1-2112"
    assert tuple(map(str, packed_profiles(132))) == sizes


@pytest.mark.parametrize(("packed", "mend"), [(False, "--profile 1-32x512"), (True, "--profile 64x2048")])
def test_profiles_that_leave_the_longest_rows_out_are_refused(packed: bool, mend: str) -> None:
    with pytest.raises(UserError, match=f"no profile takes rows of 512 tokens.*{mend}"):
        check_profiles([Profile(1, 8, 1, 256)], 512, packed=packed)


def test_a_profile_longer_than_a_row_is_refused_unless_it_is_packed() -> None:
    with pytest.raises(UserError, match="1-8x1-1024 is longer than a row"):
        check_profiles([Profile(1, 8, 1, 1024)], 512, packed=False)
    check_profiles([Profile(1, 8, 1, 1024)], 512, packed=True)


def test_a_padded_profiles_shapes_are_its_range() -> None:
    assert padded_shapes(Profile(1, 32, 257, 512)) == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), ((1, 257), (32, 512))
    )


def test_a_packed_profiles_shapes_are_fixed_but_for_the_longest_row() -> None:
    shapes = packed_shapes(Profile(1, 8, 1, 1024), 512)
    assert shapes["input_ids"] == shapes["row_of_token"] == ((1024,), (1024,))
    assert shapes["cu_seqlens"] == ((11,), (11,))
    assert shapes["longest"] == ((1,), (512,))
