"""The checks that must all pass."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from contract.compare import TOLERANCES
from contract.findings import Findings
from contract.job import REPEATED, Job
from contract.verdict import Check, RowAccounting
from contract.words import count
from verify.comparison import ComparedRow, total
from verify.reuse import Reuse
from verify.stats import ShardStats, VectorRules

if TYPE_CHECKING:
    from verify.readings import Readings


def accounting_checks(accounting: RowAccounting, unreadable: Findings) -> list[Check]:
    """Is every shard there, and every row in it once?

    Args:
        accounting: the row accounting.
        unreadable: shards that turned out damaged later, in other columns.
    """
    shards = {
        "missing": accounting.missing_shards,
        "unreadable": accounting.unreadable + unreadable,
        "made for something else": accounting.foreign_shards,
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


def whole_checks(stats: ShardStats, rules: VectorRules, unexpected_texts: Findings) -> list[Check]:
    """Are the columns of all rows consistent, and what the workers wrote?

    Args:
        stats: of all rows.
        rules: what the vectors must be.
        unexpected_texts: rows without a text in the shards that have one in the dataset, and not a blank one.
    """
    nulls = {"embedding null, or not, against n_tokens": stats.wrong_nulls, "the dataset has a text": unexpected_texts}
    sums = {"truncated against n_tokens, rows": stats.wrong_flags, "footer against rows": stats.wrong_sums}
    norms = {"zero vectors in rows": stats.zero, "another norm than 1 in rows": stats.wrong_norms}
    with_vector = count(stats.rows - stats.without_text - stats.failed.count, "row")
    errors = f"{count(stats.failed.count, 'row')} with one instead of a vector"
    return [
        _check("errors", f"{errors}: {stats.failed}" if stats.failed.count else errors, {}),
        _check("without a text", f"{count(stats.without_text, 'row')}, embedding null", nulls),
        _check("finite", f"every value of the vectors of {with_vector}", {"NaN or infinity in rows": stats.non_finite}),
        _check("norms", "1 each" if rules.unit_norm else "none is 0", norms),
        _check(
            "sums", f"{stats.truncated:,} of {count(stats.rows, 'row')} truncated, as the shards' footers say", sums
        ),
        _check("digests", "every column is as its worker wrote it", {"other contents in": stats.changed}),
    ]


def source_check(readings: "Readings", job: Job) -> Check:
    """Is the dataset what the producer read, by another reader?"""
    figures = f"{count(readings.rows, 'row')} and {count(len(readings.texts), 'sampled text')}, by {readings.reader}"
    wrong = {"read differently": readings.differing}
    if readings.rows != job.rows:
        figures += f"; the job has {count(job.rows, 'row')}"
    return _check("source", figures, wrong, passed=readings.rows == job.rows)


def reuse_check(reuse: Reuse) -> list[Check]:
    """How many vectors were taken? No check if none was. Whether they are right is for the other checks to say, which
    look at every row alike."""
    if not reuse.spared:
        return []
    parts = [f"{reuse.computed:,} of {count(reuse.with_text, 'text')} computed"]
    parts += [f"{rows:,} taken from job {job}" for job, rows in reuse.taken.items()]
    if reuse.repeated:
        once = f", {count(reuse.shared, 'text')} of them in {REPEATED}/" if reuse.shared else ""
        parts.append(f"{reuse.repeated:,} with the text of another row, computed once{once}")
    return [_check("reuse", "; ".join(parts), {}, passed=reuse.computed >= 0)]


def sample_check(compared: int, stats: ShardStats, job: Job) -> Check:
    """Was any vector compared with PyTorch's? A job of which none was is not verified, whatever else is right.

    Args:
        compared: sampled rows that were computed again.
        stats: of all rows.
        job: the job.
    """
    with_vector = stats.rows - stats.without_text - stats.failed.count
    if compared:
        detail = f"{count(compared, 'row')} computed again, of {with_vector:,} with a vector"
    else:
        failed = stats.failed.count
        found = f"{count(stats.rows, 'row')} read, {stats.without_text:,} without a text, {failed:,} with an error"
        detail = (
            f"no row was computed again ({found}); expected at least one row with a vector; {_no_sample(stats, job)}"
        )
    return Check(name="sample", passed=compared > 0, detail=detail)


def _no_sample(stats: ShardStats, job: Job) -> str:
    """What to do about a job of which no row could be computed again."""
    if stats.rows == 0:
        return "have the shards made: run python -m producer retry"
    if stats.without_text == stats.rows:
        shown = job.parts.shown
        return f"the job's text is {shown}: see what the dataset has there; --text chooses another, for a new job"
    if stats.without_text + stats.failed.count < stats.rows:
        return "see which of the other checks fail"
    why = "the column error in the shards says why"
    return f"{why}: repair that, remove the shards and run the producer's command again"


def sample_checks(compared: Sequence[ComparedRow], job: Job) -> list[Check]:
    """Are the sampled rows what PyTorch gives? Vectors by precision, since tolerances are."""
    if not compared:
        return []
    lengths = _rows_with({row.row.row_id: row.length_problem for row in compared})
    hashes = _rows_with({row.row.row_id: row.hash_problem for row in compared})
    checks = [
        _check("lengths", f"n_tokens and truncated of {count(len(compared), 'row')}", {"wrong in rows": lengths}),
        _check("hashes", f"text_hash of {count(len(compared), 'row')}", {"another text's in rows": hashes}),
    ]
    if job.columns:
        kept = _rows_with({row.row.row_id: row.kept_problem for row in compared})
        checks.append(_check("columns", f"{', '.join(job.columns)}, as in the dataset", {"other values in rows": kept}))
    for precision in TOLERANCES:
        if group := [row for row in compared if row.precision == precision]:
            checks.append(_vector_check(precision, group, job))
    return checks


def _vector_check(precision: str, rows: Sequence[ComparedRow], job: Job) -> Check:
    tolerance, together = TOLERANCES[precision], total(rows)
    broken = _rows_with({row.row.row_id: row.vector_problem for row in rows})
    figures = (
        f"lowest cosine {together.min_cosine:.7f} (at least {tolerance.min_cosine}), "
        f"relative MSE {together.relative_mse:.1e} (at most {tolerance.max_relative_mse:.0e}){_form(job)}"
    )
    return _check(f"{precision} vectors", figures, {"rows": broken}, passed=together.within(tolerance))


def _rows_with(problems: Mapping[int, str]) -> Findings:
    return Findings.of([row for row, problem in problems.items() if problem])


def _form(job: Job) -> str:
    """The options of the job that change its vectors, for the check's figures."""
    quantized = f", {job.form.dtype}: of each vector's step the point nearest to PyTorch's"
    return "".join(
        [
            f", the first {count(job.form.dimensions, 'dimension')}" if job.form.dimensions else "",
            quantized if job.form.dtype in ("int8", "binary") else ", float16" * (job.form.dtype == "float16"),
            f", long texts in windows sharing {count(job.overlap, 'token')}" if job.overlap is not None else "",
        ]
    )


def _check(name: str, figures: str, wrong: dict[str, Findings], *, passed: bool = True) -> Check:
    faults = [f"{what}: {findings}" for what, findings in wrong.items() if findings.count]
    return Check(name=name, passed=passed and not faults, detail="; ".join([figures, *faults]))
