"""How fast a job was, from its shards' footers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.shard import ShardInfo

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Throughput:
    """All workers' rows per second over the time in which the shards were computed."""

    edges: _Floats
    """The bins' edges in seconds from the first shard's beginning, ``[bins + 1]``."""
    rates: _Floats
    """Rows per second, ``[bins]``."""
    pauses: _Floats
    """Where pauses were left out, in seconds."""


def throughput_of(shards: Sequence[ShardInfo], bins: int = 60) -> Throughput | None:
    """The throughput; None where no shard took any time.

    A shard's rows count evenly over the time in which it was computed. A pause is left out if it is at least a minute
    and a twentieth of the rest: of a job that computed for an hour, pauses of three minutes and more.
    """
    spans = [(one.finished.timestamp(), one.seconds, one.rows) for one in shards if one.seconds > 0]
    if not spans:
        return None
    end, duration, rows = np.array(spans, np.float64).T
    order = np.argsort(end - duration)
    end, duration, rows = end[order], duration[order], rows[order]
    start = end - duration
    idle = np.maximum(0, start[1:] - np.maximum.accumulate(end)[:-1])
    busy = end.max() - start[0] - idle.sum()
    skipped = np.where(idle > max(60, busy / 20), idle, 0)
    start -= start[0] + np.concatenate([[0], np.cumsum(skipped)])
    edges = np.linspace(0, (start + duration).max(), bins + 1)
    done = [float((rows * np.clip((edge - start) / duration, 0, 1)).sum()) for edge in edges]
    return Throughput(edges, np.diff(done) / edges[1], start[1:][skipped > 0])
