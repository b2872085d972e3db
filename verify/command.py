"""``python -m verify``: the command."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contract.engine import EngineSpec
from contract.entry import importing
from contract.errors import UserError
from contract.job import Job
from contract.jobs import engine_of, find_job
from verify.accounting import Accounting, account
from verify.checks import Check, accounting_checks, sample_checks, source_check, whole_checks
from verify.compared import Compared, compare_row, read_found
from verify.findings import NONE, Findings
from verify.report import Report, as_json, show, write
from verify.sample import Row, Vectors, draw

if TYPE_CHECKING:
    from producer.texts import TextDataset
    from verify.readings import Readings
    from verify.reference import Reference

_AT_ONCE = 4096
"""Sampled rows whose vectors are in memory at the same time."""

_EPILOG = """\b
Examples:
  python -m verify
  python -m verify output/imdb-train-0123456789
  python -m verify imdb-train-0123456789 --sample 2000 --seed 7
  python -m verify --sample all

The verdict is also written into the job's folder: verify.json for programs, and report.html with pictures for people,
one file that needs no network. The exit status is 0 if every check passes, else 1.
A job's folder is looked for as given, then below output/ (EMBEDMILL_OUTPUT).
"""


class SampleSize(click.ParamType[int]):
    """A number of rows, or ``all``."""

    name = "ROWS|all"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return sys.maxsize
        if not str(value).isdecimal() or int(str(value)) < 1:
            self.fail(f"{value!r}: expected a number of rows from 1 up, or all", param, ctx)
        return int(str(value))


@click.command(epilog=_EPILOG)
@click.argument("job_folder", required=False)
@click.option(
    "--sample", type=SampleSize(), default=256, show_default=True, help="Rows of all lengths to compute again, or all."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another sample.")
def main(job_folder: str | None, sample: int, seed: int) -> None:
    """Account for every row of a job, and compare a sample with sentence-transformers in FP32.

    JOB_FOLDER is a job's folder or id; without it, the latest job is verified.

    Every row of the dataset must be in its shard once, as its worker wrote it. Then rows of all lengths are taken from
    the dataset again, by another reader than the producer's, computed by sentence-transformers' encode() and compared
    with what the shards hold.
    """
    job, console = find_job(job_folder), Console(stderr=True, markup=False)
    with console.status("counting rows …"):
        accounting = account(job)
    # Here, because PyTorch takes seconds to import: --help and a job that is not there need not wait for it.
    with importing():
        from producer.dataset import dataset_of
        from verify.reference import open_model

    try:
        spec, texts = engine_of(job), dataset_of(job)
        with console.status("opening the model …"):
            reference = open_model(job, spec)
        report = verify(job, spec, texts, accounting, reference, rows=sample, seed=seed, console=console)
    except UserError as refusal:
        # Without a reference there is no verdict, unless the accounting alone gives one.
        if not accounting:
            checks = [*accounting_checks(accounting, NONE), Check("reference", False, refusal.message)]
            _publish(Report(job, sample, seed, checks, accounting, None, (), _files(job, accounting.at_fault), None))
        raise
    _publish(report)
    if not report:
        sys.exit(1)


def verify(
    job: Job,
    spec: EngineSpec,
    texts: "TextDataset",
    accounting: Accounting,
    reference: "Reference",
    *,
    rows: int,
    seed: int,
    console: Console,
) -> Report:
    """Draw a sample, compute it again and judge.

    Args:
        job: the job.
        spec: its engine.
        texts: its dataset, as the producer reads it.
        accounting: its row accounting.
        reference: its model.
        rows: how many rows to sample.
        seed: of the sample.
        console: takes the progress bar, if it is a terminal.

    Raises:
        UserError: the dataset cannot be read a second time.
    """
    from verify.readings import read_twice

    expected = Vectors(job.form.dimensions or spec.hidden, spec.max_length, spec.unit_norm)
    with console.status("reading every vector …"):
        sample = draw(job, accounting.readable, expected, rows=rows, seed=seed)
    with console.status("reading the dataset a second time …"):
        readings = read_twice(job, texts, [row.row_id for row in (*sample.rows, *sample.without_text)])
    unreadable: dict[int, str] = {}
    steps = _compare(job, spec, reference, sample.rows, readings, unreadable)
    compared = sorted(_progress(steps, len(sample.rows), console), key=lambda one: one.row.row_id)
    damaged = Findings.of([f"{job.shard(batch).name}: {why}" for batch, why in unreadable.items()])
    with_text = [row for row in sample.without_text if readings.texts.get(row.row_id) is not None]
    checks = [
        *accounting_checks(accounting, sample.seen.unreadable + damaged),
        source_check(readings, job),
        *whole_checks(sample, expected, Findings.of([row.row_id for row in with_text])),
        *sample_checks(compared, job),
    ]
    wrong = {row.batch for row in with_text} | {one.row.batch for one in compared if one.problem}
    at_fault = {*accounting.at_fault, *sample.at_fault, *unreadable, *wrong}
    files = sorted({*accounting.strays, *_files(job, at_fault)})
    return Report(
        job, len(sample.rows) if rows == sys.maxsize else rows, seed, checks, accounting, sample, compared, files, spec
    )


def _compare(
    job: Job,
    spec: EngineSpec,
    reference: "Reference",
    rows: Sequence[Row],
    readings: "Readings",
    unreadable: dict[int, str],
) -> Iterator[Compared]:
    """Compare rows, a few thousand at a time: no more of their vectors are in memory.

    Args:
        unreadable: takes the batches whose shards could not be read, with the reason.
    """
    in_order = sorted((row for row in rows if row.row_id in readings.texts), key=lambda row: (row.batch, row.place))
    for start in range(0, len(in_order), _AT_ONCE):
        found, damaged = read_found(job, in_order[start : start + _AT_ONCE])
        unreadable |= damaged
        for one in reference.recompute(found, readings.texts):
            complete = replace(one, kept=readings.kept[one.row.row_id])
            yield compare_row(found[one.row], complete, spec.max_length, job.form, windowed=job.overlap is not None)


def _files(job: Job, batches: Iterable[int]) -> list[str]:
    return sorted(job.shard(batch).name for batch in batches)


def _progress(steps: Iterable[Compared], total: int, console: Console) -> Iterator[Compared]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(steps, total=total, description="encode() in FP32")


def _publish(report: Report) -> None:
    from verify.page import page  # here, because matplotlib takes a second to import

    show(report, Console(markup=False))
    write(report.job.folder / "verify.json", as_json(report))
    write(report.job.folder / "report.html", page(report))
    Console().print(f"Report: {report.job.folder / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
