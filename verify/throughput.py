"""How fast a job was, from what its shards' footers say."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from contract.shard import ShardInfo


def rows_per_second(
    shards: Sequence[ShardInfo], bins: int = 60
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """All workers' rows per second. A shard's rows count evenly over the time in which it was computed.

    Returns:
        The bins' edges in seconds from the first shard's beginning, float64 ``[bins + 1]``; rows per second,
        ``[bins]``; where pauses were left out, seconds. A pause is at least a minute, and a twentieth of the time, in
        which nothing was computed. All are empty where no shard took any time.
    """
    spans = [(one.finished.timestamp(), one.seconds, one.rows) for one in shards if one.seconds > 0]
    if not spans:
        return np.empty(0), np.empty(0), np.empty(0)
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
    return edges, np.diff(done) / edges[1], start[1:][skipped > 0]
