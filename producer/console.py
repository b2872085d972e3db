"""What a person sees of a job: a progress bar, a summary, a status."""

import time
from collections.abc import Iterable
from datetime import timedelta

from rich.console import Console
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

from contract.engine import EngineSpec
from producer.publish import Progress
from producer.status import Status

_SPEAK_EVERY = 10.0
"""Seconds between two lines where there is no terminal for a bar."""


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} rows/s", style="progress.data.speed")


def follow(steps: Iterable[Progress], console: Console) -> Progress:
    """Run a job to its end under a progress bar; where there is no terminal, with a line now and then.

    Args:
        steps: at least one; each is the same object.
        console: takes the bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    spoken = began = time.monotonic()
    hinted = False
    with Bar(*columns, console=console, speed_estimate_period=120, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        for progress in steps:
            bar.update(task, completed=progress.rows, total=progress.job.rows)
            if progress.idle and not hinted and time.monotonic() - began > _SPEAK_EVERY:
                console.print("No worker takes the batches. In another terminal: celery -A worker worker")
                hinted = True
            if not console.is_terminal and time.monotonic() - spoken > _SPEAK_EVERY:
                spoken = time.monotonic()
                console.print(f"{progress.rows:,} of {progress.job.rows:,} rows", highlight=False)
    return progress


def summary(progress: Progress, spec: EngineSpec, seconds: float) -> Table:
    """What a run did."""
    rows, job = progress.rows - progress.before, progress.job
    table = Table("job", job.id, title="Embedded", title_justify="left")
    earlier = f" ({progress.before:,} were there)" if progress.before else ""
    table.add_row("rows", f"{progress.rows:,} of {job.rows:,}{earlier}")
    cut = f", at {spec.truncation}" if job.overlap is None else ""
    table.add_row("truncated", f"{progress.truncated:,}{cut}")
    table.add_row("without a text", f"{progress.without_text:,}")
    if progress.recomputed:
        table.add_row("recomputed in FP32", f"{progress.recomputed:,}")
    if progress.failed:
        table.add_row("with an error", f"{progress.failed:,}: see the column error")
    table.add_row("seconds", f"{seconds:,.1f}")
    table.add_row("rows/s", f"{rows / seconds:,.1f}")
    table.add_row("tokens/s", f"{progress.tokens / seconds:,.0f}")
    table.add_row("folder", str(job.folder))
    return table


def status_table(status: Status) -> Table:
    """Where a job is."""
    job = status.job
    table = Table("job", job.id, title="Status", title_justify="left")
    table.add_row("rows done", f"{status.rows:,} of {job.rows:,} ({100 * status.rows / job.rows:.1f} %)")
    table.add_row("batches done", f"{status.done:,} of {job.batches:,}")
    table.add_row("waiting", f"{status.waiting:,}")
    table.add_row("out", f"{status.out:,} ({status.out_bytes / 1e6:,.1f} MB)")
    table.add_row("dead", f"{len(status.dead):,}")
    table.add_row("rows/s", f"{status.rows_per_s:,.1f}")
    eta = "-" if status.eta is None else str(timedelta(seconds=round(status.eta)))
    table.add_row("ETA", eta)
    table.add_row("workers alive", f"{status.workers:,}")
    for batch, record in sorted(status.dead.items())[:10]:
        table.add_row(f"dead {batch}", f"{record.error} ({record.attempts} attempts) {record.where}")
    return table
