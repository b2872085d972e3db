"""What a job takes, before it is run: ``--dry-run``. The estimate is kept, and the run's summary says how far off it
was."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.table import Table

from contract.engine import EngineSpec
from contract.job import Job
from contract.settings import cache_folder, settings
from contract.words import count
from producer.batches import Work
from producer.cached_record import CachedRecord
from producer.calibrate import CALIBRATION_ROWS
from producer.console import STDOUT, print_line
from producer.pace import START, VERIFICATION, last_pace
from producer.repeats import search_pays, to_compute
from producer.reuse import index_of
from producer.survey import Figure, Survey


class Measured(NamedTuple):
    """What the engine does on this machine."""

    tokens_per_second: float
    how: str
    """Where the figure comes from, for people."""
    shard_bytes: float | None = None
    """Of a shard, for each of its rows; None where none was made."""


class Plan(NamedTuple):
    """What a dry run is given."""

    dollars_per_hour: float | None = None
    """Of this machine."""
    measured: Measured | None = None
    """None for the speed of this machine's last run."""

    def having(self, measured: Measured) -> "Plan":
        return self._replace(measured=measured)


class Estimate(CachedRecord):
    """What a job takes."""

    job: str
    """Its id."""
    survey: Survey
    """How many rows there are, and of how many tokens."""
    computed: int | None
    """Texts that are computed: those of no earlier job, each once; None where they are not looked for."""
    batches: int
    batch_rows: int
    there: int
    """Batches that have their shard already: they are not computed again."""
    redis_bytes: int
    """Of all batches that are to be computed, one after the other."""
    output_bytes: int
    measured: Measured | None
    """None where no speed is known."""
    start: float
    """Seconds until the first batch."""
    vectors: float | None
    """Seconds that vectors are computed."""
    verification: float
    """Seconds; 0 where the command does not verify."""
    dollars_per_hour: float | None

    @property
    def seconds(self) -> float | None:
        """From the command to its verdict."""
        return None if self.vectors is None else self.start + self.vectors + self.verification

    @property
    def dollars(self) -> float | None:
        """What these seconds cost; None where they or the price are not known."""
        if self.seconds is None or self.dollars_per_hour is None:
            return None
        return self.seconds / 3600 * self.dollars_per_hour

    def keep(self, job: Job) -> None:
        """Keep it for the run's summary."""
        self.write(_file(job))


def estimate(work: Work, spec: EngineSpec, found: Survey, plan: Plan, *, sample: int, calibrates: bool) -> Estimate:
    """Estimate what a job takes.

    Args:
        work: the job, its dataset and its tokenizer.
        spec: its engine.
        found: how long its rows are.
        plan: what is asked for, and how fast this machine is.
        sample: rows that are verified; 0 where the command verifies none.
        calibrates: whether the first rows are computed twice, for the ranges of int8.
    """
    job, pace = work.job, last_pace(spec.fingerprint)
    with index_of(job) as index:
        work = work._replace(known=index)
        computed = to_compute(work, index) if not job.stream and (index or search_pays(work)) else None
        batch_bytes = _batch_bytes(work)
    measured = plan.measured
    if measured is None and pace:
        measured = Measured(pace.tokens_per_second, f"this machine's last run, {pace.when}")
    speed, there = measured.tokens_per_second if measured else math.nan, len(job.committed())
    left, each = 1 - there / job.batches, found.tokens.value / job.rows
    share = 1.0 if computed is None else min(1.0, computed / max(1.0, job.rows - found.without_text.value))
    vectors = found.tokens.value * left * share + each * (min(CALIBRATION_ROWS, job.rows) if calibrates else 0)
    verification = pace.verification if pace else VERIFICATION
    return Estimate(
        job=job.id,
        survey=found,
        computed=computed,
        batches=job.batches,
        batch_rows=job.batch_rows,
        there=there,
        redis_bytes=round(batch_bytes * left),
        output_bytes=round(_output_bytes(work, spec, found, measured)),
        measured=measured,
        start=pace.start if pace else START,
        vectors=vectors / speed if measured else None,
        verification=verification + min(sample, job.rows) * each / speed if measured and sample else 0.0,
        dollars_per_hour=plan.dollars_per_hour,
    )


def _batch_bytes(work: Work) -> float:
    """Of all batches in Redis, by the one in the middle."""
    rows = work.job.row_range(middle := work.job.batches // 2)
    return len(work.payload(middle)) / len(rows) * work.job.rows


def _output_bytes(work: Work, spec: EngineSpec, found: Survey, measured: Measured | None) -> float:
    """Of all shards: by one that was made, or else their values' bytes, which compression makes fewer."""
    job = work.job
    if measured and measured.shard_bytes:
        return measured.shard_bytes * job.rows
    vectors = found.tokens.value if spec.per_token else job.rows - found.without_text.value
    rows = job.row_range(job.batches // 2)
    kept = sum(values.nbytes for values in work.texts.read(rows)[1].values()) / len(rows) if job.columns else 0
    width = job.form.width(job.form.elements(spec.hidden)) * (job.form.element.bit_width // 8)
    return vectors * width + (kept + 20) * job.rows


def kept_estimate(job: Job) -> Estimate | None:
    """The last estimate of a job; None where there is none."""
    return Estimate.read(_file(job))


def _file(job: Job) -> Path:
    """By all that makes the job but its ranges, which a dry run does not know."""
    identity = job.identity | {"form": job.form.model_dump(exclude={"ranges"}), "output": str(job.folder.parent)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "estimates" / f"{digest[:20]}.json"


def show_estimate(found: Estimate, job: Job, spec: EngineSpec) -> None:
    """Print an estimate."""
    STDOUT.print(_table(found, "" if job.windowed else spec.longest_row))
    print_line("Nothing was started. To run it: the same command without --dry-run")


def _table(found: Estimate, tokens_at: str) -> Table:
    rows = found.survey
    by = "every row was read" if rows.read == rows.rows else f"a sample of {count(rows.read, 'row')}"
    table = Table("dry run", found.job, title="Estimate", title_justify="left")
    table.add_row("rows", f"{rows.rows:,}, exact")
    table.add_row("tokens", f"{_shown(rows.tokens)} ({by})")
    table.add_row("truncated", f"{_shown(rows.truncated)}, at {tokens_at}" if tokens_at else "none: windows")
    table.add_row("without a text", _shown(rows.without_text))
    if found.computed is not None:
        others = rows.rows - found.computed
        table.add_row("to compute", count(found.computed, "text") + f"; not for {count(others, 'row')}" * bool(others))
    table.add_row("longest seen", ", ".join(f"row {one.row:,}: {count(one.tokens, 'token')}" for one in rows.longest))
    there = f"; {count(found.there, 'shard')} there" if found.there else ""
    table.add_row("batches", f"{found.batches:,} of {count(found.batch_rows, 'row')}{there}")
    budget = f", at most {decimal(settings().outstanding_bytes)} at once"
    table.add_row("in Redis", decimal(found.redis_bytes) + budget)
    at_most = "" if found.measured and found.measured.shard_bytes else "at most "
    table.add_row("output", at_most + decimal(found.output_bytes))
    for name, text in _times(found).items():
        table.add_row(name, text)
    return table


def _times(found: Estimate) -> dict[str, str]:
    if found.measured is None or found.vectors is None or found.seconds is None:
        return {"seconds": "not known: no run was measured here; embedmill embed --dry-run measures"}
    parts = [f"start {found.start:,.0f}", f"vectors {found.vectors:,.0f}"]
    parts += [f"verification {found.verification:,.0f}"] if found.verification else []
    shown = {
        "tokens/s": f"{found.measured.tokens_per_second:,.0f}: {found.measured.how}",
        "seconds": f"{found.seconds:,.0f} ({', '.join(parts)})",
    }
    if found.dollars is not None:
        shown["cost"] = f"${found.dollars:,.4f} at ${found.dollars_per_hour:,.2f} an hour"
    return shown


def _shown(figure: Figure) -> str:
    return f"{figure.value:,.0f}" + (f" ± {figure.error:,.0f}" if figure.error else "")


def how_far_off(found: Estimate, tokens: int, estimated: float | None = None, real: float = 0.0) -> str:
    """How far an estimate was off, on one line.

    Args:
        found: the estimate.
        tokens: that were embedded.
        estimated: seconds of the estimate; None where the run did not do all that was estimated.
        real: seconds that this took.
    """
    parts = [f"tokens {_against(found.survey.tokens.value, tokens)}"]
    if estimated is not None:
        parts.append(f"seconds {_against(estimated, real)}")
    return f"The dry run estimated {', '.join(parts)}"


def _against(estimated: float, real: float) -> str:
    off = 100 * (estimated - real) / real if real else 0.0
    return f"{estimated:,.0f} for {real:,.0f} ({off:+.1f} %)"
