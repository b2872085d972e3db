"""``python -m producer``: its commands."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.logging import RichHandler

from contract.engine import EngineSpec, load_engine
from contract.errors import Interrupted, UserError
from contract.form import Dtype, VectorForm
from contract.job import Job, engine_of, find_job
from contract.ledger import Ledger
from contract.settings import settings
from contract.store import ObjectPath
from contract.verdict import at_fault
from contract.words import count
from producer.batches import open_tokenizer
from producer.calibrate import Ranges, ranges_from, ranges_of
from producer.console import follow, list_table, status_table, summary
from producer.dataset import TextDataset, dataset_of, open_dataset
from producer.jobs import cleaned, find_to_cancel, listed
from producer.options import (
    OVERLAP,
    Folder,
    columns_of,
    dimensions_of,
    in_form,
    in_utf8,
    job_name,
    job_of,
    overlap_of,
    prefix_of,
    separator_of,
)
from producer.publish import Progress, drive
from producer.push import push as push_job, ready
from producer.reasons import reason, workers_line
from producer.status import status_of, view_of
from producer.tokenizing import Work, get_ready, processes_for, tokenizing

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
  python -m producer status --watch
  python -m producer list
  python -m producer cancel reviews-minilm
  python -m producer retry
  python -m producer push --to user/name

Running the same command again goes on where the job was: what has its shard is not computed again.
EMBEDMILL_REDIS_URL says where Redis is, HF_TOKEN who you are on the Hub.
Next: celery -A worker worker, then python -m verify
"""

_CALIBRATION_ROWS = 4096
"""Rows whose vectors give the ranges of int8."""

_POOLED_ROWS, _TOKEN_ROWS = 1024, 64
"""Rows of a batch. Token-level output is some hundred times larger a row."""


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
    help=f"Rows of a batch, and so of a shard.  [default: {_POOLED_ROWS}, for token-level output {_TOKEN_ROWS}]",
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
    f"[default: the first {_CALIBRATION_ROWS:,} rows, which are embedded as float32 first]",
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
@click.option("--detach", is_flag=True, help="Publish and leave; the same command without it waits for the end.")
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
    engine: str | None,
    output: Path | ObjectPath | None,
    name: str | None,
    batch_rows: int | None,
    dtype: Dtype,
    ranges: str | None,
    dimensions: int | None,
    keep_columns: str | None,
    long_texts: str,
    overlap: int | None,
    detach: bool,
) -> None:
    """Tokenize a dataset into batches on Redis and see to it that each becomes a Parquet shard."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_STDERR, show_time=False, show_level=False, show_path=False)],
    )
    logging.getLogger("embedmill.producer").setLevel(logging.INFO)
    if context.invoked_subcommand:
        return
    if dataset is None:
        raise click.UsageError("Missing option '--dataset'.", context)
    get_ready()
    spec = load_engine(engine)
    if ranges and dtype != "int8":
        raise UserError("--ranges is for int8", mend="add --dtype int8")
    texts = open_dataset(
        dataset,
        config=config,
        split=split,
        column=text_column,
        text=text,
        columns=columns_of(keep_columns),
        revision=revision,
        stream=stream,
        separator=separator_of(separator),
        header=not no_header,
    )
    job = job_of(
        texts,
        spec,
        (output or settings().output).absolute(),
        name=name,
        stream=stream,
        limit=limit,
        prefix=prefix_of(spec, prefix),
        batch_rows=batch_rows or (_TOKEN_ROWS if spec.per_token else _POOLED_ROWS),
        form=VectorForm(dimensions=dimensions_of(spec, dimensions)),
        overlap=overlap_of(spec, long_texts, overlap),
    )
    ledger = _ledger()
    if dtype == "int8":
        elements = job.form.dimensions or spec.hidden
        found = ranges_from(ranges, elements) if ranges else _calibrate(job, texts, spec, ledger)
        job = in_form(job, VectorForm(dtype=dtype, dimensions=job.form.dimensions, ranges=found))
    elif dtype != "float32":
        job = in_form(job, VectorForm(dtype=dtype, dimensions=job.form.dimensions))
    _begin(job, ledger)
    if _run(job, texts, spec, ledger, detach=detach):
        _say_next()


def _calibrate(job: Job, texts: TextDataset, spec: EngineSpec, ledger: Ledger) -> Ranges:
    """The ranges of a job's first rows, by a job of their own that is like it but for the form of its vectors."""
    few = min(job.rows, _CALIBRATION_ROWS)
    _STDERR.print(f"The ranges for int8 come from the first {count(few, 'row')}, as float32:", highlight=False)
    sample = job_of(
        replace(texts, columns=()),
        spec,
        job.folder.parent,
        name=None,
        stream=job.stream,
        limit=few,
        prefix=job.prefix,
        batch_rows=job.batch_rows,
        form=job.form,
        overlap=job.overlap,
    )
    _begin(sample, ledger)
    _run(sample, replace(texts, columns=()), spec, ledger, detach=False)
    return ranges_of(sample)


def _ledger() -> Ledger:
    """Redis, once it is known that waiting for it makes sense.

    Raises:
        UserError: it refuses this user, or is none that embedmill can use.
    """
    ledger = Ledger(patience=settings().redis_patience)
    ledger.knock()
    return ledger


def _begin(job: Job, ledger: Ledger) -> None:
    ledger.queued(job.key)  # before the folder is made: without a Redis nothing is left behind
    job.save()
    ledger.announce(job)  # after it: workers look into the folder
    _STDERR.print(
        f"{count(job.rows, 'row')} of {job.dataset} ({job.split}, {job.parts.shown}) in "
        f"{count(job.batches, 'batch', 'batches')}, engine {job.engine}: job {job.id}",
        highlight=False,
        soft_wrap=True,
    )


def _say_next() -> None:
    _STDOUT.print("Next: python -m verify", highlight=False)


@main.command()
@click.argument("job", required=False)
@click.option("--watch", is_flag=True, help="Look again every two seconds, until the job is at its end.")
def status(job: str | None, watch: bool) -> None:
    """Show how far JOB is: its folder or its id; without it, the latest job."""
    found, ledger = find_job(job), _ledger()
    now = status_of(found, ledger)
    with Live(status_table(now), console=Console(markup=False), auto_refresh=False) as live:
        while watch and now.done + len(now.dead) < found.batches:
            time.sleep(2)
            now = status_of(found, ledger)
            live.update(status_table(now), refresh=True)


@main.command()
@click.argument("job", required=False)
def retry(job: str | None) -> None:
    """Make again what is wrong with JOB: its folder or its id; without it, the latest job.

    Batches that were given up are tried again. Shards that python -m verify found at fault, and files that do not
    belong in data/, are moved to the job's folder aside/; nothing is deleted. Then every missing shard is made.
    """
    found = find_job(job)
    spec, texts = engine_of(found), dataset_of(found)
    names = at_fault(found)
    ledger = _ledger()
    found.save()  # a copy of its folder may lack the empty ones
    ledger.announce(found)
    ledger.revive(found)
    for name in names:
        _STDERR.print(f"Set aside: {found.set_aside(name)}", highlight=False, soft_wrap=True)
    if _run(found, texts, spec, ledger, detach=False):
        _say_next()


@main.command("list")
def list_jobs() -> None:
    """List the jobs in the output folder (EMBEDMILL_OUTPUT), and those that only Redis knows."""
    found = listed(_ledger())
    if not found:
        _STDOUT.print(f"No jobs in {settings().output.absolute()}, and none on Redis.", highlight=False, soft_wrap=True)
        return
    _STDOUT.print(list_table(found))


@main.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop JOB, a folder, an id or a --name: its batches leave Redis, its shards stay.

    Workers finish the batches that they have in hand. A producer of it that runs ends. Running the same producer
    command again goes on with the job.
    """
    ledger = _ledger()
    found = find_to_cancel(job, ledger)
    out = ledger.cancel(found)
    _STDOUT.print(
        f"Cancelled {found.id}: {count(out, 'batch', 'batches')} taken back; shards stay in {found.folder}",
        highlight=False,
        soft_wrap=True,
    )


@main.command()
def clean() -> None:
    """Remove what finished and cancelled jobs left on Redis and in their folders' staging/. No shard is touched."""
    found = cleaned(_ledger())
    for one in found:
        _STDOUT.print(f"Cleaned: {one.id}", highlight=False, soft_wrap=True)
    _STDOUT.print(f"{count(len(found), 'job')} cleaned", highlight=False)


@main.command()
@click.argument("job", required=False)
@click.option("--to", required=True, metavar="USER/NAME", help="The dataset's repository on the Hub; made if need be.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--replace", is_flag=True, help="Put the job in the place of what the repository's data/ holds.")
@click.option("--unverified", is_flag=True, help="Push a job that is not verified; its card says so.")
def push(job: str | None, to: str, private: bool, replace: bool, unverified: bool) -> None:
    """Publish JOB on the Hub, shards and a card, in one commit: its folder or its id; without it, the latest job.

    HF_TOKEN, or hf auth login, says who you are.
    """
    found = ready(find_job(job), unverified=unverified)
    size = decimal(found.job.bytes())
    _STDERR.print(f"{count(found.job.batches, 'shard')}, {size}, to {to}", highlight=False, soft_wrap=True)
    if found.doubt:
        _STDERR.print(f"Not verified: {found.doubt}", highlight=False, soft_wrap=True)
    address = push_job(found, to, private=private, replace=replace)
    out = Console(markup=False)
    out.print(f"Pushed: {address}", highlight=False, soft_wrap=True)
    out.print(f'In Python: datasets.load_dataset("{to}")', highlight=False, soft_wrap=True)


def _run(job: Job, texts: TextDataset, spec: EngineSpec, ledger: Ledger, *, detach: bool) -> bool:
    """Drive a job, and say what came of it; returns whether it is complete."""
    work = Work(job, texts, open_tokenizer(spec))
    began = time.monotonic()
    try:
        with tokenizing(work, processes_for(job.batches - len(job.committed()))) as making:
            progress = follow(drive(job, making, ledger, detach=detach), _STDERR)
    except KeyboardInterrupt:
        raise _interrupted(job) from None
    if detach and len(progress.done) + len(progress.dead) < job.batches:
        _say_detached(progress, ledger)
        return False
    _STDOUT.print(summary(progress, spec, time.monotonic() - began))
    if progress.dead:
        first = min(progress.dead)
        numbers = ", ".join(map(str, sorted(progress.dead)[:10])) + (" …" if len(progress.dead) > 10 else "")
        raise UserError(
            f"{len(progress.dead)} of {count(job.batches, 'batch', 'batches')} given up: {numbers}; "
            f"batch {first}: {progress.dead[first].error}",
            mend=f"mend the cause, then: python -m producer retry {job.folder}",
        )
    return True


def _say_detached(progress: Progress, ledger: Ledger) -> None:
    """What was published, and who takes it."""
    job = progress.job
    there = f"{len(progress.done)} of {count(job.batches, 'shard')} there"
    _STDOUT.print(f"Published; {there}: {job.folder}", highlight=False, soft_wrap=True)
    view = view_of(job, ledger, frozenset(ledger.outstanding(job)))
    alive = view.alive()
    says = workers_line(view) if alive and len(view.refusals()) < len({one.command for one in alive}) else ""
    says = says or reason(view).says
    _STDOUT.print(f"{says[0].upper()}{says[1:]}.", highlight=False, soft_wrap=True)
    _STDOUT.print(f"Next: python -m producer status --watch {job.id}", highlight=False, soft_wrap=True)


def _interrupted(job: Job) -> Interrupted:
    return Interrupted(
        f"interrupted; {len(job.committed())} of {count(job.batches, 'shard')} there, and workers compute what is "
        "published",
        mend=f"run the same command again to go on; python -m producer cancel {job.id} to stop the workers too",
    )


_STDOUT, _STDERR = Console(markup=False), Console(stderr=True, markup=False)
