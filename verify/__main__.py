"""``python -m verify``: the command."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contract.errors import UserError
from contract.job import Job, engine_of, find_job
from verify.accounting import Accounting, account
from verify.checks import Check, accounting_checks, sample_checks, whole_checks
from verify.compared import Recomputed, compare_row, read_found
from verify.findings import NONE, Findings
from verify.report import Report, as_json, show, write
from verify.sample import draw

if TYPE_CHECKING:
    from verify.reference import Reference

_EPILOG = """\b
Examples:
  python -m verify
  python -m verify output/imdb-train-0123456789
  python -m verify imdb-train-0123456789 --sample 2000 --seed 7

The verdict is also written into the job's folder: verify.json for programs, and report.html with pictures for people,
one file that needs no network. The exit status is 0 if every check passes, else 1.
A job's folder is looked for as given, then below output/ (EMBEDMILL_OUTPUT).
"""


@click.command(epilog=_EPILOG)
@click.argument("job_folder", required=False)
@click.option(
    "--sample", type=click.IntRange(min=1), default=256, show_default=True, help="Rows of all lengths to compute again."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another sample.")
def main(job_folder: str | None, sample: int, seed: int) -> None:
    """Account for every row of a job, and compare a sample with PyTorch in FP32.

    JOB_FOLDER is a job's folder or id; without it, the latest job is verified.

    Every row of the dataset must be in its shard once. Then rows of all lengths are taken from the dataset again,
    tokenized, computed by PyTorch and compared with what the shards hold.
    """
    job, console = find_job(job_folder), Console(stderr=True, markup=False)
    with console.status("counting rows …"):
        accounting = account(job)
    # Here, because PyTorch takes seconds to import: --help and a job that is not there need not wait for it.
    from producer.dataset import dataset_of
    from verify.reference import open_reference

    try:
        spec, texts = engine_of(job), dataset_of(job)
        with console.status("opening the model …"):
            reference = open_reference(job, spec, texts)
    except UserError as refusal:
        # Without a reference there is no verdict, unless the accounting alone gives one.
        if not accounting:
            checks = [*accounting_checks(accounting, NONE), Check("reference", False, refusal.message)]
            _publish(Report(job, sample, seed, checks, accounting, None, (), _names(accounting.suspects), None))
        raise
    report = verify(job, accounting, reference, rows=sample, seed=seed, console=console)
    _publish(report)
    if not report:
        sys.exit(1)


def verify(
    job: Job, accounting: Accounting, reference: "Reference", *, rows: int, seed: int, console: Console
) -> Report:
    """Draw a sample, compute it again and judge.

    Args:
        job: the job.
        accounting: its row accounting.
        reference: its dataset and model.
        rows: how many rows to sample.
        seed: of the sample.
        console: takes the progress bar, if it is a terminal.
    """
    max_length = reference.spec.max_length
    width = job.form.width(job.form.dimensions or reference.spec.hidden)
    with console.status("reading every vector …"):
        sample = draw(job, accounting.readable, max_length=max_length, width=width, rows=rows, seed=seed)
    found, unreadable = read_found(job, sample.rows)
    recomputed = _progress(reference.recompute(found), len(found), console)
    windowed = job.overlap is not None
    compared = [compare_row(found[one.row], one, max_length, job.form, windowed=windowed) for one in recomputed]
    compared.sort(key=lambda one: one.row.row_id)
    damaged = Findings.of([f"{job.shard(batch).name}: {why}" for batch, why in unreadable.items()])
    taken = reference.take(sample.without_text)
    texts = [row for row in sample.without_text if taken[row.row_id].text is not None]
    checks = [
        *accounting_checks(accounting, sample.seen.unreadable + damaged),
        *whole_checks(sample, Findings.of([row.row_id for row in texts])),
        *sample_checks(compared, job),
    ]
    at_fault = {job.shard(batch).name for batch in unreadable} | {
        job.shard(row.batch).name for row in [*texts, *(one.row for one in compared if one.problem)]
    }
    spoilt = sorted({*_names(accounting.suspects), *_names(sample.seen.suspects), *at_fault})
    return Report(job, rows, seed, checks, accounting, sample, compared, spoilt, reference.spec)


def _names(findings: Findings) -> list[str]:
    return [str(name) for name in findings.first]


def _progress(steps: Iterable[Recomputed], total: int, console: Console) -> Iterator[Recomputed]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(steps, total=total, description="PyTorch FP32")


def _publish(report: Report) -> None:
    from verify.page import page  # here, because matplotlib takes a second to import

    show(report, Console(markup=False))
    write(report.job.folder / "verify.json", as_json(report))
    write(report.job.folder / "report.html", page(report))
    Console().print(f"Report: {report.job.folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main(prog_name="python -m verify")
