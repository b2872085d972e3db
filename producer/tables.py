"""The tables that the commands print: a run's summary, a job's status, the list of jobs."""

import time
from collections.abc import Iterable
from datetime import timedelta

from rich.filesize import decimal
from rich.table import Table

from contract.engine import EngineSpec
from contract.words import count
from producer.jobs import Listed
from producer.progress import Progress
from producer.reasons import reason, workers_line
from producer.status import Status


def summary(progress: Progress, spec: EngineSpec, seconds: float) -> Table:
    """What a run did, in ``seconds``."""
    job, totals, before, new = progress.job, progress.totals, progress.before, progress.new
    table = Table("job", job.id, title="Embedded", title_justify="left")
    earlier = f" ({before.rows:,} were there)" if before.rows else ""
    table.add_row("rows", f"{totals.rows:,} of {job.rows:,}{earlier}")
    cut = f", at {spec.longest_row}" if not job.windowed else ""
    table.add_row("truncated", f"{totals.truncated:,}{cut}")
    table.add_row("without a text", f"{totals.without_text:,}")
    if totals.spared:
        computed = progress.first.rows - progress.first.spared
        first = f"; {count(computed, 'text was', 'texts were')} embedded first" if computed else ""
        table.add_row("vectors taken", f"{totals.spared:,}: an earlier job or another row has the same text{first}")
    if totals.recomputed:
        table.add_row("recomputed in FP32", f"{totals.recomputed:,}")
    if totals.failed:
        table.add_row("with an error", f"{totals.failed:,}: see the column error")
    if new.rows:
        table.add_row("seconds", f"{seconds:,.1f}")
        table.add_row("rows/s", f"{new.rows / seconds:,.1f}")
        tokens = sum(made.tokens - made.spared_tokens for made in (new, progress.first))
        table.add_row("tokens/s", f"{tokens / seconds:,.0f}")
    if progress.producers > 1:
        made = f"this one made {progress.made:,} of {count(job.batches, 'batch', 'batches')}"
        table.add_row("producers", f"{progress.producers} at once; {made}")
    table.add_row("folder", str(job.folder))
    return table


def status_table(status: Status) -> Table:
    """Where a job is."""
    job = status.job
    table = Table("job", job.id, title="Status", title_justify="left")
    table.add_row("rows done", f"{status.rows:,} of {job.rows:,} ({100 * status.rows / job.rows:.1f} %)")
    table.add_row("batches done", f"{status.done:,} of {job.batches:,}")
    if any(status.view.priorities.values()) and not status.ended:
        table.add_row("priority", f"{status.view.priority:g}")
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
    if not status.ended:
        table.add_row("producers alive", f"{status.view.producers:,}")
    table.add_row("workers alive", f"{len(status.view.alive()):,}")
    if not status.ended:
        table.add_row("they are", workers_line(status.view).partition(": ")[2] or "-")
        if not status.rows_per_s and status.out:
            table.add_row("nothing moves", reason(status.view).line)
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
        folder = f"\n{job.folder}" if one.state == "elsewhere" else ""
        text = f"{job.dataset.rpartition('/')[2]} ({job.split}, {job.parts.shown}), {job.engine}, {form}"
        size = decimal(one.bytes) if one.bytes else "-"
        table.add_row(f"{job.id}\n{text}{folder}", rows, f"{one.state}{waits}", size, age)
    return table
