"""One run of the whole job, as it is used, and what it took."""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.sample import Sample
from bench.watched import Watched, memory_of
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import Job, load_job
from contract.redis.claims import Claims
from contract.redis.producing import ProducerLedger, Publication
from contract.settings import settings
from contract.shard import read_info
from contract.store import location
from contract.verdict import load_verdict
from embedmill.processes import celery_worker, die_with_parent, process, redis_server


@dataclass(frozen=True)
class JobRun:
    """What a job took."""

    seconds: float
    """Of the producer, from its start to its end."""
    between: float
    """Seconds between the first batch's arrival at a worker and the last shard's commit."""
    before: float
    """Seconds before that: the producer starts, opens the dataset and makes the first batch."""
    first_shard: float
    """Seconds from the producer's start to the first shard's commit."""
    after: float
    """Seconds after that: the producer sees the last shard, and ends."""
    rows: int
    batches: int
    tokens: int
    gpu_busy: list[float]
    """Of each GPU that computed."""
    stages: dict[str, float]
    """Seconds of a batch."""
    memory: dict[str, float]
    wire_bytes: float
    """Of a row."""
    shard_bytes: float
    """Of a row."""
    producer_cpu: float
    """Seconds of processor time that the producers and their tokenizing processes took, as they were last seen."""
    worker_cpu: float
    """The same of the workers, from their start."""
    children: int
    runtime: str
    verified: bool | None
    verification: dict[str, float]
    """What ``python -m verify`` took and found, see ``bench.records.Record``; empty where it was not asked."""
    recovery: float | None = None
    """Seconds from a worker's kill to the next shard's commit, its start again included; None where none was killed, or
    none came."""
    made: int | None = None
    """Batches that producers have tokenized, as they say; None for one producer, which does not say."""


@dataclass(frozen=True)
class RunOptions:
    """How a job is run."""

    batch_rows: int
    workers: int
    """``celery worker`` processes."""
    children: int | None
    """Of each worker; None for the worker's own choice."""
    verify: bool
    """Run ``python -m verify`` on it."""
    app: str = "worker"
    """The module of the workers' Celery app."""
    runtime: str = "auto"
    """The workers' ``EMBEDMILL_RUNTIME``."""
    producers: int = 1
    """Of the job, on this machine."""
    kill: str | None = None
    """``producer`` or ``worker``: kill one, by SIGKILL, once a quarter of the shards is there. A worker is started
    again."""


def python_of(runtime: str) -> str:
    """The Python that has what this runtime takes."""
    return os.environ.get("PYTHON_TORCH" if runtime in ("torch", "modules") else "PYTHON_TENSORRT", sys.executable)


def run_job(folder: Path, file: Path, sample: Sample, spec: EngineSpec, options: RunOptions) -> JobRun:
    """Run a job with a Redis, workers and a producer of its own.

    Args:
        folder: for its output and logs, which are removed by whoever made the folder.
        file: the dataset.
        sample: its first batches.
        spec: the engine.
        options: how it is run.

    Raises:
        UserError: the producer failed.
    """
    folder = folder / f"{file.stem}-{options.workers}-{time.time_ns()}"
    folder.mkdir()
    with redis_server(folder) as url, contextlib.ExitStack() as stack:
        os.environ["EMBEDMILL_REDIS_URL"] = url
        settings.cache_clear()
        logs = [folder / f"worker-{number}.log" for number in range(options.workers)]
        started = [_worker(stack, log, options) for log in logs]
        watched = stack.enter_context(
            Watched({f"worker {number}": worker.pid for number, worker in enumerate(started)}, url)
        )
        command = ["-m", "producer", "--dataset", str(file), "--engine", spec.name]
        command += ["--batch-rows", str(options.batch_rows), "--output", str(folder / "output")]
        began = time.time()
        killed = None
        with _producers(command, folder, watched, options) as (logs_of_producers, producing):
            if options.kill == "worker":
                killed = killed_at(folder / "output", started[0], producing)
                again = _worker(stack, folder / "worker-again.log", options)
                watched.also("worker, started again", again.pid)
        ended = time.time()
        job = load_job(location(next((folder / "output").iterdir())))
        publish = _publishing(job, sample)
    lines = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    run = _summary(job, sample, watched, lines, (began, ended))
    stages = {"tokenize": sample.tokenize, "publish": publish} | run.stages
    said = [
        match[1] for log in logs_of_producers if (match := re.search(r"this one made ([\d,]+) of", log.read_text()))
    ]
    made = sum(int(number.replace(",", "")) for number in said) if said else None
    recovery = (
        min((when - killed for when in job.written().values() if when > killed), default=None) if killed else None
    )
    run = replace(run, stages=stages, made=made, recovery=recovery)
    return _verify(job, run) if options.verify else run


@contextlib.contextmanager
def _producers(
    command: list[str], folder: Path, watched: Watched, options: RunOptions
) -> Iterator[tuple[list[Path], list["subprocess.Popen[bytes]"]]]:
    """Run a job's producers; yields their logs and processes once they are started, and waits for their end."""
    logs = [folder / f"producer-{number}.log" for number in range(options.producers)]
    new = {"HF_DATASETS_CACHE": str(folder / "cache")}
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(process([sys.executable, *command], log, env=new)) for log in logs]
        for number, one in enumerate(started):
            watched.also(f"producer {number}" if number else "producer", one.pid)
        if options.kill == "producer":
            killed_at(folder / "output", started.pop(), started)
            logs.pop()
        yield logs, started
        for one, log in zip(started, logs, strict=True):
            if status := one.wait():
                raise UserError(f"python {' '.join(command)} ended with status {status}: {log.read_text()}")


def killed_at(output: Path, victim: "subprocess.Popen[bytes]", producers: Sequence["subprocess.Popen[bytes]"]) -> float:
    """Kill a process once a quarter of the shards is there; returns when.

    Args:
        output: the folder of the only job.
        victim: the process.
        producers: the job's others.

    Raises:
        UserError: the producers ended before.
    """
    while not _a_quarter_is_there(output):
        if all(one.poll() is not None for one in producers):
            raise UserError(
                "the job ended before a quarter of its shards was seen",
                "expected one that runs for seconds, or that does not fail",
                "take more --rows, or see what the same command says without --kill",
            )
        time.sleep(0.2)
    victim.kill()
    return time.time()


def _a_quarter_is_there(output: Path) -> bool:
    try:
        job = load_job(location(next(output.iterdir())))
        return 4 * len(job.committed()) >= job.batches
    except (OSError, StopIteration, UserError):  # it is being begun
        return False


def _summary(job: Job, sample: Sample, watched: Watched, lines: list[str], times: tuple[float, float]) -> JobRun:
    """What the shards, the workers' logs and the machine say of a job that ran from ``times[0]`` to ``times[1]``."""
    began, ended = times
    written = job.written()
    infos = [read_info(job.shard(batch)) for batch in sorted(written)]
    begin = min(info.finished.timestamp() - info.seconds for info in infos)
    end = max(written.values())
    return JobRun(
        seconds=ended - began,
        between=end - begin,
        before=begin - began,
        first_shard=min(written.values()) - began,
        after=ended - end,
        rows=job.rows,
        batches=job.batches,
        tokens=sum(info.tokens for info in infos),
        gpu_busy=watched.gpu_busy(begin, end),
        stages=_stages(lines),
        memory=watched.memory,
        wire_bytes=sample.row_bytes,
        shard_bytes=job.bytes() / job.rows,
        producer_cpu=_spent(watched, "producer"),
        worker_cpu=_spent(watched, "worker"),
        children=sum(" loaded: " in line for line in lines),
        runtime=infos[0].runtime,
        verified=None,
        verification={},
    )


def _spent(watched: Watched, kind: str) -> float:
    return sum(spent for name, spent in watched.cpu.items() if name.startswith(kind))


def _worker(stack: contextlib.ExitStack, log: Path, options: RunOptions) -> subprocess.Popen[bytes]:
    """Start a worker and wait until each of its children has its engine."""
    cores, workers, children = len(os.sched_getaffinity(0)), options.workers, options.children
    threads = os.environ.get("EMBEDMILL_THREADS") or str(max(1, cores // (workers * (children or 1))))
    named = ["-n", f"{log.stem}@%h", *(["--concurrency", str(children)] if children else [])]
    worker = stack.enter_context(
        celery_worker(
            log,
            *named,
            app=options.app,
            env={"EMBEDMILL_RUNTIME": options.runtime}
            | ({"EMBEDMILL_THREADS": threads} if workers > 1 or children else {}),
            ready=600,
            python=python_of(options.runtime),
        )
    )
    until = time.monotonic() + 600
    while log.read_text(encoding="utf-8").count(" loaded: ") < (children or 1):
        if worker.poll() is not None or time.monotonic() > until:
            raise UserError(f"the worker did not start: {log.read_text(encoding='utf-8')}")
        time.sleep(0.1)
    return worker


def _publishing(job: Job, sample: Sample) -> float:
    """Seconds that a tokenizing process needs to hash a batch and put it into the job's Redis, the median."""
    ledger, seconds = ProducerLedger(patience=5), []
    claims, payloads = Claims(job, ledger.connection), [file.read_bytes() for file in sorted(sample.folder.iterdir())]
    with claims.joined():
        claims.claim(range(len(payloads)), len(payloads))
        for number, payload in enumerate(payloads):
            began = time.perf_counter()
            ledger.connection.ask(partial(Publication(job, number, payload), producer=claims.producer))
            seconds.append(time.perf_counter() - began)
        ledger.forget(job)
    return statistics.median(seconds)


def _stages(lines: list[str]) -> dict[str, float]:
    """The mean seconds of a batch, stage by stage, as the workers' logs tell them."""
    seconds: dict[str, list[float]] = {}
    for line in lines:
        if match := re.search(r" s \((\w+ [\d.]+(?:, \w+ [\d.]+)*)\)", line):
            for part in match[1].split(", "):
                stage, value = part.split(" ")
                seconds.setdefault(stage, []).append(float(value))
    return {stage: statistics.mean(values) for stage, values in seconds.items()}


def _verify(job: Job, run: JobRun) -> JobRun:
    """The run with what ``python -m verify`` says of its job."""
    began, memory = time.perf_counter(), 0.0
    command = [sys.executable, "-m", "verify", str(job.folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent) as verifier:
        while verifier.poll() is None:
            memory = max(memory, memory_of(verifier.pid).get("VmHWM", 0.0))
            time.sleep(0.05)
    seconds, verdict = time.perf_counter() - began, load_verdict(job)
    if verdict is None:
        raise UserError(f"python -m verify ended with status {verifier.returncode} and without a verdict")
    found = {"rows": float(verdict.compared), "lowest_cosine": verdict.total.min_cosine or 0.0}
    took = {"seconds": round(seconds, 2), "memory": round(memory, 1)}
    return replace(run, verified=verifier.returncode == 0, verification=found | took)
