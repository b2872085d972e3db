"""What a plan is built for: the user's options, and the profiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contract.errors import UserError
from contract.graph import INPUTS, Pooling, packed_inputs
from contract.plan import BatchShape, PackedProfile, PaddedProfile
from contract.words import count

_TOKENS = 16_384
"""Tokens of a padded profile's largest micro-batch: 32 rows of 512, with which an H200 is full."""
_SHORTEST = 64
_PACKED_TOKENS = (256, 128, 64, 32, 16)
"""Of the packed profiles, for each of the GPU's multiprocessors, so that all are at work to a matrix product's end.
On an H200, which has 132, from 33,792 to 2,112. All but the largest are for what is left at a batch's end."""
_PACKED_ROWS = 32
"""A packed profile has a row for as many tokens; shorter rows leave some of its tokens to padding."""


@dataclass(frozen=True)
class PlanOptions:
    """What a user asks of a plan."""

    packed: bool | None = None
    """Whether rows lie end to end; None for where that was measured to be faster, on TensorRT 8.6, unless there are
    profiles, which are a padded plan's then."""
    padded_profiles: tuple[PaddedProfile, ...] = ()
    """Of a padded plan; none for ``padded_profiles``."""
    packed_profiles: tuple[PackedProfile, ...] = ()
    """Of a packed plan; none for ``packed_profiles``."""
    level: int = 3
    """The builder's optimization level, 0 to 5. Higher builds take longer."""
    workspace: int = 4 * 2**30
    """Most bytes of GPU memory that a tactic may use for itself."""


class ShapeTuple(NamedTuple):
    """One input's shapes in one profile, as TensorRT takes them."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


TensorProfile = Mapping[str, ShapeTuple]
"""Each input's shapes."""


def padded_profiles(max_length: int) -> tuple[PaddedProfile, ...]:
    """The default of a padded plan: micro-batches of up to 16,384 tokens, a profile for each doubling of the length."""
    lengths = [_SHORTEST << doublings for doublings in range(16) if _SHORTEST << doublings < max_length] + [max_length]
    shortest = [1] + [length + 1 for length in lengths]
    return tuple(
        PaddedProfile(BatchShape(1, least), BatchShape(max(1, _TOKENS // length), length))
        for least, length in zip(shortest, lengths, strict=False)
    )


def packed_profiles(multiprocessors: int) -> tuple[PackedProfile, ...]:
    """The default of a packed plan on a GPU with so many multiprocessors: five sizes."""
    sizes = [multiprocessors * tokens for tokens in _PACKED_TOKENS]
    return tuple(PackedProfile(max(1, size // _PACKED_ROWS), size) for size in sizes)


def check_padded(profiles: Sequence[PaddedProfile], max_length: int) -> None:
    """Check that the longest row fits into a profile, and that no profile is longer than a row can be.

    Raises:
        UserError: one of the two is not so.
    """
    for profile in profiles:
        if profile.max.length > max_length:
            raise UserError(
                f"profile {profile} is longer than a row can be", f"the engine takes {count(max_length, 'token')}"
            )
    if max(profile.max.length for profile in profiles) < max_length:
        raise _too_short(profiles, max_length, f"1-32x{max_length}")


def check_packed(profiles: Sequence[PackedProfile], max_length: int) -> None:
    """Check that the longest row fits into a profile.

    Raises:
        UserError: it does not.
    """
    if max(profile.tokens for profile in profiles) < max_length:
        raise _too_short(profiles, max_length, f"64x{4 * max_length}")


def _too_short(profiles: Sequence[object], max_length: int, example: str) -> UserError:
    return UserError(
        f"no profile takes rows of {count(max_length, 'token')}",
        f"given: {', '.join(map(str, profiles))}",
        f"add one, such as --profile {example}",
    )


def padded_shapes(profile: PaddedProfile) -> TensorProfile:
    """Each input's shapes: all inputs have the same."""
    return dict.fromkeys(INPUTS, ShapeTuple(tuple(profile.min), tuple(profile.opt), tuple(profile.max)))


def packed_shapes(profile: PackedProfile, max_length: int, pooling: Pooling) -> TensorProfile:
    """Each input's shapes. All but the longest row's length is fixed: TensorRT 8.6's kernels for a range of shapes are
    slower."""
    tokens, ends = (profile.tokens,), (profile.input_rows(max_length) + 1,)
    fixed = dict.fromkeys(packed_inputs(pooling), ShapeTuple(tokens, tokens, tokens))
    return fixed | {
        "cu_seqlens": ShapeTuple(ends, ends, ends),
        "longest": ShapeTuple((1,), (max_length,), (max_length,)),
    }
