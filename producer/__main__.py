"""``python -m producer``: the command."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bar,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from contract.engine import EngineSpec, load_engine
from contract.errors import UserError
from contract.job import Job, job_id
from contract.ledger import Ledger
from contract.settings import settings
from producer.batches import batch_of, open_tokenizer
from producer.dataset import TextDataset, open_dataset
from producer.publish import Progress, drive

_EPILOG = """\b
Examples:
  python -m producer --dataset imdb
  python -m producer --dataset reviews.csv --text-column body
  python -m producer --dataset ./saved --split test --limit 10000 --prefix "passage: "

Running the same command again goes on where the job was: what has its shard is not computed again.
EMBEDMILL_REDIS_URL says where Redis is. Next: celery -A worker worker, then python -m verify
"""

_POOLED_ROWS, _TOKEN_ROWS = 1024, 64
"""Rows of a batch. Token-level output is some hundred times larger a row."""


@click.command(epilog=_EPILOG)
@click.option(
    "--dataset", required=True, help="Hub id; csv, json, jsonl, parquet or text file or folder; saved folder."
)
@click.option("--config", help="The dataset's configuration, where it has several.")
@click.option("--split", help="[default: train, or the only one]")
@click.option("--text-column", help="[default: text, or the only column of strings]")
@click.option("--limit", type=click.IntRange(min=1), help="Only this many rows from the start.")
@click.option("--prefix", help="Text put before every row, such as 'passage: '.  [default: the engine's]")
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of the jobs' folders.  [default: output]"
)
@click.option(
    "--batch-rows",
    type=click.IntRange(min=1, max=1_000_000),
    help=f"Rows of a batch, and so of a shard.  [default: {_POOLED_ROWS}, for token-level output {_TOKEN_ROWS}]",
)
@click.option("--detach", is_flag=True, help="Publish and leave; the same command without it waits for the end.")
def main(
    dataset: str,
    config: str | None,
    split: str | None,
    text_column: str | None,
    limit: int | None,
    prefix: str | None,
    engine: str | None,
    output: Path | None,
    batch_rows: int | None,
    detach: bool,
) -> None:
    """Tokenize a dataset into batches on Redis and see to it that each becomes a Parquet shard."""
    console = Console(stderr=True)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_time=False, show_level=False, show_path=False)],
    )
    spec = load_engine(engine)
    texts = open_dataset(dataset, config=config, split=split, column=text_column)
    job = _job(
        texts,
        spec,
        limit=limit,
        prefix=spec.prefix if prefix is None else prefix,
        batch_rows=batch_rows or (_TOKEN_ROWS if spec.pooling == "tokens" else _POOLED_ROWS),
        output=(output or settings().output).absolute(),
    )
    tokenizer = open_tokenizer(spec)
    ledger = Ledger(patience=settings().redis_patience)
    ledger.announce(job)  # before the folder is made: without a Redis nothing is left behind
    job.save()
    console.print(
        f"{job.rows:,} rows of {job.dataset} ({job.split}, {job.column}) in {job.batches:,} batches, "
        f"engine {job.engine}: job {job.id}",
        highlight=False,
        soft_wrap=True,
    )

    def payload(batch: int) -> bytes:
        return batch_of(job, batch, texts.texts(job.row_range(batch)), tokenizer).to_bytes()

    began = time.monotonic()
    try:
        progress = _follow(drive(job, payload, ledger, detach=detach), job, console)
    except KeyboardInterrupt:
        raise UserError(
            f"interrupted; {len(job.committed())} of {job.batches} shards are there",
            mend="run the same command again: the job goes on where it was",
        ) from None
    if detach and len(progress.done) + len(progress.dead) < job.batches:
        Console().print(
            f"Published; {len(progress.done)} of {job.batches} shards are there: {job.folder}",
            highlight=False,
            soft_wrap=True,
        )
        return
    _summarize(progress, time.monotonic() - began)
    if progress.dead:
        first = min(progress.dead)
        raise UserError(
            f"{len(progress.dead)} of {job.batches} batches were given up: {_some(sorted(progress.dead))}; "
            f"batch {first}: {progress.dead[first]}",
            mend="mend the cause and run the same command again: only these are tried again",
        )


def _job(texts: TextDataset, spec: EngineSpec, *, limit: int | None, prefix: str, batch_rows: int, output: Path) -> Job:
    job = Job(
        folder=output,
        dataset=texts.dataset,
        config=texts.config,
        split=texts.split,
        column=texts.column,
        revision=texts.revision,
        limit=limit,
        prefix=prefix,
        engine=spec.name,
        fingerprint=spec.fingerprint,
        rows=min(limit or texts.rows, texts.rows),
        batch_rows=batch_rows,
    )
    return job.model_copy(update={"folder": output / job_id(job.identity, job.dataset)})


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} rows/s", style="progress.data.speed")


def _follow(steps: Iterator[Progress], job: Job, console: Console) -> Progress:
    """Run the job to its end under a progress bar; where there is no terminal, with a line now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    spoken = time.monotonic()
    with Bar(*columns, console=console, speed_estimate_period=120, disable=not console.is_terminal) as bar:
        progress = next(steps)
        task = bar.add_task("rows", total=job.rows, completed=progress.rows)
        for progress in steps:
            bar.update(task, completed=progress.rows)
            if not console.is_terminal and time.monotonic() - spoken > 10:
                spoken = time.monotonic()
                console.print(f"{progress.rows:,} of {job.rows:,} rows", highlight=False)
    return progress


def _summarize(progress: Progress, seconds: float) -> None:
    rows = progress.rows - progress.before
    table = Table("job", progress.job.id, title="Embedded", title_justify="left")
    table.add_row(
        "rows",
        f"{progress.rows:,} of {progress.job.rows:,}"
        + (f" ({progress.before:,} were there)" if progress.before else ""),
    )
    table.add_row("truncated", f"{progress.truncated:,}")
    table.add_row("without a text", f"{progress.without_text:,}")
    table.add_row("seconds", f"{seconds:,.1f}")
    table.add_row("rows/s", f"{rows / seconds:,.1f}")
    table.add_row("tokens/s", f"{progress.tokens / seconds:,.0f}")
    table.add_row("folder", str(progress.job.folder))
    console = Console()
    console.print(table)
    console.print("Next: python -m verify", highlight=False)


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")


if __name__ == "__main__":
    main(prog_name="python -m producer")
