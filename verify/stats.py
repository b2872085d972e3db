"""Counts over all rows of the shards, and what is wrong with any of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.engine import EngineSpec
from contract.findings import NONE, Findings, Tally
from contract.form import VectorForm
from contract.job import Job
from contract.shard import ShardInfo
from contract.vectors import Layout
from verify.shard_rows import ShardRows

_FLOAT32 = VectorForm()

_NORM_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-3}
"""By how much a norm may differ from 1 for the engine's arithmetic; what quantization adds comes on top."""


@dataclass(frozen=True)
class VectorRules:
    """What a job's vectors must be."""

    elements: int
    """Of a vector, before it is quantized."""
    max_length: int
    """The engine's, in tokens."""
    unit_norm: bool
    """Whether each has Euclidean norm 1."""
    form: VectorForm = _FLOAT32
    windowed: bool = False
    """Whether longer texts have windows, so that none is truncated."""
    layout: Layout = "pooled"
    """What a row has."""

    @classmethod
    def of(cls, job: Job, spec: EngineSpec) -> "VectorRules":
        return cls(
            elements=job.form.elements(spec.hidden),
            max_length=spec.max_length,
            unit_norm=spec.unit_norm,
            form=job.form,
            windowed=job.windowed,
            layout=spec.layout,
        )

    @property
    def most_tokens(self) -> int:
        """Tokens that a row may have without being truncated."""
        return int(np.iinfo(np.int32).max) if self.windowed else self.max_length


@dataclass(frozen=True)
class ShardStats(Tally):
    """Counts and faults of all rows of one shard or several, sampled or not."""

    rows: int = 0
    truncated: int = 0
    without_text: int = 0
    failed: Findings = NONE
    """Rows with an error in place of a vector. They are accounted for, so this is no fault."""
    wrong_nulls: Findings = NONE
    """Rows that have tokens, no error and a null embedding; or a vector where there must be none."""
    non_finite: Findings = NONE
    """Rows with a NaN or an infinity in a vector."""
    zero: Findings = NONE
    """Rows with a vector of zeros."""
    wrong_norms: Findings = NONE
    """Rows with a vector that cannot have norm 1, though the engine normalizes."""
    wrong_flags: Findings = NONE
    """Rows whose ``truncated`` is not ``n_tokens > max_length``."""
    wrong_sums: Findings = NONE
    """Shards whose footer has other sums, or another ``max_length``, than their rows."""
    changed: Findings = NONE
    """Shards with a column that has another digest than the worker took of it, and which columns."""
    unreadable: Findings = NONE
    """Shards whose row ids can be read, and another column cannot."""

    @property
    def has_faults(self) -> bool:
        return any(found.count for name, found in self.findings.items() if name != "failed")


def stats_of(shard: ShardRows, info: ShardInfo, rules: VectorRules, name: str) -> ShardStats:
    """Check every row of one shard.

    Args:
        shard: its rows.
        info: its footer.
        rules: what its vectors must be.
        name: its file's name.
    """
    ids, failed = shard.row_id, shard.failed
    without_text, truncated = shard.n_tokens == 0, shard.n_tokens > rules.most_tokens
    changed = [column for column, digest in shard.digests.items() if info.digests.get(column) != digest]
    changed += info.digests.keys() - shard.digests.keys()

    def rows_where(wrong: npt.NDArray[np.bool_]) -> Findings:
        return Findings.of(ids[wrong].tolist())

    return ShardStats(
        rows=len(ids),
        truncated=int(truncated.sum()),
        without_text=int(without_text.sum()),
        failed=rows_where(failed),
        wrong_nulls=rows_where(shard.null != (without_text | failed)),
        non_finite=rows_where(shard.non_finite),
        zero=rows_where(shard.zero),
        wrong_norms=rows_where(_wrong_norms(shard, info, rules)),
        wrong_flags=rows_where(shard.truncated != truncated),
        wrong_sums=Findings.of([] if _sums(shard, rules) == _recorded_sums(info) else [name]),
        changed=Findings.of([f"{name}: {', '.join(changed)}"] if changed else []),
    )


def _wrong_norms(shard: ShardRows, info: ShardInfo, rules: VectorRules) -> npt.NDArray[np.bool_]:
    if not rules.unit_norm:
        return np.zeros(len(shard.row_id), bool)
    slack = _NORM_TOLERANCE[info.precision]
    return ((shard.low > 1 + slack) | (shard.high < 1 - slack)) & ~shard.zero


def _sums(shard: ShardRows, rules: VectorRules) -> tuple[int, ...]:
    tokens = np.minimum(shard.n_tokens, rules.most_tokens)[~shard.failed]
    counts = (tokens, shard.n_tokens > rules.most_tokens, shard.n_tokens == 0, shard.failed)
    return (rules.max_length, len(shard.row_id), *(int(values.sum()) for values in counts))


def _recorded_sums(info: ShardInfo) -> tuple[int, ...]:
    return (info.max_length, info.rows, info.tokens, info.truncated, info.without_text, info.failed)
