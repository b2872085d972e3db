"""``python -m verify``: the command."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contract.entry import importing
from contract.errors import UserError
from contract.job import Job
from contract.jobs import engine_of, find_job
from contract.store import Location
from contract.verdict import FILE, Verdict
from verify.accounting import Accounting, account
from verify.comparison import compare_sample
from verify.sample import draw
from verify.stats import VectorRules
from verify.terminal import show
from verify.verdict import Evidence, Request, judge, judge_without_sample

if TYPE_CHECKING:
    from producer.texts import TextDataset
    from verify.reference import Reference

_ALL = sys.maxsize

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
            return _ALL
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
    request = Request(job, job.rows if sample == _ALL else sample, seed)
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
        verdict, evidence = verify(request, accounting, texts, reference, console)
    except UserError as refusal:
        # Without a reference there is no verdict, unless the accounting alone gives one.
        if not accounting.passed:
            _publish(job, judge_without_sample(request, accounting, refusal.message), None)
        raise
    _publish(job, verdict, evidence)
    if not verdict.passed:
        sys.exit(1)


def verify(
    request: Request, accounting: Accounting, texts: "TextDataset", reference: "Reference", console: Console
) -> tuple[Verdict, Evidence]:
    """Draw a sample, compute it again and judge.

    Args:
        request: the job, and the sample's size and seed.
        accounting: the job's row accounting.
        texts: its dataset, as the producer reads it.
        reference: its model.
        console: takes the progress bar, if it is a terminal.

    Raises:
        UserError: the dataset cannot be read a second time.
    """
    from verify.readings import read_twice

    job, spec = request.job, reference.spec
    rules = VectorRules.of(job, spec)
    with console.status("reading every vector …"):
        sample = draw(job, accounting.readable, rules, rows=request.rows, seed=request.seed)
    with console.status("reading the dataset a second time …"):
        readings = read_twice(job, texts, [row.row_id for row in (*sample.rows, *sample.without_text)])
    without_text = {row.row_id: readings.texts.get(row.row_id) for row in sample.without_text}
    tokenless = reference.without_tokens(without_text)
    sample = replace(sample, without_text=tuple(row for row in sample.without_text if row.row_id not in tokenless))
    with _progress(len(sample.rows), console) as step:
        compared = compare_sample(sample.rows, readings, reference, rules, step)
    verdict = judge(request, accounting, rules, sample, readings, compared)
    max_length = None if rules.windowed else rules.max_length
    return verdict, Evidence(spec, sample, compared.rows, max_length)


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Callable[[], None]]:
    """A progress bar, and a function that moves it on by one row."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield functools.partial(bar.advance, bar.add_task("encode() in FP32", total=total))


def _publish(job: Job, verdict: Verdict, evidence: Evidence | None) -> None:
    from verify.page import page  # here, because matplotlib takes a second to import

    report = job.folder / "report.html"
    show(verdict, job.folder, Console(markup=False))
    _write(job.folder / FILE, verdict.to_json())
    _write(report, page(verdict, job, evidence))
    Console().print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)


def _write(file: Location, text: str) -> None:
    try:
        file.put(text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror})", hint="make the job's folder writable") from None
