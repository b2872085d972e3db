"""How a batch is cut for computing: rows of like length together, so that next to no padding is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows that are computed at once."""

    rows: npt.NDArray[np.intp]
    """``[n]``, places in the batch."""
    length: int
    """Tokens of each row, padding included: the longest row's."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return len(self.rows) * self.length


def plan(lengths: Sequence[int] | npt.NDArray[np.integer], token_budget: int) -> list[MicroBatch]:
    """Cut a batch into micro-batches, the longest rows first.

    Args:
        lengths: ``[n]``, each row's tokens; rows of 0 tokens are left out.
        token_budget: most tokens of a micro-batch, padding included. A row longer than that is computed alone.

    Returns:
        Micro-batches that hold every row that has tokens once.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    microbatches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        stop = start + max(1, token_budget // longest)
        microbatches.append(MicroBatch(order[start:stop], longest))
        start = stop
    return microbatches
