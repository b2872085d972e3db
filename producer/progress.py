"""How far a job is: immutable sums over shards, and immutable snapshots of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from contract.job import Job
from contract.redis.ledger import DeadBatch
from contract.shard import ShardInfo
from producer.view import View


@dataclass(frozen=True)
class ShardTotals:
    """Sums over the footers of some shards. ``a + b`` are those over the shards of both."""

    shards: int = 0
    rows: int = 0
    tokens: int = 0
    """Tokens that were embedded: after truncation, padding not counted."""
    truncated: int = 0
    """Rows with more tokens than the engine takes."""
    without_text: int = 0
    recomputed: int = 0
    """Rows whose vector was not finite and was computed again in FP32."""
    failed: int = 0
    """Rows that have an error instead of a vector."""
    spared: int = 0
    """Rows whose vector was taken: an earlier job, or another row, has the same text."""
    spared_tokens: int = 0
    """Of ``tokens``, theirs."""
    runtimes: frozenset[str] = frozenset()
    """What computed them: ``ShardInfo.computed_by``."""

    def __add__(self, other: "ShardTotals") -> "ShardTotals":
        return ShardTotals(
            shards=self.shards + other.shards,
            rows=self.rows + other.rows,
            tokens=self.tokens + other.tokens,
            truncated=self.truncated + other.truncated,
            without_text=self.without_text + other.without_text,
            recomputed=self.recomputed + other.recomputed,
            failed=self.failed + other.failed,
            spared=self.spared + other.spared,
            spared_tokens=self.spared_tokens + other.spared_tokens,
            runtimes=self.runtimes | other.runtimes,
        )


def totals_of(infos: Iterable[ShardInfo]) -> ShardTotals:
    """The sums over these shards' footers."""
    return sum(map(_one, infos), ShardTotals())


def _one(info: ShardInfo) -> ShardTotals:
    return ShardTotals(
        shards=1,
        rows=info.rows,
        tokens=info.tokens,
        truncated=info.truncated,
        without_text=info.without_text,
        recomputed=info.recomputed,
        failed=info.failed,
        spared=info.spared,
        spared_tokens=info.spared_tokens,
        runtimes=frozenset({info.computed_by}),
    )


@dataclass(frozen=True)
class Progress:
    """A job at one instant of a run."""

    job: Job
    before: ShardTotals
    """Over the shards that were there when this run began."""
    new: ShardTotals
    """Over those that have come since."""
    last_shard: float
    """When a shard last came, by the monotonic clock; at first when this run began."""
    dead: Mapping[int, DeadBatch] = field(default_factory=dict)
    """Batches that were given up, and why."""
    view: View | None = None
    """The workers and the job in Redis, as last seen."""
    begun: int = 0
    """Rows that are computed, of batches that have no shard yet: as far as workers have said."""
    producers: int = 1
    """Most producers that were at the job at once."""
    made: int = 0
    """Batches that this one has tokenized."""
    first: ShardTotals = ShardTotals()
    """Over the new shards of texts that several batches have; they are a job of their own."""

    @property
    def totals(self) -> ShardTotals:
        """Over all shards that are there."""
        return self.before + self.new

    @property
    def rows(self) -> int:
        """Rows that are computed, with those whose shard is not there yet."""
        return min(self.totals.rows + self.begun, self.job.rows)

    @property
    def new_rows(self) -> int:
        """Those of them that this run has computed."""
        return self.rows - self.before.rows
