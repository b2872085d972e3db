"""``python -m bench.memory``: what producer, Redis and worker hold with rows of 512 and of 8,192 tokens.

One seeded model has an engine of each length. Batches have the same number of tokens, and the producer fills Redis up
to the same number of batches before a worker starts; then the worker empties it. What counts is the most that the
kernel has ever seen in a process's memory (``VmHWM``), summed over a program's processes.
"""

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from rich.console import Console

from bench.families import save_family
from bench.machine import machine
from bench.options import records_in
from bench.tiny_model import JARGON
from bench.watched import families_of_processes, memory_of
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job, load_job
from contract.redis.producing import ProducerLedger
from contract.settings import put
from contract.store import location
from embedmill.processes import celery_worker, process, redis_server
from engine_build.build import build
from engine_build.prepare import EngineOptions
from producer.batches import Work
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer

LENGTHS = (512, 8192)
_REVIEW, _EVERY = 280, 200
"""Tokens of a row of the mixed dataset, but for every so-manieth, which has as many as the longer engine takes."""
_SHAPE = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 1, "intermediate_size": 1536}
_LOOK = 0.1
"""Seconds."""


@dataclass(frozen=True)
class Case:
    """One job to measure."""

    computed_by: str
    """``nothing``: ``bench.null_engine``; or a runtime."""
    rows: str
    """``long``: each as long as the engine takes; or ``mixed``."""
    length: int
    """Tokens that the engine takes."""
    batch_tokens: int
    batches: int
    outstanding: int
    """Batches that may be in Redis."""


@dataclass(frozen=True)
class Held:
    """What was held. Memory in MB."""

    computed_by: str
    rows: str
    length: int
    batch_rows: int
    batch_tokens: int
    outstanding_tokens: int
    """Of the batches that were in Redis when the worker started."""
    outstanding_bytes: int
    producer: float
    """With its tokenizing processes."""
    redis: float
    redis_data: float
    """What Redis says of its peak: ``used_memory_peak``."""
    worker: float
    """With its child."""
    machine: str
    date: str


def cases() -> Iterator[Case]:
    """All that are measured: the data's way alone, and with a model."""
    for length in LENGTHS:
        yield Case("nothing", "long", length, batch_tokens=294_912, batches=16, outstanding=8)
    for length in LENGTHS:
        yield Case("nothing", "mixed", length, batch_tokens=294_912, batches=16, outstanding=8)
    for length in LENGTHS:
        yield Case("torch", "long", length, batch_tokens=32_768, batches=4, outstanding=3)


class Peaks(threading.Thread):
    """Watches programs until ``stop``.

    Args:
        programs: name → process id; its descendants count as it.
    """

    def __init__(self, **programs: int) -> None:
        super().__init__(daemon=True)
        self.programs = programs
        self._peaks: dict[tuple[str, int], float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_LOOK):
            families = families_of_processes()
            for name, program in list(self.programs.items()):
                for member in families.get(program, [program]):
                    peak = memory_of(member).get("VmHWM", 0.0)
                    self._peaks[name, member] = max(peak, self._peaks.get((name, member), 0.0))

    def stop(self) -> dict[str, float]:
        """Each program's peak in MB: the sum of its processes'."""
        self._over.set()
        self.join()
        found = dict.fromkeys(self.programs, 0.0)
        for (name, _), peak in self._peaks.items():
            found[name] += peak
        return {name: round(peak, 1) for name, peak in found.items()}


def measure(case: Case, engine: EngineSpec, file: Path, folder: Path) -> Held:
    """Run one job.

    Args:
        case: what is run.
        engine: of the case's length.
        file: the dataset.
        folder: for the job.

    Raises:
        UserError: the producer failed.
    """
    mean = case.length if case.rows == "long" else _REVIEW + (LENGTHS[-1] - _REVIEW) // _EVERY
    batch_rows = case.batch_tokens // mean
    output = folder / f"{case.computed_by}-{case.rows}-{case.length}"
    size = _batch_bytes(engine, file, batch_rows)
    put(engine=engine.name, tokenizers="2", threads="1", outstanding_bytes=str(round(size * (case.outstanding + 0.5))))
    command = ["-m", "producer", "--dataset", str(file), "--engine", engine.name, "--output", str(output)]
    command += ["--batch-rows", str(batch_rows), "--limit", str(batch_rows * case.batches)]
    new = {"HF_DATASETS_CACHE": str(folder / "cache"), "EMBEDMILL_RUNTIME": "auto"}
    app = "bench.null_engine" if case.computed_by == "nothing" else "worker"
    if app == "worker":
        new["EMBEDMILL_RUNTIME"] = case.computed_by
    log = folder / f"{output.name}.log"
    with redis_server() as url, contextlib.ExitStack() as stack:
        put(redis_url=url)
        client = redis.Redis.from_url(url)
        producer = stack.enter_context(process([sys.executable, *command], log, env=new))
        peaks = Peaks(producer=producer.pid, redis=client.info("server")["process_id"])
        peaks.start()
        job = _published(producer, output, case.outstanding, log)
        peaks.programs["worker"] = stack.enter_context(celery_worker(log, "-c", "1", app=app, env=new, ready=300)).pid
        if producer.wait():
            raise UserError(f"the producer failed: {log.read_text()}")
        peak, data = peaks.stop(), client.info("memory")["used_memory_peak"] / 1e6
    return Held(
        *(case.computed_by, case.rows, case.length, batch_rows, round(batch_rows * mean)),
        outstanding_tokens=round(case.outstanding * job.batch_rows * mean),
        outstanding_bytes=size * case.outstanding,
        producer=peak["producer"],
        redis=peak["redis"],
        redis_data=round(data, 1),
        worker=peak["worker"],
        machine=machine(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _batch_bytes(engine: EngineSpec, file: Path, rows: int) -> int:
    texts, tokenizer = open_dataset(DatasetSource(str(file))), open_tokenizer(engine)
    fields = {"dataset": str(file), "config": None, "split": "train", "text": "{text}", "revision": "", "limit": None}
    more = {"prefix": "", "engine": engine.name, "fingerprint": engine.fingerprint, "rows": rows, "batch_rows": rows}
    return len(Work(Job.create(location(file.parent), **(fields | more)), texts, tokenizer).payload(0))


def _published(producer: "subprocess.Popen[bytes]", output: Path, batches: int, log: Path) -> Job:
    """The job, once so many of its batches wait for a worker."""
    ledger, until = ProducerLedger(patience=30), time.monotonic() + 600
    while time.monotonic() < until and producer.poll() is None:
        for folder in output.glob("*/job.json"):
            job = load_job(location(folder.parent))
            if ledger.queued(job.key) >= batches:
                time.sleep(1)  # and no more come
                return job
        time.sleep(0.2)
    raise UserError(f"the producer published too little: {log.read_text()}")


def write_texts(file: Path, engine: EngineSpec, tokens: list[int]) -> None:
    """A dataset whose rows have at least so many tokens each, of the Jargon File."""
    jargon = " ".join(json.loads(line)["text"] for line in JARGON.read_text("utf-8").splitlines())
    encoding = open_tokenizer(engine).tokenizer.encode(jargon[:200_000])
    characters = 200_000 / len(encoding.ids) * 1.2
    drawn = random.Random(1)
    texts = []
    for length in tokens:
        start = drawn.randrange(len(jargon) // 2)
        texts.append(jargon[start : start + round(length * characters)])
    pq.write_table(pa.table({"text": texts}), file, row_group_size=1024)


def table(found: list[Held]) -> str:
    """In Markdown, each pair of lengths with its ratios."""
    lines = [
        "| computed by | rows | engine takes | tokens in Redis | producer | Redis | worker |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for short, long in zip(found[::2], found[1::2], strict=True):
        for one in (short, long):
            figures = " | ".join(f"{value:,.0f} MB" for value in (one.producer, one.redis, one.worker))
            what = f"{one.computed_by} | {one.rows} | {one.length:,}"
            lines.append(f"| {what} | {one.outstanding_tokens:,} | {figures} |")
        ratios = (getattr(long, name) / getattr(short, name) for name in ("producer", "redis", "worker"))
        lines.append(f"| | | | | {' | '.join(f'× {ratio:.2f}' for ratio in ratios)} |")
    return "\n".join(lines)


@click.command()
@click.option("--only", help="Only the cases computed by this: nothing, torch. The others' records stay.")
@records_in("memory.json")
def main(only: str | None, target: Path) -> None:
    """Measure the memory of producer, Redis and worker with rows of 512 and of 8,192 tokens."""
    console = Console(stderr=True, highlight=False)
    before = [Held(**one) for one in json.loads(target.read_text("utf-8"))] if target.exists() else []
    found = [one for one in before if only not in (None, one.computed_by)]
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        folder = Path(name)
        put(engines=str(folder / "engines"))
        console.print("building the engines …")
        model = save_family("xlm-roberta", folder / "model", max_position_embeddings=LENGTHS[-1] + 2, **_SHAPE)
        engines = {
            length: build(
                str(model),
                EngineOptions(f"memory-{length}", max_length=length),
                say=lambda line: None,
                step=lambda text: None,
            )[0]
            for length in LENGTHS
        }
        for case in cases():
            if only in (None, case.computed_by):
                console.print(f"{case} …", soft_wrap=True)
                found.append(measure(case, engines[case.length], _dataset(folder, case, engines), folder))
                console.print(found[-1], soft_wrap=True)
    target.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    print(table(found))


def _dataset(folder: Path, case: Case, engines: dict[int, EngineSpec]) -> Path:
    file = folder / f"{case.rows}-{case.length}-{case.batch_tokens}.parquet"
    tokens = case.batch_tokens * case.batches
    if case.rows == "long":
        lengths = [case.length] * (tokens // case.length)
    else:
        lengths = [_REVIEW if row % _EVERY else LENGTHS[-1] for row in range(tokens // _REVIEW)]
    write_texts(file, engines[case.length], lengths)
    return file


if __name__ == "__main__":
    main(prog_name="python -m bench.memory")
