"""What a person sees of a job: a progress bar, what its workers do, a summary, a status, a list."""

import contextlib
import time
from collections.abc import Iterable
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
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
from contract.words import count
from producer.jobs import Listed
from producer.publish import Progress
from producer.reasons import View, reason, workers_line
from producer.status import Status

_SPEAK_EVERY = 10.0
"""Seconds between two lines where there is no terminal for a bar, and for which nothing must move before it is said."""

_REPEAT_EVERY = 60.0
"""Seconds after which it is said again what still keeps a job."""


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} rows/s", style="progress.data.speed")


class Stillness:
    """Says why nothing moves: once nothing has for ten seconds, and again when the reason is another or a minute has
    passed.

    Args:
        began: when the job's run began, by the monotonic clock.
    """

    def __init__(self, began: float) -> None:
        self._kind, self._said = "", began

    def line(self, progress: Progress, now: float) -> str | None:
        """The line to be said now; None if there is none.

        Args:
            progress: how far the job is.
            now: by the monotonic clock.
        """
        still = now - progress.moved
        if still < _SPEAK_EVERY:
            self._kind = ""
            return None
        if progress.view is None:
            return None
        why = reason(progress.view)
        if why.kind == self._kind and now - self._said < _REPEAT_EVERY:
            return None
        self._kind, self._said = why.kind, now
        return f"No new shard for {timedelta(seconds=round(still))}: {why.says}"


def follow(steps: Iterable[Progress], console: Console) -> Progress:
    """Run a job to its end under a progress bar; where there is no terminal, with a line now and then.

    Args:
        steps: at least one; each is the same object.
        console: takes the bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bar = Bar(*columns, speed_estimate_period=120)
    task = bar.add_task("rows", total=None)
    began = spoken = time.monotonic()
    said, stillness = -1, Stillness(began)
    with Live(bar, console=console) if console.is_terminal else contextlib.nullcontext() as live:
        for progress in steps:
            now = time.monotonic()
            if live:
                bar.update(task, completed=progress.rows, total=progress.job.rows)
                live.update(_bar_and_workers(bar, progress.view))
            elif now - spoken >= _SPEAK_EVERY and progress.rows != said:
                console.print(_rows_line(progress, now - began), highlight=False, soft_wrap=True)
                spoken, said = now, progress.rows
            if line := stillness.line(progress, now):
                console.print(line, highlight=False, soft_wrap=True)
    return progress


def _bar_and_workers(bar: Bar, view: View | None) -> RenderableType:
    return Group(bar, Text(workers_line(view), style="dim")) if view else bar


def _rows_line(progress: Progress, seconds: float) -> str:
    rows, job = progress.rows - progress.before, progress.job
    line = f"{progress.rows:,} of {count(job.rows, 'row')}"
    if not rows:
        return line
    left = timedelta(seconds=round((job.rows - progress.rows) * seconds / rows))
    return f"{line}, {rows / seconds:,.0f} rows/s, {left} left"


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
    if rows:
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
    if status.ended:
        table.add_row("ended", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.ended)))
    else:
        table.add_row("not published", f"{status.waiting:,}")
        table.add_row(
            "published", f"{status.out:,} ({decimal(status.out_bytes)}), {status.view.queued:,} not taken yet"
        )
        table.add_row("rows/s", f"{status.rows_per_s:,.1f}")
        if status.eta is not None:
            table.add_row("ETA", str(timedelta(seconds=round(status.eta))))
    table.add_row("dead", f"{len(status.dead):,}")
    table.add_row("workers alive", f"{len(status.view.alive()):,}")
    if not status.ended:
        table.add_row("they are", workers_line(status.view).partition(": ")[2] or "-")
        if not status.rows_per_s and status.out:
            table.add_row("nothing moves", reason(status.view).says)
    for batch, record in sorted(status.dead.items())[:10]:
        table.add_row(f"dead {batch}", f"{record.error} (after {count(record.attempts, 'attempt')}) {record.where}")
    return table


def list_table(jobs: Iterable[Listed]) -> Table:
    """All jobs, two lines each: the job's id, and below it what is embedded by what."""
    table = Table(title="Jobs", title_justify="left")
    table.add_column("job", overflow="fold")
    for column in ("rows", "state", "size", "last shard"):
        table.add_column(column, no_wrap=True)
    for one in jobs:
        job = one.job
        rows = f"{job.rows:,}" if one.rows in (None, job.rows) else f"{one.rows:,} of {job.rows:,}"
        waits = f", {one.queued:,} waiting" if one.queued else ""
        form = f"{job.form.dtype}{f', {job.form.dimensions} wide' if job.form.dimensions else ''}"
        age = "-" if one.age is None else f"{timedelta(seconds=round(one.age))} ago"
        place = f"\n{job.folder}" if one.state == "elsewhere" else ""
        text = f"{job.dataset.rpartition('/')[2]} ({job.split}, {job.parts.shown}), {job.engine}, {form}"
        size = decimal(one.bytes) if one.bytes else "-"
        table.add_row(f"{job.id}\n{text}{place}", rows, f"{one.state}{waits}", size, age)
    return table
