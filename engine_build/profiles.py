"""The shapes that a plan takes."""

from collections.abc import Mapping, Sequence

from contract.engine import INPUTS
from contract.errors import UserError
from contract.plan import PACKED_INPUTS, Profile, packed_rows

_TOKENS = 16_384
"""Tokens of a profile's largest micro-batch: 32 rows of 512, with which an H200 is full."""
_LAST_TOKENS = 2_048
"""Of the smallest packed profile, for what is left at a batch's end. Those between, each of half as many tokens as the
next, are 1.7 % on an H200: half of the largest reaches 0.90 of its tokens a second, a quarter 0.84, an eighth 0.61."""
_PACKED_ROWS = 32
"""A packed profile has a row for as many tokens; shorter rows leave some of its tokens to padding."""
_LENGTHS = (64, 128, 256, 512)

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Each input's least and largest shape."""


def default_profiles(max_length: int, *, packed: bool) -> tuple[Profile, ...]:
    """Micro-batches of up to 16,384 tokens: packed, or a profile for each doubling of the length."""
    if packed:
        sizes = [_TOKENS]
        while sizes[-1] > _LAST_TOKENS:
            sizes.append(sizes[-1] // 2)
        return tuple(Profile(1, size // _PACKED_ROWS, 1, size) for size in sizes)
    lengths = [length for length in _LENGTHS if length < max_length] + [max_length]
    shortest = [1] + [length + 1 for length in lengths]
    return tuple(
        Profile(1, max(1, _TOKENS // length), least, length) for least, length in zip(shortest, lengths, strict=False)
    )


def check_profiles(profiles: Sequence[Profile], max_length: int, *, packed: bool) -> None:
    """Look whether any row finds a profile, and each profile a row.

    Raises:
        UserError: that is not so.
    """
    for profile in profiles:
        if not packed and profile.length > max_length:
            raise UserError(f"profile {profile} is longer than a row can be", f"the engine takes {max_length} tokens")
    if max(profile.length for profile in profiles) < max_length:
        given = ", ".join(map(str, profiles))
        mend = f"add one, such as --profile {f'64x{4 * max_length}' if packed else f'1-32x{max_length}'}"
        raise UserError(f"no profile takes rows of {max_length} tokens", f"given: {given}", mend)


def padded_shapes(profile: Profile) -> Shapes:
    """Each input's least and largest shape."""
    return dict.fromkeys(INPUTS, ((profile.least_rows, profile.shortest), (profile.rows, profile.length)))


def packed_shapes(profile: Profile, max_length: int) -> Shapes:
    """Likewise. All but the longest row's length is fixed: TensorRT 8.6's kernels for a range of shapes are slower."""
    tokens, ends = (profile.length,), (packed_rows(profile, max_length) + 1,)
    fixed = dict.fromkeys(PACKED_INPUTS[:4], (tokens, tokens)) | {"cu_seqlens": (ends, ends)}
    return fixed | {"longest": ((1,), (max_length,))}
