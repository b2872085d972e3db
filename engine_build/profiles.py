"""The shapes that a plan takes."""

from collections.abc import Mapping, Sequence

from contract.engine import INPUTS
from contract.errors import UserError
from contract.plan import PACKED_INPUTS, Profile, packed_rows
from contract.words import count

_TOKENS = 16_384
"""Tokens of a padded profile's largest micro-batch: 32 rows of 512, with which an H200 is full."""
_PACKED_TOKENS = (256, 128, 64, 32, 16)
"""Of the packed profiles, for each of the GPU's multiprocessors, so that all are at work to a matrix product's end.
On an H200, which has 132, from 33,792 to 2,112. All but the largest are for what is left at a batch's end."""
_PACKED_ROWS = 32
"""A packed profile has a row for as many tokens; shorter rows leave some of its tokens to padding."""
_LENGTHS = (64, 128, 256, 512)

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Each input's least and largest shape."""


def padded_profiles(max_length: int) -> tuple[Profile, ...]:
    """The default of a padded plan: micro-batches of up to 16,384 tokens, a profile for each doubling of the length."""
    lengths = [length for length in _LENGTHS if length < max_length] + [max_length]
    shortest = [1] + [length + 1 for length in lengths]
    return tuple(
        Profile(1, max(1, _TOKENS // length), least, length) for least, length in zip(shortest, lengths, strict=False)
    )


def packed_profiles(multiprocessors: int) -> tuple[Profile, ...]:
    """The default of a packed plan on a GPU with so many multiprocessors: five sizes."""
    sizes = [multiprocessors * tokens for tokens in _PACKED_TOKENS]
    return tuple(Profile(1, max(1, size // _PACKED_ROWS), 1, size) for size in sizes)


def check_profiles(profiles: Sequence[Profile], max_length: int, *, packed: bool) -> None:
    """Look whether any row finds a profile, and each profile a row.

    Raises:
        UserError: that is not so.
    """
    for profile in profiles:
        if not packed and profile.length > max_length:
            raise UserError(
                f"profile {profile} is longer than a row can be", f"the engine takes {count(max_length, 'token')}"
            )
    if max(profile.length for profile in profiles) < max_length:
        given = ", ".join(map(str, profiles))
        mend = f"add one, such as --profile {f'64x{4 * max_length}' if packed else f'1-32x{max_length}'}"
        raise UserError(f"no profile takes rows of {count(max_length, 'token')}", f"given: {given}", mend)


def padded_shapes(profile: Profile) -> Shapes:
    """Each input's least and largest shape."""
    return dict.fromkeys(INPUTS, ((profile.least_rows, profile.shortest), (profile.rows, profile.length)))


def packed_shapes(profile: Profile, max_length: int) -> Shapes:
    """Likewise. All but the longest row's length is fixed: TensorRT 8.6's kernels for a range of shapes are slower."""
    tokens, ends = (profile.length,), (packed_rows(profile, max_length) + 1,)
    fixed = dict.fromkeys(PACKED_INPUTS[:4], (tokens, tokens)) | {"cu_seqlens": (ends, ends)}
    return fixed | {"longest": ((1,), (max_length,))}
