"""The checks that must all pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contract.compare import TOLERANCES
from contract.job import Job
from contract.words import count
from verify.accounting import Accounting
from verify.compared import Compared, total
from verify.findings import Findings
from verify.sample import Sample, Vectors

if TYPE_CHECKING:
    from verify.readings import Readings


@dataclass(frozen=True)
class Check:
    """One question about a job and its answer."""

    name: str
    passed: bool
    detail: str
    """The figures behind the answer; where it failed, the rows or files."""


def accounting_checks(accounting: Accounting, unreadable: Findings) -> list[Check]:
    """Is every shard there, and every row in it once?

    Args:
        accounting: the row accounting.
        unreadable: shards that turned out damaged later, in other columns.
    """
    shards = {
        "missing": accounting.missing_shards,
        "unreadable": accounting.unreadable + unreadable,
        "made for something else": accounting.strangers,
        "unexpected files in data/": accounting.unexpected_files,
    }
    rows = {
        "missing": accounting.missing_rows,
        "twice": accounting.rows_twice,
        "in a shard that is not theirs": accounting.foreign_rows,
    }
    in_and_out = f"{accounting.expected_rows:,} in, {accounting.rows:,} out"
    return [
        _check("shards", f"{accounting.shards:,} of {accounting.expected_shards:,}", shards),
        _check("rows", in_and_out, rows, passed=accounting.rows == accounting.expected_rows),
        _check("order", "the dataset's", {"rows out of order in": accounting.disordered}),
    ]


def whole_checks(sample: Sample, expected: Vectors, unexpected_texts: Findings) -> list[Check]:
    """Are the columns of all rows consistent, and what the workers wrote?

    Args:
        sample: the sample, which has seen every row.
        expected: what the vectors must be.
        unexpected_texts: rows without a text in the shards that have one in the dataset, and not a blank one.
    """
    seen = sample.seen
    nulls = {"embedding null, or not, against n_tokens": seen.wrong_nulls, "the dataset has a text": unexpected_texts}
    sums = {"truncated against n_tokens, rows": seen.wrong_flags, "footer against rows": seen.wrong_sums}
    norms = {"zero vectors in rows": seen.zero, "another norm than 1 in rows": seen.wrong_norms}
    with_vector = count(seen.rows - seen.without_text - seen.failed.count, "row")
    errors = f"{count(seen.failed.count, 'row')} with one instead of a vector"
    return [
        _check("errors", f"{errors}: {seen.failed}" if seen.failed else errors, {}),
        _check("without a text", f"{count(seen.without_text, 'row')}, embedding null", nulls),
        _check("finite", f"every value of the vectors of {with_vector}", {"NaN or infinity in rows": seen.non_finite}),
        _check("norms", "1 each" if expected.unit_norm else "none is 0", norms),
        _check("sums", f"{seen.truncated:,} of {count(seen.rows, 'row')} truncated, as the shards' footers say", sums),
        _check("digests", "every column is as its worker wrote it", {"other contents in": seen.changed}),
    ]


def source_check(readings: "Readings", job: Job) -> Check:
    """Is the dataset what the producer read, by another reader?"""
    figures = f"{count(readings.rows, 'row')} and {count(len(readings.texts), 'sampled text')}, by {readings.reader}"
    wrong = {"read differently": readings.differing}
    if readings.rows != job.rows:
        figures += f"; the job has {count(job.rows, 'row')}"
    return _check("source", figures, wrong, passed=readings.rows == job.rows)


def sample_checks(compared: Sequence[Compared], job: Job) -> list[Check]:
    """Are the sampled rows what PyTorch gives? Vectors by precision, since tolerances are."""
    if not compared:
        return []
    lengths = Findings.of([row.row.row_id for row in compared if row.length_problem])
    checks = [_check("lengths", f"n_tokens and truncated of {count(len(compared), 'row')}", {"wrong in rows": lengths})]
    if job.columns:
        kept = Findings.of([row.row.row_id for row in compared if row.kept_problem])
        checks.append(_check("columns", f"{', '.join(job.columns)}, as in the dataset", {"other values in rows": kept}))
    for precision, tolerance in TOLERANCES.items():
        group = [row for row in compared if row.precision == precision]
        if not group:
            continue
        whole, broken = total(group), Findings.of([row.row.row_id for row in group if row.vector_problem])
        figures = (
            f"lowest cosine {whole.min_cosine:.7f} (at least {tolerance.min_cosine}), "
            f"relative MSE {whole.relative_mse:.1e} (at most {tolerance.max_relative_mse:.0e}){_form(job)}"
        )
        checks.append(_check(f"{precision} vectors", figures, {"rows": broken}, passed=whole.within(tolerance)))
    return checks


def _form(job: Job) -> str:
    """What else there is to know of the vectors."""
    quantized = f", {job.form.dtype}: of each vector's step the point nearest to PyTorch's"
    return "".join(
        [
            f", the first {count(job.form.dimensions, 'dimension')}" if job.form.dimensions else "",
            quantized if job.form.dtype in ("int8", "binary") else ", float16" * (job.form.dtype == "float16"),
            f", long texts in windows sharing {count(job.overlap, 'token')}" if job.overlap is not None else "",
        ]
    )


def _check(name: str, figures: str, wrong: dict[str, Findings], *, passed: bool = True) -> Check:
    faults = [f"{what}: {findings}" for what, findings in wrong.items() if findings]
    return Check(name, passed and not faults, "; ".join([figures, *faults]))
