"""What Prometheus gets from a real worker, and the worker's log in JSON."""

import errno
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from contract.engine import EngineSpec
from contract.job import Job
from contract.jobs import latest_job
from contract.redis.heartbeat import computing
from contract.redis.keys import queue_of
from contract.settings import settings
from contract.shard import ShardInfo, read_info
from embedmill.processes import celery_worker, free_port, redis_server
from tests.commands import called, wait_until
from tests.conftest import JARGON
from tests.contract.samples import WholeLedger, a_job
from worker import metrics

Samples = dict[tuple[str, str], float]
"""Name and stage (empty for a metric without stages) → value."""


@contextmanager
def measured_worker(log: Path, *options: str, **env: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A worker with metrics and a log in JSON; its process, and the port."""
    port = free_port()
    env |= {"EMBEDMILL_METRICS_PORT": str(port), "EMBEDMILL_LOG": "json", "TMPDIR": str(log.parent)}
    with celery_worker(log, *options, env=env) as worker:
        yield worker, port


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found: Samples = defaultdict(float)
        for sample in (sample for family in families for sample in family.samples if "le" not in sample.labels):
            found[sample.name, sample.labels.get("stage", "")] += sample.value  # over all jobs and engines
        return found


def produce(limit: int, *more: str, expect: int = 0) -> Job:
    rows = ("--dataset", JARGON, "--text-column", "text", "--limit", limit, "--batch-rows", 20)
    called("producer", *rows, *more, expect=expect)
    return latest_job()


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def folders(under: Path) -> list[Path]:
    return list(under.glob("embedmill-metrics-*"))


@dataclass
class Told:
    """What a worker with two children told in the course of two jobs, its children killed between them."""

    infos: list[ShardInfo]
    before: Samples
    after: Samples
    log: list[dict[str, Any]]
    left: list[Path]
    """Folders of figures that are there when the worker has stopped."""


@pytest.fixture(scope="module")
def told(session_engines: Path, _tiny_built: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("measured")
    with redis_server(folder) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "REDIS_URL": url,
            "ENGINES": str(session_engines),
            "ENGINE": "tiny",
            "OUTPUT": str(folder / "output"),
        }.items():
            patch.setenv(f"EMBEDMILL_{name}", value)
        settings.cache_clear()
        with measured_worker(folder / "worker.log", "--concurrency", "2") as (worker, port):
            before = scrape(port)
            jobs = [produce(100)]
            for child in psutil.Process(worker.pid).children():
                child.kill()
            jobs.append(produce(140))
            after, log = scrape(port), lines_of(folder / "worker.log")
            assert len(folders(folder)) == 1
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)
        infos = [
            read_info(job.shard(batch)).model_copy(update={"digests": {}})
            for job in jobs
            for batch in range(job.batches)
        ]
    settings.cache_clear()
    return Told(infos, before, after, log, folders(folder))


def test_the_childrens_figures_are_added_up_and_outlive_them(told: Told) -> None:
    expected = {
        "rows": 240,
        "batches": 12,
        "attempts": 12,
        "tokens": sum(info.tokens for info in told.infos),
        "computed_tokens": sum(info.computed_tokens for info in told.infos),
        "rows_truncated": sum(info.truncated for info in told.infos),
        "rows_recomputed": 0,
        "rows_failed": 0,
        "dead_batches": 0,
    }
    assert {name: told.after[f"embedmill_{name}_total", ""] for name in expected} == expected
    assert all(told.before.get((f"embedmill_{name}_total", ""), 0) == 0 for name in expected)


def test_every_stage_of_a_batch_is_timed(told: Told) -> None:
    for stage in ("fetch", "decode", "compute", "write"):
        assert told.after["embedmill_batch_seconds_count", stage] == 12
    stages = sum(told.after["embedmill_batch_seconds_sum", stage] for stage in ("decode", "compute"))
    assert 0 < stages <= sum(info.seconds for info in told.infos)


def test_a_stopped_worker_leaves_no_figures_behind(told: Told) -> None:
    assert told.left == []


def test_a_log_in_json_has_an_object_on_every_line_and_a_shards_sums_in_its_own(told: Told) -> None:
    assert all({"time", "level", "logger", "process", "message"} <= line.keys() for line in told.log)
    infos = [
        ShardInfo.model_validate({field: line[field] for field in ShardInfo.model_fields if field != "digests"})
        for line in told.log
        if "rows" in line
    ]
    assert any("SIGKILL" in line["message"] for line in told.log)
    assert sorted(infos, key=str) == sorted(told.infos, key=str)


def test_batches_that_are_given_up_are_counted_and_their_errors_logged(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    log, ledger = tmp_path / "worker.log", WholeLedger(patience=5)
    job = produce(40, "--detach")
    for number in range(2):  # bytes with a right hash that are no batch
        ledger.withdraw(job.key, number)
        ledger.publish(job, number, b"no batch")
    with measured_worker(log, EMBEDMILL_ATTEMPTS="1") as (_, port):
        produce(40, expect=1)
        found, lines = scrape(port), lines_of(log)
    assert found["embedmill_dead_batches_total", ""] == 2
    assert found["embedmill_attempts_total", ""] == 4
    assert found.get(("embedmill_rows_total", ""), 0) == 0
    assert {line["batch"] for line in lines if "given up" in line["message"] and line["job"] == job.id} == {0, 1}
    assert any("Traceback" in line.get("exc_info", "") for line in lines)


def test_a_taken_port_ends_the_worker_at_once_with_a_line_that_says_so(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    with measured_worker(tmp_path / "worker.log") as (_, port):
        env = os.environ | {"EMBEDMILL_METRICS_PORT": str(port)}
        second = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
        told = subprocess.run(second, env=env, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1
    assert f"Error: no metrics on port {port} (Address already in use)" in told.stderr


def test_without_a_port_nothing_is_made_and_nothing_answers(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    with celery_worker(tmp_path / "worker.log", env={"TMPDIR": str(tmp_path)}) as worker:
        process = psutil.Process(worker.pid)
        listening = [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        assert listening == []
        assert "PROMETHEUS_MULTIPROC_DIR" not in process.environ()
    assert folders(tmp_path) == []


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_space_for_a_childs_counts_is_taken_before_they_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page without space on the disk would end the process as it is written: SIGBUS."""
    file = tmp_path / "counter_1.db"
    metrics.ReservedDict(str(file)).close()  # type: ignore[no-untyped-call]
    assert file.stat().st_blocks * 512 >= 64 * 1024
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        metrics.ReservedDict(str(tmp_path / "counter_2.db"))


def test_a_child_without_space_for_its_counts_works_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics, "counting", True)
    monkeypatch.setattr(metrics.ATTEMPTS, "inc", full)
    metrics.begin()
    metrics.attempt()
    (record,) = caplog.records
    assert "this process is not in the metrics: no space for its counts (No space left on device" in record.getMessage()


def test_the_memory_of_every_gpu_is_told_and_of_none_where_there_is_none() -> None:
    """As the driver's own files have it, not NVML."""
    cards = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    told = {family.name: family.samples for family in metrics.GpuMemory().collect()}
    assert len(told.get("embedmill_gpu_memory_total_bytes", [])) == cards
    for used, total in zip(*told.values(), strict=True):
        assert 0 <= used.value <= total.value
        assert used.labels == total.labels


def test_what_redis_knows_is_told_by_job_engine_and_state(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    job, ledger = produce(40, "--detach"), WholeLedger(patience=5)
    ledger.set_rows(job, 20)
    unserved = a_job(tmp_path / "elsewhere", rows=30)  # of an engine that is not here, so that its messages stay
    ledger.announce(unserved)
    for number in range(3):
        redis.Redis.from_url(redis_url).rpush(queue_of(unserved.key), f"message {number}")
    with measured_worker(tmp_path / "worker.log") as (_, port):
        # A message is on no list between Redis's and the worker's, so that no message does not mean no batch.
        wait_until(lambda: ledger.rows(job.key) == 60 and not ledger.held())
        wait_until(lambda: [one.state for one in computing(ledger.heartbeats())] == ["idle"])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    told = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    expected = {
        ("embedmill_queued_batches", unserved.id, unserved.engine): 3,
        ("embedmill_queued_batches", job.id, "tiny"): 0,
        ("embedmill_job_rows", job.id, "tiny"): 40,
        ("embedmill_job_rows_done", job.id, "tiny"): 60,  # 20 by the producer, 40 by the worker
        ("embedmill_build_info", importlib.metadata.version("embedmill")): 1,
        ("embedmill_workers", "computing"): 0,
        ("embedmill_workers", "idle"): 1,
    }
    by_names = {(name, *sorted(labels)): value for (name, *labels), value in told.items()}
    assert {(name, *labels): by_names[name, *sorted(labels)] for name, *labels in expected} == expected
