"""How many of a job's vectors were computed, and how many taken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from contract.errors import UserError
from contract.job import Job, load_job
from contract.shard import ShardInfo


@dataclass(frozen=True)
class Reuse:
    """Counts over all rows of the shards that could be read."""

    with_text: int
    taken: Mapping[str, int]
    """An earlier job's id → how many rows have their vectors from it."""
    repeated: int
    """Rows with a text that other rows have too, and that was computed once for all: every row but the first of its
    batch, and where several batches have the text, all of them."""
    shared: int
    """Texts that several batches have: the repeated job computed each of them once."""

    @property
    def spared(self) -> int:
        """Rows whose vector was not computed in their batch."""
        return sum(self.taken.values()) + self.repeated

    @property
    def computed(self) -> int:
        """Texts that the job computed."""
        return self.with_text - self.spared + self.shared


def reuse_of(job: Job, shards: Iterable[ShardInfo]) -> Reuse:
    """The counts, from the shards' footers."""
    taken: Counter[str] = Counter()
    with_text = repeated = 0
    for info in shards:
        taken.update(info.taken)
        with_text += info.rows - info.without_text
        repeated += info.repeated
    earlier = {one.id: taken.pop(one.id) for one in job.reuse if one.id in taken}
    return Reuse(with_text, earlier, repeated + taken.total(), _shared(job) if taken else 0)


def _shared(job: Job) -> int:
    try:
        return load_job(job.repeated).rows
    except UserError:  # nobody need keep it
        return 0
