"""How the vectors of a job's rows came to be: computed, or taken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract.errors import UserError
from contract.job import Job, load_job
from contract.shard import ShardInfo


@dataclass(frozen=True)
class Made:
    """Counts over all rows of the shards that could be read."""

    with_text: int
    taken: Mapping[str, int]
    """An earlier job's id → how many rows have a vector of it."""
    repeated: int
    """Rows that have the vector of a text which other rows have too, and which was computed once: those that are not
    the first one of their batch, and all whose text several batches have."""
    shared: int
    """Texts that several batches have."""

    @property
    def spared(self) -> int:
        """Rows whose vector was not computed in their batch."""
        return sum(self.taken.values()) + self.repeated

    @property
    def computed(self) -> int:
        """Texts that the job computed."""
        return self.with_text - self.spared + self.shared


def made_of(job: Job, shards: Iterable[ShardInfo]) -> Made:
    """The counts, from the shards' footers."""
    taken: Counter[str] = Counter()
    with_text = repeated = 0
    for info in shards:
        taken.update(info.taken)
        with_text += info.rows - info.without_text
        repeated += info.repeated
    earlier = {one.id: taken.pop(one.id) for one in job.reuse if one.id in taken}
    return Made(with_text, earlier, repeated + taken.total(), _shared(job) if taken else 0)


def _shared(job: Job) -> int:
    try:
        return load_job(job.repeated).rows
    except UserError:  # somebody removed it, and need not keep it
        return 0
