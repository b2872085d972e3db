"""A seeded sample of a job's rows, stratified by length, drawn while every row is read.

Every row gets a random key that only the seed, its batch and its index in the shard decide; a stratum's sample is its
rows with the lowest keys. So the sample does not depend on the order in which shards are read.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.findings import Findings
from contract.job import Job
from contract.shard import ShardInfo
from verify.shard_rows import ShardRows, read_rows
from verify.shards import BadShard, open_shard, read_concurrently
from verify.stats import ShardStats, VectorRules, stats_of

_SHORTEST = 32
"""Upper edge of the first stratum, in tokens; each further one is twice as long."""

_ROW = np.dtype(
    [("key", "f8")]
    + [(name, "i8") for name in ("row_id", "batch", "index", "n_tokens")]
    + [(name, "?") for name in ("truncated", "null", "failed")]
)


@dataclass(frozen=True)
class SampledRow:
    """A row to be compared, as its shard describes it."""

    row_id: int
    batch: int
    index: int
    """In the shard."""
    n_tokens: int
    truncated: bool
    stratum: str


@dataclass(frozen=True)
class Sample:
    """The rows to compute again, and what was seen of all rows on the way."""

    strata: tuple[str, ...]
    """Every stratum's name, shortest rows first."""
    rows: tuple[SampledRow, ...]
    """To be compared: each has a text and a vector."""
    without_text: tuple[SampledRow, ...]
    """As many again, at most, of those that have no text: the dataset must agree."""
    stats: ShardStats
    lengths: Mapping[int, int]
    """``n_tokens`` → how many rows of all shards have it."""
    shards: tuple[ShardInfo, ...]
    """The footers of the shards that could be read, by batch."""
    at_fault: tuple[int, ...]
    """The batches whose shards have a fault."""


def edges(max_length: int) -> list[int]:
    """The strata's upper edges in tokens; rows above the last one are the truncated ones.

    512 gives 32, 64, 128, 256, 512; 100 gives 32, 64, 100; 16 gives 16.
    """
    uppers = [_SHORTEST]
    while uppers[-1] < max_length:
        uppers.append(uppers[-1] * 2)
    return [*uppers[:-1], max_length]


def quotas(available: Sequence[int], wanted: int) -> list[int]:
    """How many rows each stratum gives: equal shares; what a small stratum lacks comes from the others.

    20 of 100, 0, 3 and 100 rows are 9, 0, 3 and 8.
    """
    given = [0] * len(available)
    while (left := wanted - sum(given)) > 0:
        unused = [stratum for stratum, rows in enumerate(available) if given[stratum] < rows]
        if not unused:
            break
        share, rest = divmod(left, len(unused))
        for rank, stratum in enumerate(unused):
            given[stratum] += min(share + (rank < rest), available[stratum] - given[stratum])
    return given


class _Strata:
    """The rows with the lowest keys of each stratum: one for each upper edge, one of truncated rows, and last the rows
    without a text."""

    def __init__(self, max_length: int, most: int) -> None:
        self._upper, self._most = edges(max_length), most
        lower = [0, *self._upper[:-1]]
        self.names = [f"{low + 1}-{high}" for low, high in zip(lower, self._upper, strict=True)]
        self.names.append(f"over {max_length}")
        self._rows = [np.empty(0, _ROW) for _ in range(len(self.names) + 1)]

    def add(self, rows: npt.NDArray[np.void]) -> None:
        stratum = np.where(rows["n_tokens"] == 0, len(self.names), np.searchsorted(self._upper, rows["n_tokens"]))
        for number in np.unique(stratum).tolist():
            both = np.concatenate([self._rows[number], rows[stratum == number]])
            self._rows[number] = np.sort(both, order=["key", "row_id"])[: self._most]

    def with_text(self) -> Iterator[SampledRow]:
        *strata, _ = self._rows
        shares = quotas([len(stratum) for stratum in strata], self._most)
        for name, stratum, share in zip(self.names, strata, shares, strict=True):
            yield from _sampled(stratum[:share], name)

    def without_text(self) -> Iterator[SampledRow]:
        return _sampled(self._rows[-1], "without a text")


def draw(job: Job, batches: Iterable[int], rules: VectorRules, *, rows: int, seed: int) -> Sample:
    """Draw the sample, and on the way read and check every row.

    Args:
        job: the job.
        batches: those whose shards can be read, in any order.
        rules: what the vectors must be.
        rows: how many to draw; all are taken if there are fewer.
        seed: 0 or more; the same seed draws the same rows.
    """
    strata, stats = _Strata(rules.max_length, rows), ShardStats()
    lengths: Counter[int] = Counter()
    infos: list[ShardInfo] = []
    at_fault: list[int] = []
    for batch, read in read_concurrently(functools.partial(_read, job, rules), batches):
        name = job.shard(batch).name
        if isinstance(read, BadShard):
            of_shard = ShardStats(unreadable=Findings.of([f"{name}: {read}"]))
        else:
            shard, info = read
            strata.add(_candidates(shard, job.row_range(batch), batch, seed))
            of_shard = stats_of(shard, info, rules, name)
            tokens, counts = np.unique(shard.n_tokens, return_counts=True)
            lengths.update(dict(zip(tokens.tolist(), counts.tolist(), strict=True)))
            infos.append(info)
        stats += of_shard
        at_fault += [batch] if of_shard.has_faults else []
    return Sample(
        strata=tuple(strata.names),
        rows=tuple(strata.with_text()),
        without_text=tuple(strata.without_text()),
        stats=stats,
        lengths=lengths,
        shards=tuple(sorted(infos, key=lambda info: info.batch)),
        at_fault=tuple(sorted(at_fault)),
    )


def _read(job: Job, rules: VectorRules, batch: int) -> tuple[ShardRows, ShardInfo] | BadShard:
    """A shard's rows, every value read, and its footer; or what is wrong with it."""
    try:
        with open_shard(job, batch) as (file, info):
            return read_rows(file, rules.layout, rules.form, rules.elements), info
    except BadShard as error:
        return error


def _candidates(shard: ShardRows, wanted: range, batch: int, seed: int) -> npt.NDArray[np.void]:
    """The shard's rows that can be compared, with their keys.

    Rows of another batch, with an error, or with a vector too many or too few are counted elsewhere, and left out.
    """
    rows = np.empty(len(shard.row_id), _ROW)
    for column in ("row_id", "n_tokens", "truncated", "null", "failed"):
        rows[column] = getattr(shard, column)
    rows["batch"], rows["index"] = batch, np.arange(len(rows))
    rows["key"] = np.random.default_rng([seed, batch]).random(len(rows))
    has_text = rows["n_tokens"] != 0
    in_batch = (rows["row_id"] >= wanted.start) & (rows["row_id"] < wanted.stop)
    return rows[in_batch & ~rows["failed"] & (rows["null"] != has_text)]


def _sampled(stratum: npt.NDArray[np.void], name: str) -> Iterator[SampledRow]:
    for row in stratum:
        yield SampledRow(
            row_id=int(row["row_id"]),
            batch=int(row["batch"]),
            index=int(row["index"]),
            n_tokens=int(row["n_tokens"]),
            truncated=bool(row["truncated"]),
            stratum=name,
        )
