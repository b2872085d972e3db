"""How a batch is cut for computing: rows of like length together, so that next to no padding is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.plan import Profile
from contract.words import count

ALIGNMENT = 8
"""Tokens to a multiple of which a GPU's rows are padded: FP16 matrix units take 8 elements at a time."""

Lengths = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows that are computed at once."""

    rows: npt.NDArray[np.intp]
    """``[n]``, places in the batch."""
    length: int
    """Tokens of the longest row, padding included."""
    tokens: int
    """Tokens that are computed, padding included."""
    profile: int = 0
    """Place of the plan's profile that takes it."""


def cut_by_budget(lengths: Lengths, token_budget: int) -> list[MicroBatch]:
    """Cut a batch into rectangles of tokens, the longest rows first.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        token_budget: most tokens of a micro-batch, padding included. A row longer than that is computed alone.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    order, lengths = _longest_first(lengths)
    microbatches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        rows = order[start : start + max(1, token_budget // longest)]
        microbatches.append(MicroBatch(rows, longest, len(rows) * longest))
        start += len(rows)
    return microbatches


def cut_by_profiles(lengths: Lengths, profiles: Sequence[Profile]) -> list[MicroBatch]:
    """Cut a batch into rectangles of tokens that a plan's profiles take, the longest rows first.

    Of the profiles that take the longest row left, the one is used that computes the fewest tokens for each row; of
    those equal, the one that takes the most rows at once.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        profiles: the plan's.

    Returns:
        Micro-batches that hold every row that has tokens once.

    Raises:
        ValueError: a row is longer than every profile.
    """
    order, lengths = _longest_first(lengths)
    microbatches = []
    start = 0
    while start < len(order):
        longest, left = int(lengths[order[start]]), len(order) - start
        fits = [number for number, profile in enumerate(profiles) if longest <= profile.length]
        if not fits:
            raise ValueError(
                f"a row of {count(longest, 'token')} is longer than every profile: {', '.join(map(str, profiles))}"
            )

        def cost(number: int, longest: int = longest, left: int = left) -> tuple[float, int, int]:
            taken = min(profiles[number].rows, left)
            return _rectangle(profiles[number], longest, left)[1] / taken, -taken, profiles[number].rows

        best = min(fits, key=cost)
        length, tokens = _rectangle(profiles[best], longest, left)
        rows = order[start : start + profiles[best].rows]
        microbatches.append(MicroBatch(rows, length, tokens, best))
        start += len(rows)
    return microbatches


def cut_packed(lengths: Lengths, profiles: Sequence[Profile]) -> list[MicroBatch]:
    """Cut a batch into micro-batches whose rows lie end to end, the longest rows first.

    What the next longest row no longer fits into is filled with the shortest ones. Each micro-batch is of the largest
    profile that it fills; the last one is of the smallest that takes what is left, unless more of that would be padding
    than a run of the smallest profile is long that takes the longest row left.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        profiles: a packed plan's, the largest of which takes any row.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    order, lengths = _longest_first(lengths)
    by_size = sorted(range(len(profiles)), key=lambda number: profiles[number].length)
    microbatches = []
    first, last = 0, len(order)
    sizes = lengths[order].tolist()
    left = sum(sizes)
    while first < last:
        longest, rows_left = sizes[first], last - first
        takes = [n for n in by_size if profiles[n].length >= longest]
        spare = profiles[takes[0]].length
        filled = [n for n in takes if profiles[n].length <= left or profiles[n].rows <= rows_left]
        enough = [n for n in takes if 0 <= profiles[n].length - left <= spare and profiles[n].rows >= rows_left]
        number = enough[0] if enough else filled[-1]
        room, most = profiles[number].length, profiles[number].rows
        begin, end = first, last
        while first < last and first - begin < most and sizes[first] <= room:
            room -= sizes[first]
            first += 1
        while first < last and first - begin + end - last < most and sizes[last - 1] <= room:
            last -= 1
            room -= sizes[last]
        rows = np.concatenate([order[begin:first], order[last:end]])
        left -= profiles[number].length - room
        microbatches.append(MicroBatch(rows, int(lengths[rows[0]]), profiles[number].length, number))
    return microbatches


def _rectangle(profile: Profile, longest: int, left: int) -> tuple[int, int]:
    """Tokens of each row, and of all, if this profile computes the next micro-batch."""
    length = min(profile.length, max(profile.shortest, -(-longest // ALIGNMENT) * ALIGNMENT))
    return length, max(min(profile.rows, left), profile.least_rows) * length


def _longest_first(lengths: Lengths) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.integer]]:
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    return order[lengths[order] > 0], lengths
