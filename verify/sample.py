"""A seeded sample of a job's rows, stratified by length, drawn from a few shards at a time.

Every row gets a random key that only the seed, its batch and its place in the shard decide; a stratum's sample is
its rows with the lowest keys. So the sample does not depend on the order in which shards are read.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.job import Job
from contract.shard import ShardInfo
from verify.findings import NONE, Findings, Tally
from verify.shards import BadShard, ShardRows, open_shard, read_rows, side_by_side

_SHORTEST = 32
"""Upper edge of the first stratum, in tokens; each further one is twice as long."""

_ROW = np.dtype(
    [("key", "f8")]
    + [(name, "i8") for name in ("row_id", "batch", "place", "n_tokens")]
    + [(name, "?") for name in ("truncated", "null", "failed")]
)


@dataclass(frozen=True)
class Row:
    """A sampled row, as its shard describes it."""

    row_id: int
    batch: int
    place: int
    """Its position in the shard."""
    n_tokens: int
    truncated: bool
    stratum: str


@dataclass(frozen=True)
class Seen(Tally):
    """What was seen of every row of the shards on the way, sampled or not."""

    rows: int = 0
    truncated: int = 0
    without_text: int = 0
    failed: Findings = NONE
    """Rows that say why they have no vector. No fault: they are accounted for."""
    wrong_nulls: Findings = NONE
    """Rows that have tokens, no error and a null embedding, or else a vector where there must be none."""
    non_finite: Findings = NONE
    """Rows with a value that is not finite in a vector."""
    zero: Findings = NONE
    """Rows with a vector of zeros."""
    wrong_norms: Findings = NONE
    """Rows with a vector that cannot have norm 1, though the engine normalizes."""
    wrong_flags: Findings = NONE
    """Rows whose ``truncated`` is not ``n_tokens > max_length``."""
    wrong_sums: Findings = NONE
    """Shards whose footer gives other sums, or another ``max_length``, than their rows."""
    changed: Findings = NONE
    """Shards with a column that has another digest than the worker took of it, and which columns."""
    unreadable: Findings = NONE
    """Shards that have their row ids and cannot be read any further."""

    @property
    def at_fault(self) -> bool:
        """Whether anything is wrong. A row that says why it has no vector is not."""
        return any(found for name, found in self.findings.items() if name != "failed")


@dataclass(frozen=True)
class Sample:
    """The rows to compute again."""

    strata: tuple[str, ...]
    """Every stratum's name, shortest rows first."""
    rows: tuple[Row, ...]
    """To be compared: each has a text and a vector."""
    without_text: tuple[Row, ...]
    """As many again, at most, of those that have no text: the dataset must agree."""
    seen: Seen
    lengths: Mapping[int, int]
    """``n_tokens`` → how many rows of all shards have it."""
    shards: tuple[ShardInfo, ...]
    """What the footers of the shards that could be read say."""
    at_fault: tuple[int, ...]
    """The batches whose shards have a fault that was seen on the way."""


def edges(max_length: int) -> list[int]:
    """The strata's upper edges in tokens; rows above the last one are the truncated ones.

    512 gives 32, 64, 128, 256, 512; 100 gives 32, 64, 100; 16 gives 16.
    """
    found = [_SHORTEST]
    while found[-1] < max_length:
        found.append(found[-1] * 2)
    return [*found[:-1], max_length]


def quotas(available: Sequence[int], wanted: int) -> list[int]:
    """How many rows each stratum gives: equal shares; what a small stratum lacks comes from the others.

    20 of 100, 0, 3 and 100 rows are 9, 0, 3 and 8.
    """
    given = [0] * len(available)
    while (left := wanted - sum(given)) > 0:
        open_ones = [place for place, count in enumerate(available) if given[place] < count]
        if not open_ones:
            break
        share, rest = divmod(left, len(open_ones))
        for rank, place in enumerate(open_ones):
            given[place] += min(share + (rank < rest), available[place] - given[place])
    return given


@dataclass(frozen=True)
class Vectors:
    """What a job's vectors must be."""

    elements: int
    """Of a vector, before it is quantized."""
    max_length: int
    """The engine's, in tokens."""
    unit_norm: bool
    """Whether each has Euclidean norm 1."""


def _read(job: Job, elements: int, batch: int) -> tuple[ShardRows, ShardInfo] | BadShard:
    """A shard's rows, every value read, and what its footer says; or what is wrong with it."""
    try:
        with open_shard(job, batch) as (file, info):
            return read_rows(file, job.form, elements), info
    except BadShard as error:
        return error


def draw(job: Job, batches: Iterable[int], expected: Vectors, *, rows: int, seed: int) -> Sample:
    """Draw the sample, and on the way read every row.

    Args:
        job: the job.
        batches: those whose shards can be read, in any order.
        expected: what the vectors must be.
        rows: how many to draw; all are taken if there are fewer.
        seed: 0 or more; the same seed draws the same rows.
    """
    upper, seen = edges(expected.max_length), Seen()
    lengths: Counter[int] = Counter()
    infos: list[ShardInfo] = []
    at_fault: list[int] = []
    # One stratum for each upper edge, one for truncated rows, and last the rows without a text.
    strata = [np.empty(0, _ROW) for _ in range(len(upper) + 2)]
    for batch, read in side_by_side(functools.partial(_read, job, expected.elements), batches):
        if isinstance(read, BadShard):
            seen += Seen(unreadable=Findings.of([f"{job.shard(batch).name}: {read}"]))
            at_fault.append(batch)
            continue
        found, info = read
        one = _seen(found, info, expected, job, batch)
        seen += one
        if one.at_fault:
            at_fault.append(batch)
        tokens, counts = np.unique(found.n_tokens, return_counts=True)
        lengths.update(dict(zip(tokens.tolist(), counts.tolist(), strict=True)))
        infos.append(info)
        shard = np.empty(len(found.row_id), _ROW)
        for column in ("row_id", "n_tokens", "truncated", "null", "failed"):
            shard[column] = getattr(found, column)
        shard["batch"], shard["place"] = batch, np.arange(len(shard))
        shard["key"] = np.random.default_rng([seed, batch]).random(len(shard))
        # A row of another shard's slice, or with a vector too many or too few, is reported but cannot be compared.
        wanted, texts = job.row_range(batch), (shard["n_tokens"] != 0) & ~shard["failed"]
        fit = shard[(shard["row_id"] >= wanted.start) & (shard["row_id"] < wanted.stop) & (shard["null"] != texts)]
        fit = fit[~fit["failed"]]
        place = np.where(fit["n_tokens"] == 0, len(strata) - 1, np.searchsorted(upper, fit["n_tokens"]))
        for number in np.unique(place).tolist():
            both = np.concatenate([strata[number], fit[place == number]])
            strata[number] = np.sort(both, order=["key", "row_id"])[:rows]
    names = [f"{low + 1}-{high}" for low, high in zip([0, *upper], upper, strict=False)]
    names.append(f"over {expected.max_length}")
    taken = quotas([len(stratum) for stratum in strata[:-1]], rows)
    return Sample(
        strata=tuple(names),
        rows=tuple(
            row
            for name, stratum, count in zip(names, strata[:-1], taken, strict=True)
            for row in _rows(stratum[:count], name)
        ),
        without_text=tuple(_rows(strata[-1], "without a text")),
        seen=seen,
        lengths=lengths,
        shards=tuple(sorted(infos, key=lambda info: info.batch)),
        at_fault=tuple(sorted(at_fault)),
    )


_UNIT_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3}
"""By how much a norm may differ from 1 where the engine computed it; that of a stored form comes on top."""


def _seen(shard: ShardRows, info: ShardInfo, expected: Vectors, job: Job, batch: int) -> Seen:
    # Windows leave nothing out.
    longest = expected.max_length if job.overlap is None else np.iinfo(np.int32).max
    without_text, truncated = shard.n_tokens == 0, shard.n_tokens > longest
    rows, failed, ids = len(shard.row_id), shard.failed, shard.row_id
    tokens = int(np.minimum(shard.n_tokens, longest)[~failed].sum())
    sums = (expected.max_length, rows, tokens, int(truncated.sum()), int(without_text.sum()), int(failed.sum()))
    recorded = (info.max_length, info.rows, info.tokens, info.truncated, info.without_text, info.failed)
    slack = _UNIT_TOLERANCE[info.precision]
    off = (shard.low > 1 + slack) | (shard.high < 1 - slack) if expected.unit_norm else np.zeros(rows, bool)
    name = job.shard(batch).name
    changed = [column for column, digest in shard.digests.items() if info.digests.get(column) != digest]
    changed += info.digests.keys() - shard.digests.keys()
    return Seen(
        rows=rows,
        truncated=int(truncated.sum()),
        without_text=int(without_text.sum()),
        failed=Findings.of(ids[failed].tolist()),
        wrong_nulls=Findings.of(ids[shard.null != (without_text | failed)].tolist()),
        non_finite=Findings.of(ids[shard.non_finite].tolist()),
        zero=Findings.of(ids[shard.zero].tolist()),
        wrong_norms=Findings.of(ids[off & ~shard.zero].tolist()),
        wrong_flags=Findings.of(ids[shard.truncated != truncated].tolist()),
        wrong_sums=Findings.of([name] if sums != recorded else []),
        changed=Findings.of([f"{name}: {', '.join(changed)}"] if changed else []),
    )


def _rows(stratum: npt.NDArray[np.void], name: str) -> Iterator[Row]:
    for row in stratum:
        yield Row(
            row_id=int(row["row_id"]),
            batch=int(row["batch"]),
            place=int(row["place"]),
            n_tokens=int(row["n_tokens"]),
            truncated=bool(row["truncated"]),
            stratum=name,
        )
