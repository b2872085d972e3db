"""``embedmill embed --dry-run``: what a run takes. Nothing is started: this process itself computes a few rows."""

import os
import random
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.job import Job
from contract.settings import settings
from contract.shard import read_info
from contract.store import location
from contract.words import count
from embedmill.children import children
from embedmill.display import Display
from embedmill.embedding import EmbedRequest
from embedmill.engines import build, check
from producer.batches import Work
from producer.console import print_note
from producer.dataset import open_dataset
from producer.estimate import Estimate, Measured, Plan, estimate
from producer.request import resolve, with_stand_ins
from producer.survey import survey
from producer.tokenizer import open_tokenizer
from worker.embed import Embedder
from worker.runtime.choose import gpu_usable
from worker.runtime.gpus import gpu_count

_ENOUGH, _LEAST = 4.0, 3
"""Batches are measured until they took so many seconds, or the job's rows are used up; at least so many batches."""
_FIRST = 2048
"""Tokens of the first batch. It does not count, because the runtime is still allocating memory. Each further batch has
twice as many as the last, up to the size of the job's own batches."""
_SEED = 0


class _Sum(NamedTuple):
    """Over some batches."""

    tokens: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def plus(self, other: "_Sum") -> "_Sum":
        return _Sum(
            self.tokens + other.tokens, self.rows + other.rows, self.bytes + other.bytes, self.seconds + other.seconds
        )


class Found(NamedTuple):
    """What a dry run found."""

    estimate: Estimate
    job: Job
    """That would be run."""
    spec: EngineSpec
    """Its engine."""


def dry_run(asked: EmbedRequest, plan: Plan, display: Display) -> Found:
    """Estimate a run, and keep the estimate for its end. The engine is built unless it is there: the run will use it.

    Args:
        asked: what is asked for.
        plan: of the dry run.
        display: takes how far the engine is.

    Raises:
        UserError: the engine or the dataset cannot do what is asked for.
    """
    request = asked.job
    texts = open_dataset(request.source)
    if not asked.engine.is_built():
        check(asked.engine)
        with (
            display,
            tempfile.TemporaryDirectory(prefix="embedmill-") as folder,
            children(Path(folder), "build") as (builder,),
        ):
            build(asked.engine, builder, display.show, print_note)
    spec = load_engine(request.engine)
    tokenizer = open_tokenizer(spec)
    job = resolve(with_stand_ins(request, spec), texts, spec, tokenizer)
    work = Work(job, texts, tokenizer)
    found = survey(work)
    measured = measure(work, spec, found.tokens.value / found.rows)
    sample = job.rows if asked.sample is None else asked.sample
    calibrates = request.dtype == "int8" and asked.ranges is None and request.earlier_ranges is None
    made = estimate(work, spec, found, plan.having(measured), sample=sample, calibrates=calibrates)
    made.keep(job)
    return Found(made, job, spec)


def measure(work: Work, spec: EngineSpec, each: float) -> Measured:
    """Compute batches of a job's own rows for some seconds, as a worker does.

    Args:
        work: the job.
        spec: its engine.
        each: mean tokens of a row.

    Raises:
        UserError: this machine cannot compute the engine.
    """
    gpu, generator = gpu_usable(), random.Random(_SEED)
    threads = settings().threads or len(os.sched_getaffinity(0))
    total, tokens, batches = _Sum(), _FIRST, 0
    with tempfile.TemporaryDirectory(prefix="embedmill-") as folder, closing(Embedder(threads)) as embedder:
        runtime = embedder.engine(spec.name).runtime
        while (total.seconds < _ENOUGH and total.rows < work.job.rows) or batches <= _LEAST:
            rows = min(work.job.batch_rows, max(1, round(tokens / max(each, 1))))
            job = work.job.model_copy(update={"folder": location(folder), "batch_rows": rows})
            for part in (job.data, job.staging):
                part.make_folder()
            one = _one(embedder, work._replace(job=job), generator.randrange(job.batches))
            total = total.plus(one) if batches else total
            tokens, batches = 2 * tokens, batches + 1
    devices = max(1, gpu_count()) if gpu else 1
    where = count(devices, "GPU") if gpu else count(threads, "core")
    how = f"measured now on {count(total.rows, 'row')} of this dataset, {runtime}, {where}"
    return Measured(max(total.tokens, 1) / total.seconds * devices, how, total.bytes / total.rows)


def _one(embedder: Embedder, work: Work, number: int) -> _Sum:
    """Make one batch's shard."""
    job, payload = work.job, work.payload(number)
    shard = job.shard(number)
    shard.unlink()
    began = time.monotonic()
    embedder.embed(job, number, payload)
    seconds = time.monotonic() - began
    info = read_info(shard)
    return _Sum(info.tokens - info.spared_tokens, info.rows, job.data.entries()[shard.name].size, seconds)
