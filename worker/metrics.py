"""What a worker tells Prometheus, at ``EMBEDMILL_METRICS_PORT``.

The children count, each in files of its own that outlive it; the parent adds all of them up when it is asked. That is
prometheus_client's multi-process mode, which it chooses as it is imported (``worker.environment``).
"""

import importlib.metadata
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from contract.errors import UserError
from contract.job import Job
from contract.redis.heartbeat import State, alive_at, computing
from contract.redis.ledger import Ledger
from contract.settings import settings
from contract.shard import ShardInfo
from worker.stages import Stages

log = logging.getLogger("embedmill.worker")

_RESERVED = 64 * 1024
"""Bytes of a process's file of counts, as prometheus_client makes it."""


class ReservedDict(MmapedDict):
    """A file whose space is there before it is mapped: to write a page that a full disk has no space for is the death
    of the process."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            with open(filename, "ab") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVED)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]


setattr(prometheus_client.values, "MmapedDict", ReservedDict)  # noqa: B010 - before the metrics below open a file

counting = True
"""Whether this process has a file to count in."""

ATTEMPTS = Counter("embedmill_attempts", "Times that a batch was begun.")
_DEAD_BATCHES = Counter("embedmill_dead_batches", "Batches that were given up.")
_OF = ("job", "engine")
_BATCHES = Counter("embedmill_batches", "Shards committed.", _OF)
_COMPUTED_TOKENS = Counter("embedmill_computed_tokens", "Tokens computed for committed shards, padding included.", _OF)
SUMS = {
    "rows": Counter("embedmill_rows", "Rows in committed shards.", _OF),
    "tokens": Counter("embedmill_tokens", "Tokens in committed shards, after truncation, without padding.", _OF),
    "truncated": Counter("embedmill_rows_truncated", "Rows with more tokens than the engine takes.", _OF),
    "recomputed": Counter("embedmill_rows_recomputed", "Rows computed again in FP32.", _OF),
    "failed": Counter("embedmill_rows_failed", "Rows with an error in place of a vector.", _OF),
}
_SECONDS = Histogram(
    "embedmill_batch_seconds",
    "Seconds of a batch in each stage: fetch, decode, compute, write.",
    ["stage"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)


def begin() -> None:
    """In a child, before it counts: have its file made. Without space for it the child counts nothing, and says so."""
    global counting
    try:
        ATTEMPTS.inc(0)
    except OSError as error:
        counting = False
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        log.error("this process is not in the metrics: no space for its counts (%s: %s)", error.strerror, folder)


def attempt() -> None:
    """A batch was begun."""
    if counting:
        ATTEMPTS.inc()


def dead_batch() -> None:
    """A batch was given up."""
    if counting:
        _DEAD_BATCHES.inc()


def time(stages: Stages) -> None:
    """Add a batch's seconds."""
    if not counting:
        return
    for stage, seconds in asdict(stages).items():
        _SECONDS.labels(stage).observe(seconds)


def count(info: ShardInfo, job: Job) -> None:
    """Add a committed shard's sums."""
    if not counting:
        return
    _BATCHES.labels(job.id, job.engine).inc()
    _COMPUTED_TOKENS.labels(job.id, job.engine).inc(info.computed_tokens)
    for field, counter in SUMS.items():
        counter.labels(job.id, job.engine).inc(getattr(info, field))


def serve() -> None:
    """In the parent, before it has children: answer Prometheus from now on, if a port is set.

    Raises:
        UserError: the port is taken.
    """
    port = settings().metrics_port
    if port is None:
        return
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    registry.register(GpuMemory())
    registry.register(WhatRedisKnows())
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise UserError(
            f"no metrics on port {port} ({error.strerror})",
            "expected a port that nothing else listens on",
            "set EMBEDMILL_METRICS_PORT to another, or unset it",
        ) from None


class WhatRedisKnows(Collector):
    """What is the same whichever worker is asked: the jobs that are under way, and the workers. Nothing while Redis
    does not answer."""

    def __init__(self) -> None:
        self._ledger = Ledger(patience=0)

    def collect(self) -> Iterator[Metric]:
        """embedmill's version, the jobs' rows and messages, the workers by what they do."""
        build = GaugeMetricFamily("embedmill_build_info", "The version of embedmill.", labels=["version"])
        build.add_metric([importlib.metadata.version("embedmill")], 1)
        yield build
        queued = GaugeMetricFamily("embedmill_queued_batches", "Batches that wait for a worker.", labels=_OF)
        rows = GaugeMetricFamily("embedmill_job_rows", "Rows of a job that is under way.", labels=_OF)
        done = GaugeMetricFamily("embedmill_job_rows_done", "Rows of it that have a shard.", labels=_OF)
        workers = GaugeMetricFamily("embedmill_workers", "Workers by what they do.", labels=["state"])
        try:
            for job in filter(None, map(self._ledger.job, sorted(self._ledger.jobs()))):
                queued.add_metric([job.id, job.engine], self._ledger.queued(job.key))
                rows.add_metric([job.id, job.engine], job.rows)
                done.add_metric([job.id, job.engine], self._ledger.rows(job.key))
            now = self._ledger.now()
            alive = [one for one in computing(self._ledger.heartbeats()) if alive_at(one, now)]
        except UserError:
            return
        for state in get_args(State):
            workers.add_metric([state], sum(one.state == state for one in alive))
        yield from (queued, rows, done, workers)


class GpuMemory(Collector):
    """Memory of the machine's NVIDIA GPUs; nothing where there is none, or no nvidia-ml-py.

    It is NVML that is asked: unlike CUDA it leaves no context behind, which the parent must not have.
    """

    def __init__(self) -> None:
        self._gpus = _gpus()

    def collect(self) -> Iterator[Metric]:
        """Bytes used, by whatever program, and bytes in all, by the GPU's number."""
        if not self._gpus:
            return
        import pynvml

        used = GaugeMetricFamily("embedmill_gpu_memory_used_bytes", "GPU memory in use.", labels=["gpu"])
        total = GaugeMetricFamily("embedmill_gpu_memory_total_bytes", "GPU memory in all.", labels=["gpu"])
        for number, gpu in enumerate(self._gpus):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            used.add_metric([str(number)], memory.used)
            total.add_metric([str(number)], memory.total)
        yield from (used, total)


def _gpus() -> list[Any]:
    """NVML's handles."""
    try:
        import pynvml
    except ImportError:  # it comes with the extra `gpu`
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
