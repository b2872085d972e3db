"""``python -m producer``: embeds a dataset. Its other commands are in the ``…_command`` files beside this one."""

import logging
from pathlib import Path
from typing import Literal, get_args

import click
from rich.logging import RichHandler

from contract.engines import load_engine
from contract.errors import UserError
from contract.form import Dtype
from contract.job import PRIORITIES
from contract.settings import settings
from contract.store import Location
from contract.words import count
from producer.batches import Work
from producer.calibrate import CALIBRATION_ROWS
from producer.console import STDERR, print_line
from producer.dataset import open_dataset
from producer.estimate import Plan, estimate, show_estimate
from producer.jobs_commands import cancel, clean, list_jobs
from producer.options import Folder, columns_of, in_utf8, job_name, separator_of, template_of
from producer.push_command import push
from producer.request import OVERLAP, JobRequest, earlier_jobs, resolve, with_stand_ins
from producer.retry_command import retry
from producer.running import NEXT, begin, job_for, run
from producer.sizing import LEAST_BATCHES, PER_TOKEN_ROWS, TOKENS
from producer.status_command import status
from producer.survey import survey
from producer.texts import CsvOptions, DatasetSource
from producer.tokenizer import open_tokenizer
from producer.tokenizing import get_ready

_EPILOG = """\b
Examples:
  python -m producer --dataset imdb
  python -m producer --dataset reviews.csv --text-column body
  python -m producer --dataset 'data/*.csv.gz' --text '{title}\\n{body}' --separator ';'
  python -m producer --dataset ./saved --split test --limit 10000 --prefix "passage: "
  python -m producer --dataset HuggingFaceFW/fineweb --config sample-10BT --stream
  python -m producer --dataset imdb --output s3://bucket/embeddings
  python -m producer --dataset imdb --dtype int8 --keep-columns text,label --long-texts window
  python -m producer --dataset reviews.csv --name reviews-minilm
  python -m producer --dataset reviews.csv --dry-run --dollars-per-hour 1.20
  python -m producer status --watch
  python -m producer list
  python -m producer cancel reviews-minilm
  python -m producer retry
  python -m producer push --to user/name

Running the same command again goes on where the job was: what has its shard is not computed again. While it runs, on
this machine or another, the two divide the job.
EMBEDMILL_REDIS_URL says where Redis is, HF_TOKEN who you are on the Hub.
Next: celery -A worker worker, then python -m verify
"""


@click.group(epilog=_EPILOG, invoke_without_command=True)
@click.option(
    "--dataset",
    callback=in_utf8,
    help="Hub id; csv, tsv, json, jsonl, parquet, arrow or text file, folder or pattern, also compressed; http(s):// "
    "or s3:// address; saved folder.",
)
@click.option("--config", help="The dataset's configuration, where it has several.")
@click.option("--revision", help="The dataset's branch, tag or commit on the Hub.  [default: the latest]")
@click.option(
    "--stream",
    is_flag=True,
    help="Leave the dataset's Parquet files on the Hub and fetch rows as they are needed: for one that is larger than "
    "the disk.",
)
@click.option("--split", help="[default: train, or the only one]")
@click.option(
    "--text-column",
    callback=in_utf8,
    help="A column, or a.b in a nested one.  [default: text, or the only one of strings]",
)
@click.option(
    "--text",
    callback=in_utf8,
    metavar="TEMPLATE",
    help=r"Several columns in place of one, such as '{title}\n{body}'; {{ is a brace.",
)
@click.option("--separator", help="Between a csv file's fields: one character, or tab.  [default: the one that fits]")
@click.option(
    "--no-header", is_flag=True, help="The first row of a csv file is a row: columns are column_1, column_2, …"
)
@click.option("--limit", type=click.IntRange(min=1), help="Only this many rows from the start.")
@click.option(
    "--prefix", callback=in_utf8, help="Text put before every row, such as 'passage: '.  [default: the engine's]"
)
@click.option("--prompt", metavar="NAME", help="In place of --prefix: the model's prompt of this name, such as query.")
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option(
    "--output",
    type=Folder(path_type=Path, file_okay=False),
    help="Folder of the jobs' folders, or s3://bucket/prefix or gs://bucket/prefix.  [default: output]",
)
@click.option(
    "--name",
    callback=job_name,
    help="What you call the job: its folder is NAME-<hash>, and status, retry, cancel and verify take the name.  "
    "[default: the dataset's and the split's]",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(min=1, max=1_000_000),
    help=f"Rows of a batch, and so of a shard.  [default: about {count(TOKENS, 'token')}, by a sample of the "
    f"dataset, and at least {count(LEAST_BATCHES, 'batch', 'batches')}; {count(PER_TOKEN_ROWS, 'row')} for token-level "
    "output]",
)
@click.option(
    "--dtype",
    type=click.Choice(get_args(Dtype)),
    default="float32",
    show_default=True,
    help="What a vector's elements are stored as; int8 and binary as sentence-transformers quantizes.",
)
@click.option(
    "--ranges",
    metavar="JOB|FILE",
    help="For int8: a job, or a .npy file, that gives each element's lowest and highest value.  "
    f"[default: the first {CALIBRATION_ROWS:,} rows, which are embedded as float32 first]",
)
@click.option("--dimensions", type=click.IntRange(min=1), help="Only this many elements from a vector's start.")
@click.option("--keep-columns", metavar="NAMES", help="Columns carried into the shards, such as text,label.")
@click.option(
    "--long-texts",
    type=click.Choice(["truncate", "window"]),
    default="truncate",
    show_default=True,
    help="Cut off what is too long for the engine, or embed it in windows whose mean is the vector.",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    help=f"Tokens that a window shares with the next one.  [default: {OVERLAP}]",
)
@click.option(
    "--priority",
    type=click.IntRange(-PRIORITIES, PRIORITIES),
    default=0,
    show_default=True,
    help="Workers take batches of jobs of higher priority first, and of those of the same in turn. The same command "
    "with another one changes it.",
)
@click.option(
    "--reuse",
    metavar="JOBS",
    help="Earlier jobs, separated by commas: rows whose text one of them has take its vector, and only the rest is "
    "computed.",
)
@click.option("--detach", is_flag=True, help="Publish and leave; the same command without it waits for the end.")
@click.option(
    "--dry-run", is_flag=True, help="Start nothing: say how many rows, tokens, bytes and seconds it would be."
)
@click.option(
    "--dollars-per-hour", type=click.FloatRange(min=0), metavar="DOLLARS", help="For --dry-run: say what it costs."
)
@click.pass_context
def main(
    context: click.Context,
    dataset: str | None,
    config: str | None,
    revision: str | None,
    stream: bool,
    split: str | None,
    text_column: str | None,
    text: str | None,
    separator: str | None,
    no_header: bool,
    limit: int | None,
    prefix: str | None,
    prompt: str | None,
    engine: str | None,
    output: Location | None,
    name: str | None,
    batch_rows: int | None,
    dtype: Dtype,
    ranges: str | None,
    dimensions: int | None,
    keep_columns: str | None,
    long_texts: Literal["truncate", "window"],
    overlap: int | None,
    priority: int,
    reuse: str | None,
    detach: bool,
    dry_run: bool,
    dollars_per_hour: float | None,
) -> None:
    """Tokenize a dataset into batches on Redis and see to it that each becomes a Parquet shard."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=STDERR, show_time=False, show_level=False, show_path=False)],
    )
    logging.getLogger("embedmill.producer").setLevel(logging.INFO)
    if context.invoked_subcommand:
        return
    if dataset is None:
        raise click.UsageError("Missing option '--dataset'.", context)
    get_ready()
    if ranges and dtype != "int8":
        raise UserError("--ranges is for int8", hint="add --dtype int8")
    if dollars_per_hour is not None and not dry_run:
        raise UserError("--dollars-per-hour is for an estimate", hint="add --dry-run")
    request = JobRequest(
        source=DatasetSource(
            dataset,
            config=config,
            split=split,
            revision=revision,
            stream=stream,
            text=template_of(text_column, text),
            columns=columns_of(keep_columns),
            csv=CsvOptions(separator=separator_of(separator), header=not no_header),
        ),
        output=(output or settings().output).absolute(),
        engine=engine,
        name=name,
        limit=limit,
        prefix=prefix,
        prompt=prompt,
        batch_rows=batch_rows,
        dtype=dtype,
        dimensions=dimensions,
        long_texts=long_texts,
        overlap=overlap,
        priority=priority,
        reuse=earlier_jobs(reuse),
    )
    # A program that has these options too, and goes on in its own way, is the context's object.
    plan = Plan(dollars_per_hour) if dry_run else None
    (context.obj or _embed)(request, ranges, detach=detach, plan=plan)


for _command in (status, retry, list_jobs, cancel, clean, push):
    main.add_command(_command)


def _embed(request: JobRequest, ranges: str | None, *, detach: bool, plan: Plan | None) -> None:
    """Run the job that a request makes, or estimate it.

    Args:
        request: what is asked for, without the ranges of int8.
        ranges: what gives the ranges of int8; None for the dataset's first rows.
        detach: leave once everything is published.
        plan: of the dry run; None to run the job.
    """
    spec = load_engine(request.engine)
    tokenizer = open_tokenizer(spec)  # one for the whole command: it gets faster with the words that it has met
    texts = open_dataset(request.source)
    if plan:
        work = Work(resolve(with_stand_ins(request, spec), texts, spec, tokenizer), texts, tokenizer)
        calibrates = request.dtype == "int8" and ranges is None and request.earlier_ranges is None
        found = estimate(work, spec, survey(work), plan, sample=0, calibrates=calibrates)
        found.keep(work.job)
        show_estimate(found, work.job, spec)
        return
    job = job_for(request, ranges, texts, spec, tokenizer)
    if run(Work(job, texts, tokenizer), spec, begin(job), detach=detach):
        print_line(NEXT)
