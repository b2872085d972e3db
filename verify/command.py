"""``python -m verify``: the command."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from contract.engines import engine_of
from contract.entry import importing
from contract.errors import UserError
from contract.job import Job
from contract.jobs import find_job
from contract.store import Location
from contract.verdict import FILE, Verdict
from verify.accounting import Accounting, account
from verify.comparison import compare_sample
from verify.sample import draw
from verify.stats import VectorRules
from verify.terminal import Shown, Terminal
from verify.verdict import Evidence, Request, judge, judge_without_sample

if TYPE_CHECKING:
    from producer.texts import TextDataset
    from verify.reference import Reference

ALL = sys.maxsize
"""A sample of all rows."""

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
            return ALL
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
    if not run(find_job(job_folder), sample, seed, Terminal()).passed:
        sys.exit(1)


def run(job: Job, sample: int, seed: int, shown: Shown) -> Verdict:
    """Verify a job, and write the verdict into its folder.

    Args:
        job: the job.
        sample: rows to compute again; ``ALL`` for all.
        seed: of the sample.
        shown: takes what is done, and the verdict.

    Raises:
        UserError: the job's dataset, engine or model cannot be used.
    """
    request = Request(job, job.rows if sample == ALL else sample, seed)
    with shown.doing("counting rows"):
        accounting = account(job)
    with importing():
        from producer.dataset import dataset_of

    try:
        spec, texts = engine_of(job), dataset_of(job)
        # PyTorch takes seconds to import: --help, and a job or a dataset that is not there, do without it.
        with shown.doing("opening the model"):
            with importing():
                from verify.reference import open_model
            reference = open_model(job, spec)
        verdict, evidence = verify(request, accounting, texts, reference, shown)
    except UserError as refusal:
        # Without a reference there is no verdict, unless the accounting alone gives one.
        if not accounting.passed:
            _publish(job, judge_without_sample(request, accounting, refusal.message), None, shown)
        raise
    _publish(job, verdict, evidence, shown)
    return verdict


def verify(
    request: Request, accounting: Accounting, texts: "TextDataset", reference: "Reference", shown: Shown
) -> tuple[Verdict, Evidence]:
    """Draw a sample, compute it again and judge.

    Args:
        request: the job, and the sample's size and seed.
        accounting: the job's row accounting.
        texts: its dataset, as the producer reads it.
        reference: its model.
        shown: takes what is done.

    Raises:
        UserError: the dataset cannot be read a second time.
    """
    from verify.readings import read_twice

    job, spec = request.job, reference.spec
    rules = VectorRules.of(job, spec)
    with shown.doing("reading every vector"):
        sample = draw(job, accounting.readable, rules, rows=request.rows, seed=request.seed)
    with shown.doing("reading the dataset a second time"):
        readings = read_twice(job, texts, [row.row_id for row in (*sample.rows, *sample.without_text)])
    without_text = {row.row_id: readings.texts.get(row.row_id) for row in sample.without_text}
    tokenless = reference.without_tokens(without_text)
    sample = replace(sample, without_text=tuple(row for row in sample.without_text if row.row_id not in tokenless))
    with shown.comparing(len(sample.rows)) as step:
        compared = compare_sample(sample.rows, readings, reference, rules, step)
    verdict = judge(request, accounting, rules, sample, readings, compared)
    max_length = None if rules.windowed else rules.max_length
    return verdict, Evidence(spec, sample, compared.rows, max_length)


def _publish(job: Job, verdict: Verdict, evidence: Evidence | None, shown: Shown) -> None:
    from verify.page import page  # here, because matplotlib takes a second to import

    report = job.folder / "report.html"
    shown.judged(verdict, job.folder)
    _write(job.folder / FILE, verdict.to_json())
    _write(report, page(verdict, job, evidence))
    shown.reported(report)


def _write(file: Location, text: str) -> None:
    try:
        file.put(text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror})", hint="make the job's folder writable") from None
