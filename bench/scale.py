"""``python -m bench.scale``: a large job on paper, computed from what was measured on small ones.

Reads docs/benchmarks/tokenize.json and docs/benchmarks/job.json. Every figure that is not in them is an option.
"""

import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import click

from bench.records import Record, load
from contract.errors import UserError
from contract.job import Job
from contract.redis.claims import Claims
from contract.redis.producing import ProducerLedger
from contract.settings import settings
from contract.store import location
from embedmill.processes import redis_server
from producer.batches import Work
from producer.driver import Driver
from producer.tokenizing import tokenizing_apart
from worker.runtime.gpus import CHILDREN

_EPILOG = """\b
Examples:
  python -m bench.scale
  python -m bench.scale --rows 100000000 --gpus 8 --batch-rows 4096
  python -m bench.scale --producers 4
  python -m bench.scale --gpu-rows 6400 --hidden 768 --gpu-price 4

What a batch costs the producer and what a shard's name costs a listing are measured here, with a Redis of its own.
"""

_BENCHMARKS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
_KEYS_A_LISTING = 1000
"""Objects that one LIST request names, of S3 and of Google Cloud Storage."""


@dataclass(frozen=True)
class Units:
    """What was measured."""

    gpu_rows: float
    """Rows/s of one GPU."""
    core_rows: float
    """Rows/s that one core tokenizes."""
    batch_seconds: float
    """Processor time of the producer's own process for one batch, which a tokenizing process makes and publishes."""
    wire_bytes: float
    """Of a row."""
    shard_bytes: float
    """Of a row: its vector's; what compression saves and the other columns take is left out."""
    listing: float
    """Seconds for each name in a folder of shards."""


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    rows: int
    gpus: int
    batch_rows: int
    gpu_price: float
    outstanding: int
    """Bytes."""
    network: float
    """Bytes/s of Redis's machine, each way."""
    producers: int = 1
    """That divide the job, each on a machine of its own."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--rows", default=1_000_000_000, show_default=True, help="Of the dataset."),
            click.option("--gpus", default=64, show_default=True, help="GPUs."),
            click.option("--batch-rows", default=1024, show_default=True, help="Rows of a batch and of a shard."),
            click.option("--gpu-rows", type=float, help="Rows/s of a GPU.  [default: the fastest measured job's]"),
            click.option("--hidden", default=768, show_default=True, help="Width of a vector."),
            click.option("--kind", default="reviews", show_default=True, help="The rows; see bench.texts."),
            click.option("--gpu-price", default=4.0, show_default=True, help="Dollars for an hour of one GPU."),
            click.option("--outstanding-mb", default=256, show_default=True, help="EMBEDMILL_OUTSTANDING_BYTES, MiB."),
            click.option("--producers", default=1, show_default=True, help="Machines with a producer of the job."),
            click.option("--network", default=25.0, show_default=True, help="Gbit/s of Redis's machine, each way."),
        )
    ):
        command = option(command)
    return command


@click.command(epilog=_EPILOG)
@_options
def main(
    rows: int,
    gpus: int,
    batch_rows: int,
    gpu_rows: float | None,
    hidden: int,
    kind: str,
    gpu_price: float,
    outstanding_mb: int,
    producers: int,
    network: float,
) -> None:
    """Print what a job of ROWS rows on so many GPUs needs, and what of it breaks first, as a Markdown table."""
    jobs = load(_read("job.json", "python -m bench.job"))
    tokenizing = json.loads(_read("tokenize.json", "python -m bench.tokenize").read_text(encoding="utf-8"))
    units = _units(jobs, tokenizing, kind, gpu_rows, hidden, batch_rows)
    plan = Plan(rows, gpus, batch_rows, gpu_price, outstanding_mb * 2**20, network * 1e9 / 8, producers)
    for line in table(plan, units):
        click.echo(line)


def _read(name: str, command: str) -> Path:
    file = _BENCHMARKS / name
    if not file.exists():
        raise UserError(f"no {file}", "the figures come from measurements", f"measure: {command}")
    return file


def _units(
    jobs: Sequence[Record],
    tokenizing: Sequence[dict[str, Any]],
    kind: str,
    gpu_rows: float | None,
    hidden: int,
    batch_rows: int,
) -> Units:
    of_kind = [record for record in jobs if record.dataset == kind and record.wire_bytes]
    on_gpus = [record for record in of_kind if record.gpus]
    if gpu_rows is None and not on_gpus:
        raise UserError(
            f"docs/benchmarks/job.json has no job on a GPU with {kind}",
            "expected one, measured by python -m bench.job on a machine with a GPU",
            "or say what one does: --gpu-rows 6400",
        )
    if not of_kind:
        raise UserError(f"docs/benchmarks/job.json has no job with {kind}", hint="measure: python -m bench.job --help")
    one = max(
        on_gpus or of_kind, key=lambda record: record.rows_per_s / max(1, record.gpus)
    )  # whose rows and speed belong together
    cores = [record for record in tokenizing if record["dataset"] == kind]
    return Units(
        gpu_rows=gpu_rows or one.rows_per_s / max(1, one.gpus),
        core_rows=min(record["rows_per_s"] / record["processes"] for record in cores),
        batch_seconds=_producer_seconds(int((one.wire_bytes or 0.0) * batch_rows)),
        wire_bytes=one.wire_bytes or 0.0,
        shard_bytes=4 * hidden,
        listing=_listing_seconds(),
    )


def _job(folder: Path, batches: int) -> Job:
    job = Job.create(
        location(folder), dataset="d", config=None, split="train", text="{text}", revision="r", limit=None, prefix="",
        engine="e", fingerprint="f", rows=batches, batch_rows=1,
    )  # fmt: skip
    job.save()
    return job


class _Ready(NamedTuple):
    """Work whose batches need not be made."""

    job: Job
    size: int
    """Bytes of each."""

    def payload(self, batch: int) -> bytes:
        return random.Random(batch).randbytes(self.size)


def _producer_seconds(size: int, batches: int = 200) -> float:
    """Processor seconds of the producer's own process for each batch of so many bytes, of which it sees only the
    number: it hands it out, has it published, and sends its message."""
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder, redis_server() as url:
        os.environ |= {"EMBEDMILL_REDIS_URL": url, "EMBEDMILL_OUTSTANDING_BYTES": str(2 * size * batches)}
        settings.cache_clear()
        job = _job(Path(folder), batches)
        ledger = ProducerLedger(patience=5)
        claims = Claims(job, ledger.connection)
        with claims.joined(), tokenizing_apart(cast(Work, _Ready(job, size)), 2) as source:
            driver = Driver(claims, source, ledger, detach=True)
            began = time.process_time()
            driver.run()
            return (time.process_time() - began) / batches


def _listing_seconds(names: int = 20_000) -> float:
    """Seconds for each name when a job's shards are looked for, measured here."""
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        job = _job(Path(folder), names)
        for batch in range(names):
            Path(str(job.shard(batch))).touch()
        began = time.perf_counter()
        job.committed()
        return (time.perf_counter() - began) / names


def table(plan: Plan, units: Units) -> list[str]:
    """A Markdown table: what is needed, and how much of one unit of it that is.

    Args:
        plan: what is asked for.
        units: what was measured.
    """
    rate = plan.gpus * units.gpu_rows
    seconds = plan.rows / rate
    batches = math.ceil(plan.rows / plan.batch_rows)
    per_s = rate / plan.batch_rows
    flow = rate * units.wire_bytes
    many = plan.producers
    producer, cores = per_s * units.batch_seconds / many, rate / units.core_rows / many
    in_work = CHILDREN * plan.gpus * plan.batch_rows * units.wire_bytes
    lists = math.ceil(batches / _KEYS_A_LISTING)
    lines = [
        ("rows/s", f"{rate:,.0f}", f"{plan.gpus} GPUs at {units.gpu_rows:,.0f}"),
        ("hours", f"{seconds / 3600:,.2f}", f"{plan.rows:,} rows"),
        ("GPU-hours, dollars", f"{plan.gpus * seconds / 3600:,.0f}, {plan.gpus * seconds / 3600 * plan.gpu_price:,.0f}",
         f"at {plan.gpu_price:g} an hour"),
        ("tokenizer cores", f"{rate / units.core_rows:,.0f}",
         f"{units.core_rows:,.0f} rows/s a core{f'; {cores:,.0f} for each producer' if many > 1 else ''}"),
        ("batches, shards, messages", f"{batches:,}", f"{per_s:,.0f} a second"),
        ("a producer's one thread", f"{100 * producer:,.0f} % busy",
         f"{1000 * units.batch_seconds:.1f} ms a batch{f'; {many} producers' if many > 1 else ''}"),
        ("Redis, in and out each", f"{flow / 1e6:,.0f} MB/s",
         f"{units.wire_bytes:,.0f} bytes a row; {100 * flow / plan.network:.0f} % of its network"),
        ("batches that workers hold", f"{in_work / 1e6:,.0f} MB",
         f"one for each of a GPU's {CHILDREN} processes"),
        ("batches in Redis", f"{plan.outstanding / 1e6:,.0f} MB", f"{plan.outstanding / flow:.1f} s of work"),
        ("one listing of a folder", f"{batches * units.listing:,.1f} s", f"{1e6 * units.listing:.1f} µs a shard"),
        ("one listing of a bucket", f"{lists:,} LIST requests", f"{lists * 0.05:,.0f} s at 50 ms"),
        ("object store", f"{2 * batches:,} PUT and GET", f"{per_s:,.0f} a second each"),
        ("output", f"{plan.rows * units.shard_bytes / 1e12:,.2f} TB", f"{units.shard_bytes:,.0f} bytes a row, "
         f"{plan.batch_rows * units.shard_bytes / 1e6:,.1f} MB a shard"),
    ]  # fmt: skip
    return ["| | | |", "|---|---:|---|", *(f"| {' | '.join(line)} |" for line in lines)]


if __name__ == "__main__":
    main(prog_name="python -m bench.scale")
