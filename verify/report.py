"""The verdict: what is printed, and ``verify.json``."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.compare import TOLERANCES, Comparison
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job
from contract.store import Location
from contract.words import count
from verify.accounting import Accounting
from verify.checks import Check
from verify.compared import Compared, total
from verify.sample import Sample

_WORST = 10
"""Rows that ``verify.json`` lists from the lowest cosine up."""
_NAMED = 20
"""Failing rows that are listed with a piece of their text."""


@dataclass(frozen=True)
class Report:
    """A verdict. True when every check passed."""

    job: Job
    asked: int
    """Rows that were to be sampled."""
    seed: int
    checks: Sequence[Check]
    accounting: Accounting
    sample: Sample | None
    """None where the job's dataset, engine or model could not be used."""
    compared: Sequence[Compared]
    at_fault: Sequence[str]
    """The names of all files in ``data/`` that must go: shards to be made again, and what is no shard."""
    engine: EngineSpec | None
    """None where the job's engine could not be used."""

    def __bool__(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failing(self) -> list[Compared]:
        return [row for row in self.compared if row.problem]

    @property
    def strata(self) -> dict[str, list[Compared]]:
        """The compared rows of each stratum that has some, shortest first."""
        names = self.sample.strata if self.sample else ()
        by_name = {name: [row for row in self.compared if row.row.stratum == name] for name in names}
        return {name: rows for name, rows in by_name.items() if rows}


def as_json(report: Report) -> str:
    """What ``verify.json`` holds."""
    return json.dumps(_plain(_as_dict(report)), indent=2, ensure_ascii=False) + "\n"


def write(path: Location, text: str) -> None:
    """Write one of the verdict's files.

    Raises:
        UserError: the folder cannot be written to, or its object store refuses.
    """
    try:
        path.put(text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})", mend="make the job's folder writable") from None


def _as_dict(report: Report) -> dict[str, Any]:
    job, seen = report.job, report.sample.seen if report.sample else None
    worst = sorted((row for row in report.compared if row.comparison), key=_badness)[:_WORST]
    accounting = asdict(report.accounting)
    for name in ("readable", "at_fault", "strays"):
        del accounting[name]
    return {
        "job": job.id,
        "engine": job.engine,
        "fingerprint": job.fingerprint,
        "dtype": job.form.dtype,
        "dimensions": job.form.dimensions,
        "columns": job.columns,
        "overlap": job.overlap,
        "dataset": job.dataset,
        "revision": job.revision,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": bool(report),
        "sample": report.asked,
        "seed": report.seed,
        "compared": len(report.compared),
        "checks": [asdict(check) for check in report.checks],
        "at_fault": list(report.at_fault),
        "accounting": accounting,
        "rows": job.rows,
        "truncated": seen.truncated if seen else None,
        "without_text": seen.without_text if seen else None,
        "strata": [{"tokens": name, "rows": len(rows), **asdict(total(rows))} for name, rows in report.strata.items()],
        "total": {"rows": len(report.compared), **asdict(total(report.compared))},
        "tolerance": {name: asdict(TOLERANCES[name]) for name in sorted({row.precision for row in report.compared})},
        "worst_rows": [
            {"row_id": row.row.row_id, "cosine": one.min_cosine, "n_tokens": row.row.n_tokens}
            for row in worst
            if (one := row.comparison)
        ],
        "failing_rows": [
            {"row_id": row.row.row_id, "problem": row.problem, "text": row.excerpt} for row in report.failing[:_NAMED]
        ],
    }


def _badness(row: Compared) -> float:
    """The lowest cosine; below all where a vector is not finite."""
    cosine = row.comparison.min_cosine if row.comparison else math.nan
    return -2.0 if math.isnan(cosine) else cosine


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(report: Report, console: Console) -> None:
    """Print the verdict: figures by length, checks, failing rows, and one line that says it all."""
    if report.compared:
        console.print(_strata_table(report))
    console.print(_check_table(report))
    for row in report.failing[:_NAMED]:
        console.print(Text(f"row {row.row.row_id}: {row.problem}: {row.excerpt}"), soft_wrap=True)
    if len(report.failing) > _NAMED:
        console.print(f"and {count(len(report.failing) - _NAMED, 'more row')}", highlight=False)
    console.print(Text(verdict(report), style="green" if report else "red"), soft_wrap=True)


def _strata_table(report: Report) -> Table:
    title = f"{count(len(report.compared), 'row')} of {report.job.id} against PyTorch FP32"
    table = Table(title=title, title_justify="left")
    # Broken by hand: rich breaks words in a terminal of 80 columns.
    for name in ("tokens", "rows", "MSE", "relative\nMSE", "lowest\ncosine", "largest\ndifference", "non-\nfinite"):
        table.add_column(name, justify="right")
    for name, rows in report.strata.items():
        table.add_row(name, f"{len(rows):,}", *_figures(total(rows)))
    table.add_section()
    table.add_row("all", f"{len(report.compared):,}", *_figures(total(report.compared)))
    return table


def _figures(figures: Comparison) -> list[str]:
    return [
        f"{figures.mse:.1e}",
        f"{figures.relative_mse:.1e}",
        f"{figures.min_cosine:.7f}",
        f"{figures.max_difference:.1e}",
        f"{figures.non_finite:,}",
    ]


def _check_table(report: Report) -> Table:
    table = Table("check", "result", "", title="Checks", title_justify="left")
    for check in report.checks:
        verdict = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(check.name, verdict, Text(check.detail))
    return table


def verdict(report: Report) -> str:
    """One line that says it all; where a check failed, a line for each step that mends it follows."""
    job = report.job
    if report:
        seen = report.sample.seen if report.sample else None
        detail = f" ({seen.truncated:,} truncated, {seen.without_text:,} without a text)" if seen else ""
        return (
            f"Verified: {count(job.rows, 'row')} accounted for{detail}, {len(report.compared):,} recomputed and within "
            f"tolerance: {job.folder}"
        )
    failed = ", ".join(check.name for check in report.checks if not check.passed)
    return f"Not verified ({failed}): {job.folder}\n{_mend(report)}"


def _mend(report: Report) -> str:
    job, steps = report.job, []
    retry = shlex.join(["python", "-m", "producer", "retry", str(job.folder)])
    if files := len(report.at_fault):
        named = ", ".join(report.at_fault[:_NAMED]) + (", …" if files > _NAMED else "")
        steps.append(f"Set {count(files, 'file')} at fault aside and make missing shards again: {retry}")
        steps.append(f"At fault: {named}" + (" (all of them: verify.json, at_fault)" if files > _NAMED else ""))
    elif report.accounting.missing_shards:
        steps.append(f"Make the missing shards: {retry}")
    if any(check.name == "source" and not check.passed for check in report.checks):
        steps.append(
            "Two readers read the dataset differently: look at the rows named above; the vectors may be of another text"
        )
    return "\n".join(steps)
