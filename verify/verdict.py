"""The verdict: every check judged and every figure computed, once."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from contract.compare import TOLERANCES
from contract.engine import EngineSpec
from contract.findings import NONE, Findings
from contract.job import Job
from contract.verdict import Check, Figures, RowResult, Verdict
from verify.accounting import Accounting
from verify.checks import accounting_checks, reuse_check, sample_check, sample_checks, source_check, whole_checks
from verify.comparison import ComparedRow, ComparedSample, total
from verify.reuse import reuse_of
from verify.sample import Sample, SampledRow
from verify.stats import VectorRules

if TYPE_CHECKING:
    from verify.readings import Readings

_WORST = 20
"""Rows of ``Verdict.worst_rows``."""
_FAILING = 1000
"""Most rows of ``Verdict.failing_rows``: all of a large sample may fail, and whoever reads the verdict holds it."""


@dataclass(frozen=True)
class Request:
    """What was asked of the verifier."""

    job: Job
    rows: int
    """To be sampled."""
    seed: int


@dataclass(frozen=True)
class Evidence:
    """What was seen on the way to a verdict: the report's pictures show it row by row, ``verify.json`` has no room."""

    spec: EngineSpec
    sample: Sample
    compared: Sequence[ComparedRow]
    max_length: int | None
    """The engine's, in tokens; None where long texts have windows, and none is truncated."""


def judge(
    request: Request,
    accounting: Accounting,
    rules: VectorRules,
    sample: Sample,
    readings: "Readings",
    compared: ComparedSample,
) -> Verdict:
    """The verdict on a job of which a sample was compared.

    Args:
        request: what was asked.
        accounting: its row accounting.
        rules: what its vectors must be.
        sample: the sample, and what was seen of all rows.
        readings: the sample's texts.
        compared: the sample, compared.
    """
    job, rows = request.job, compared.rows
    damaged = Findings.of([f"{job.shard(batch).name}: {reason}" for batch, reason in compared.unreadable.items()])
    with_text = [row for row in sample.without_text if readings.texts.get(row.row_id) is not None]
    reuse = reuse_of(job, sample.shards)
    checks = [
        *accounting_checks(accounting.counts, sample.stats.unreadable + damaged),
        source_check(readings, job),
        *reuse_check(reuse),
        *whole_checks(sample.stats, rules, Findings.of([row.row_id for row in with_text])),
        sample_check(len(rows), sample.stats, job),
        *sample_checks(rows, job),
    ]
    bad_rows = [*with_text, *(one.row for one in rows if one.problem)]
    at_fault = _at_fault(job, accounting, {*sample.at_fault, *compared.unreadable}, bad_rows)
    verdict = _without_sample(request, accounting, checks)
    update = {"at_fault": at_fault, "taken": dict(reuse.taken), "repeated": reuse.repeated}
    update |= {**_of_all_rows(sample), **_of_sample(sample.strata, rows)}
    return verdict.model_copy(update=update)


def _of_all_rows(sample: Sample) -> dict[str, object]:
    stats = sample.stats
    return {
        "tokens": sum(info.tokens for info in sample.shards),
        "truncated": stats.truncated,
        "without_text": stats.without_text,
        "failed": stats.failed.count,
    }


def _of_sample(strata: Sequence[str], rows: Sequence[ComparedRow]) -> dict[str, object]:
    failing = [row for row in rows if row.problem]
    return {
        "compared": len(rows),
        "strata": tuple(_strata(strata, rows)),
        "total": _figures(rows),
        "tolerance": {name: TOLERANCES[name] for name in sorted({row.precision for row in rows})},
        "worst_rows": tuple(_result(row) for row in heapq.nsmallest(_WORST, rows, key=_badness)),
        "failing": len(failing),
        "failing_rows": tuple(_result(row) for row in failing[:_FAILING]),
    }


def judge_without_sample(request: Request, accounting: Accounting, reason: str) -> Verdict:
    """The verdict on a job whose dataset, engine or model cannot be used.

    Args:
        request: what was asked.
        accounting: its row accounting.
        reason: why there is no sample.
    """
    checks = [*accounting_checks(accounting.counts, NONE), Check(name="reference", passed=False, detail=reason)]
    return _without_sample(request, accounting, checks)


def _without_sample(request: Request, accounting: Accounting, checks: Sequence[Check]) -> Verdict:
    job = request.job
    return Verdict(
        job=job.id,
        engine=job.engine,
        fingerprint=job.fingerprint,
        dtype=job.form.dtype,
        dimensions=job.form.dimensions,
        columns=job.columns,
        overlap=job.overlap,
        dataset=job.dataset,
        revision=job.revision,
        rows=job.rows,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        sample=request.rows,
        seed=request.seed,
        compared=0,
        checks=tuple(checks),
        at_fault=_at_fault(job, accounting, (), ()),
        accounting=accounting.counts,
        tokens=None,
        truncated=None,
        without_text=None,
        failed=None,
        strata=(),
        total=_figures(()),
        tolerance={},
        worst_rows=(),
        failing=0,
        failing_rows=(),
    )


def _at_fault(job: Job, accounting: Accounting, batches: Iterable[int], rows: Iterable[SampledRow]) -> tuple[str, ...]:
    """The names of all files that must go: shards with a fault, and what is no shard."""
    bad = {*accounting.at_fault, *batches, *(row.batch for row in rows)}
    return tuple(sorted({*accounting.unexpected_files, *(job.shard(batch).name for batch in bad)}))


def _strata(names: Iterable[str], rows: Sequence[ComparedRow]) -> Iterable[Figures]:
    """The figures of each stratum that has rows."""
    for name in names:
        if some := [row for row in rows if row.row.stratum == name]:
            yield _figures(some, name)


def _figures(rows: Sequence[ComparedRow], tokens: str = "all") -> Figures:
    return Figures.of(len(rows), total(rows), tokens)


def _result(row: ComparedRow) -> RowResult:
    figures = row.comparison
    return RowResult(
        row_id=row.row.row_id,
        n_tokens=row.row.n_tokens,
        truncated=row.row.truncated,
        cosine=figures.min_cosine if figures else None,
        relative_mse=figures.relative_mse if figures else None,
        max_difference=figures.max_difference if figures else None,
        problem=row.problem,
        text=row.text,
    )


def _badness(row: ComparedRow) -> tuple[bool, float]:
    """Sorts failing rows first, then the highest error first; one that is no number is above all."""
    error = row.comparison.relative_mse if row.comparison else np.inf
    return not row.problem, -error if np.isfinite(error) else -np.inf
