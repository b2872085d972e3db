"""How a batch is cut for computing: rows of like length together, so that next to no padding is computed."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.plan import BatchShape, PackedProfile, PaddedProfile
from contract.words import count

ALIGNMENT = 8
"""Tokens to a multiple of which a GPU's rows are padded: FP16 matrix units take 8 elements at a time."""

BLOCK = 0.25
"""Tokens that cost as much as an empty block of PyTorch's attention: 0.6 to 1.4 ns on an H100, for each head, where a
token of BERT-base takes 38 ns a layer, of twelve heads ("What the empty rows cost" in docs/lab-notes.md)."""

Lengths = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows that are computed at once."""

    rows: npt.NDArray[np.intp]
    """``[n]``, indices into the batch."""
    length: int
    """Tokens of the longest row, padding included."""
    tokens: int
    """Tokens that are computed, padding included."""
    profile: int = 0
    """Index of the plan's profile that takes it."""


def cut_by_budget(
    lengths: Lengths, token_budget: int, score_budget: int, width: Callable[[int], int] = int
) -> list[MicroBatch]:
    """Cut a batch into rectangles of tokens, the longest rows first.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        token_budget: most tokens of a micro-batch, padding included. A row longer than that is computed alone.
        score_budget: most rows × length × length of a micro-batch, likewise: an attention that computes each token's
            score with each of its row holds so many for each head.
        width: gives of a micro-batch's longest row's tokens those that its rows are padded to, as many or more.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    order, ordered = _longest_first(lengths)
    microbatches = []
    start = 0
    while start < len(order):
        longest = width(ordered[start])
        rows = order[start : start + max(1, min(token_budget // longest, score_budget // longest**2))]
        microbatches.append(MicroBatch(rows, longest, len(rows) * longest))
        start += len(rows)
    return microbatches


def cut_end_to_end(lengths: Lengths, token_budget: int) -> list[MicroBatch]:
    """Cut a batch into micro-batches whose rows lie end to end, without any padding, the longest rows first.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        token_budget: most tokens of a micro-batch. A row longer than that is computed alone.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    order, ordered = _longest_first(lengths)
    totals = [0, *itertools.accumulate(ordered)]
    microbatches = []
    start = 0
    while start < len(order):
        end = max(start + 1, bisect_right(totals, totals[start] + token_budget) - 1)
        microbatches.append(MicroBatch(order[start:end], ordered[start], totals[end] - totals[start]))
        start = end
    return microbatches


def cut_padded(lengths: Lengths, profiles: Sequence[PaddedProfile]) -> list[MicroBatch]:
    """Cut a batch into rectangles of tokens that a padded plan's profiles take, the longest rows first.

    Each micro-batch is of the profile that computes the fewest tokens for each row. Say the profiles are ``1-64x1-64``
    and ``1-32x65-512``, and there are 70 rows: 6 of 300 tokens, 64 of 60. The first micro-batch is 32 rows of 304
    tokens, as only the second profile takes 300; the other is of the first profile: 38 rows of 64 tokens.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        profiles: the plan's.

    Returns:
        Micro-batches that hold every row that has tokens once.

    Raises:
        ValueError: a row is longer than every profile.
    """
    order, ordered = _longest_first(lengths)
    microbatches = []
    start = 0
    while start < len(order):
        longest, rows_left = ordered[start], len(order) - start
        index = _choose_padded(profiles, longest, rows_left)
        shape = _padded_shape(profiles[index], longest, rows_left)
        rows = order[start : start + profiles[index].max.rows]
        microbatches.append(MicroBatch(rows, shape.length, shape.tokens, index))
        start += len(rows)
    return microbatches


def cut_packed(lengths: Lengths, profiles: Sequence[PackedProfile]) -> list[MicroBatch]:
    """Cut a batch into micro-batches whose rows lie end to end.

    Each takes the longest rows that are left while they fit, and then the shortest ones. Rows of 500, 400, 300, 90, 20
    and 10 tokens and a profile of 1,000 tokens give two micro-batches: 500 + 400 + 10 + 20, into which 300 did not fit,
    and 300 + 90.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        profiles: the plan's, the largest of which takes any row.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    order, ordered = _longest_first(lengths)
    totals = [0, *itertools.accumulate(ordered)]
    smallest_first = sorted(range(len(profiles)), key=lambda index: _size(profiles[index]))
    microbatches = []
    start, end = 0, len(order)
    while start < end:
        fitting = [index for index in smallest_first if _takes(profiles[index], ordered[start])]
        index = _choose_packed(profiles, fitting, totals, start, end)
        long_end, short_start = _take_rows(totals, start, end, profiles[index])
        rows = np.concatenate([order[start:long_end], order[short_start:end]])
        microbatches.append(MicroBatch(rows, ordered[start], profiles[index].tokens, index))
        start, end = long_end, short_start
    return microbatches


def _size(profile: PackedProfile) -> tuple[int, int]:
    """Of two with as many tokens the smaller is the one for shorter rows."""
    return profile.tokens, profile.longest or profile.tokens


def _takes(profile: PackedProfile, length: int) -> bool:
    return length <= min(profile.tokens, profile.longest or length)


def _choose_padded(profiles: Sequence[PaddedProfile], longest: int, rows_left: int) -> int:
    """The index of the profile that computes the fewest tokens for each row; of those equal, the one that takes the
    most rows at once."""
    fitting = [index for index, profile in enumerate(profiles) if longest <= profile.max.length]
    if not fitting:
        raise ValueError(
            f"a row of {count(longest, 'token')} is longer than every profile: {', '.join(map(str, profiles))}"
        )

    def cost(index: int) -> tuple[float, int, int]:
        most_rows = profiles[index].max.rows
        rows = min(most_rows, rows_left)
        computed_rows, length = _padded_shape(profiles[index], longest, rows_left)
        return computed_rows * length / rows, -rows, most_rows

    return min(fitting, key=cost)


def _padded_shape(profile: PaddedProfile, longest: int, rows_left: int) -> BatchShape:
    """What this profile computes if it takes the next micro-batch."""
    aligned = -(-longest // ALIGNMENT) * ALIGNMENT
    length = min(profile.max.length, max(profile.min.length, aligned))
    return BatchShape(max(min(profile.max.rows, rows_left), profile.min.rows), length)


def _choose_packed(
    profiles: Sequence[PackedProfile], fitting: Sequence[int], totals: Sequence[int], start: int, end: int
) -> int:
    """The index of the profile that computes the most tokens of rows for its cost, as the next micro-batch.

    The cost is the profile's tokens and, for what a micro-batch costs besides, those of the smallest profile once more:
    on an H200 2,048 tokens took 1.9 ms alone, and 1.0 ms more where they made a micro-batch larger (the table of sizes
    in docs/lab-notes.md). Four blocks of the attention cost as much as a token. Say the profiles have 200,
    400 and 1,000 tokens. Of 500 tokens in rows of 100 the three take 200, 400 and 500, for a cost of 400, 600 and
    1,200: that of 400 is chosen, and then that of 200 for the last 100.

    Args:
        profiles: the plan's.
        fitting: indices of those that take the longest row left, the smallest first.
        totals: tokens of the first 0, 1, 2, … rows, the longest first.
        start: first of the rows that are left.
        end: behind the last of them.
    """
    each = min(profile.tokens for profile in profiles)

    def worth(index: int) -> float:
        long_end, short_start = _take_rows(totals, start, end, profiles[index])
        taken = totals[end] - totals[short_start] + totals[long_end] - totals[start]
        return taken / (profiles[index].tokens + each + BLOCK * profiles[index].attention_blocks)

    return max(fitting, key=worth)


def _take_rows(totals: Sequence[int], start: int, end: int, profile: PackedProfile) -> tuple[int, int]:
    """Fill a profile: with the longest of the rows ``start`` to ``end`` while they fit, then with the shortest.

    Args:
        totals: tokens of the first 0, 1, 2, … rows, the longest first.
        start: first of the rows that are left.
        end: behind the last of them.
        profile: what is to be filled.

    Returns:
        The new ``start`` and ``end``.
    """
    long_end = min(bisect_right(totals, totals[start] + profile.tokens) - 1, start + profile.rows, end)
    tokens, rows = profile.tokens - (totals[long_end] - totals[start]), profile.rows - (long_end - start)
    return long_end, max(bisect_left(totals, totals[end] - tokens), end - rows, long_end)


def _longest_first(lengths: Lengths) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Indices of the rows that have tokens, the longest first, and their lengths in that order."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    return order, lengths[order].tolist()
