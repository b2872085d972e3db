"""The shards of a job that are there: the folder is listed, and each new shard's footer is read once."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from contract.errors import UserError
from contract.job import Job
from contract.shard import ShardInfo, read_info
from producer.progress import ShardTotals, totals_of

LISTING_SHARE = 0.05
"""Most of the time that goes into listing the shards."""

_CONCURRENT_FOOTERS = 16
"""Shards whose footers are read side by side: an object store takes its time for each."""


class ShardWatch:
    """Finds a job's shards as they come.

    Args:
        job: the job.
        listing_share: most of the time that goes into listing the folder, which has many objects towards the end.
    """

    def __init__(self, job: Job, listing_share: float = LISTING_SHARE) -> None:
        self._job, self._listing_share = job, listing_share
        self._list_after = 0.0
        """When the folder may be listed again, by the monotonic clock."""
        self.batches: set[int] = set()
        """Batches whose shard was found."""

    def refresh(self, settled: Iterable[int] | None = None) -> ShardTotals:
        """Find the shards that have come since the last call.

        Args:
            settled: batches whose shards have probably come: only those are looked for while another listing of the
                folder would take more than its share of the time. None: the folder is listed.

        Returns:
            The sums over the new shards.

        Raises:
            UserError: a file with a shard's name is no shard.
        """
        if settled is None or time.monotonic() >= self._list_after:
            new = self._list() - self.batches
        else:
            new = {batch for batch in settled if batch not in self.batches and self._job.shard(batch).exists()}
        with ThreadPoolExecutor(_CONCURRENT_FOOTERS) as pool:
            totals = totals_of(pool.map(lambda batch: _info_of(self._job, batch), new))
        self.batches |= new
        return totals

    def _list(self) -> set[int]:
        began = time.monotonic()
        found = self._job.committed()
        ended = time.monotonic()
        self._list_after = ended + (ended - began) / self._listing_share
        return found


def _info_of(job: Job, batch: int) -> ShardInfo:
    shard = job.shard(batch)
    try:
        return read_info(shard)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{shard} is no shard ({error})",
            "a shard is whole once it is there: the disk or a person changed it",
            f"have it set aside and made again: python -m verify {job.folder}, then python -m producer retry "
            f"{job.folder}",
        ) from None
