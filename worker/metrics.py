"""What a worker tells Prometheus, at ``EMBEDMILL_METRICS_PORT``.

The children count, each in files of its own that outlive it; the parent adds all of them up when it is asked. That is
prometheus_client's multi-process mode, which it chooses as it is imported: the worker must be started with
``environment``.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from contract.errors import UserError
from contract.settings import settings
from contract.shard import ShardInfo
from worker.stages import Stages

_FOLDER, _PREFIX = "PROMETHEUS_MULTIPROC_DIR", "embedmill-metrics-"

ATTEMPTS = Counter("embedmill_attempts", "Times that a batch was begun.")
DEAD_BATCHES = Counter("embedmill_dead_batches", "Batches that were given up.")
_BATCHES = Counter("embedmill_batches", "Shards committed.")
_COMPUTED_TOKENS = Counter("embedmill_computed_tokens", "Tokens computed for committed shards, padding included.")
_SUMS = {
    "rows": Counter("embedmill_rows", "Rows in committed shards."),
    "tokens": Counter("embedmill_tokens", "Tokens in committed shards, after truncation, without padding."),
    "truncated": Counter("embedmill_rows_truncated", "Rows with more tokens than the engine takes."),
    "recomputed": Counter("embedmill_rows_recomputed", "Rows computed again in FP32."),
    "failed": Counter("embedmill_rows_failed", "Rows with an error in place of a vector."),
}
_SECONDS = Histogram(
    "embedmill_batch_seconds",
    "Seconds of a batch in each stage: fetch, decode, compute, write.",
    ["stage"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)


def time(stages: Stages) -> None:
    """Add a batch's seconds."""
    for stage, seconds in asdict(stages).items():
        _SECONDS.labels(stage).observe(seconds)


def count(info: ShardInfo) -> None:
    """Add a committed shard's sums."""
    _BATCHES.inc()
    _COMPUTED_TOKENS.inc(info.computed_tokens)
    for field, counter in _SUMS.items():
        counter.inc(getattr(info, field))


def environment() -> dict[str, str]:
    """What must be in the worker's environment before it starts, and is not yet: nothing where no port is set."""
    if settings().metrics_port is None or _FOLDER in os.environ:
        return {}
    return {_FOLDER: tempfile.mkdtemp(prefix=_PREFIX)}


def serve() -> None:
    """In the parent, before it has children: answer Prometheus from now on, if a port is set.

    Raises:
        UserError: the port is taken.
    """
    port = settings().metrics_port
    if port is None:
        return
    folder = Path(os.environ[_FOLDER])
    if folder.name.startswith(_PREFIX):  # and not one that the user chose
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    registry.register(GpuMemory())
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise UserError(
            f"no metrics on port {port} ({error.strerror})",
            "expected a port that nothing else listens on",
            "set EMBEDMILL_METRICS_PORT to another, or unset it",
        ) from None


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
