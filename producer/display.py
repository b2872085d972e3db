"""What a person sees of a job while it runs: a progress bar and what its workers do, or a line now and then."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console, Group
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
from rich.text import Text

from contract.words import count
from producer.progress import Progress
from producer.reasons import producers_line, reason, workers_line

LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal for a bar, and for which no shard must come before it is
reported why."""

_REPEAT_EVERY = 60.0
"""Seconds after which it is reported again what still keeps a job."""


@contextlib.contextmanager
def progress_display(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Shows a run's snapshots: under a progress bar, or where there is no terminal with a line now and then.

    Args:
        console: takes the bar or the lines.

    Yields:
        A function to be called with each snapshot.
    """
    began = time.monotonic()
    stall = StallReport(began)
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(_bar(console)) if console.is_terminal else _lines(console, began)

        def report(progress: Progress) -> None:
            now = time.monotonic()
            show(progress, now)
            if line := stall.line(progress, now):
                console.print(line, highlight=False, soft_wrap=True)

        yield report


class StallReport:
    """Reports why no shard comes, and no row is computed: once none has for ten seconds, and again when the reason is
    another or a minute has passed.

    Args:
        began: when the run began, by the monotonic clock.
    """

    def __init__(self, began: float) -> None:
        self._kind, self._reported = "", began
        self._rows, self._moved = -1, began

    def line(self, progress: Progress, now: float) -> str | None:
        """The line to be printed now; None if there is none.

        Args:
            progress: how far the job is.
            now: by the monotonic clock.
        """
        if progress.rows != self._rows:
            self._rows, self._moved = progress.rows, now
        still = now - max(progress.last_shard, self._moved)
        if still < LINE_EVERY:
            self._kind = ""
            return None
        if progress.view is None:
            return None
        why = reason(progress.view)
        if why.kind == self._kind and now - self._reported < _REPEAT_EVERY:
            return None
        self._kind, self._reported = why.kind, now
        return f"No new shard for {timedelta(seconds=round(still))}: {why.line}"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} rows/s", style="progress.data.speed")


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Callable[[Progress, float], None]]:
    """A bar, and below it what the workers do."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    bar = Bar(*columns, speed_estimate_period=120)
    task = bar.add_task("rows", total=None)
    with Live(bar, console=console) as live:

        def show(progress: Progress, now: float) -> None:
            bar.update(task, completed=progress.rows, total=progress.job.rows)
            view = progress.view
            lines = [line for line in (workers_line(view), producers_line(view)) if line] if view else []
            live.update(Group(bar, *(Text(line, style="dim") for line in lines)))

        yield show


def _lines(console: Console, began: float) -> Callable[[Progress, float], None]:
    """A line each ten seconds in which rows came, and one whenever another number of producers shares the job."""
    printed, rows, shared = began, -1, ""

    def show(progress: Progress, now: float) -> None:
        nonlocal printed, rows, shared
        if progress.view and (line := producers_line(progress.view)) != shared:
            console.print(line or "No other producer shares this job any more", highlight=False, soft_wrap=True)
            shared = line
        if now - printed >= LINE_EVERY and progress.rows != rows:
            console.print(_rows_line(progress, now - began), highlight=False, soft_wrap=True)
            printed, rows = now, progress.rows

    return show


def _rows_line(progress: Progress, seconds: float) -> str:
    rows, new, total = progress.rows, progress.new_rows, progress.job.rows
    line = f"{rows:,} of {count(total, 'row')}"
    if not new:
        return line
    left = timedelta(seconds=round((total - rows) * seconds / new))
    return f"{line}, {new / seconds:,.0f} rows/s, {left} left"
