"""The benchmarks' own parts, and one small run of each through the real thing."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import bench.engine_loop
import bench.job
from bench.job_run import killed_at
from bench.machine import gpus
from bench.records import Record, load, store
from bench.scale import Plan, Units, table
from bench.texts import KINDS, texts, write
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from producer.tokenizer import open_tokenizer, tokenize

ROOT = Path(__file__).parent.parent


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Runs ``python -m bench.job`` with these words, in this process. What it sets for those that it starts is undone
    afterwards."""
    for name in ("EMBEDMILL_ENGINES", "EMBEDMILL_ENGINE", "EMBEDMILL_REDIS_URL"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.chdir(ROOT)

    def measured(*words: object) -> None:
        told = CliRunner().invoke(bench.job.main, [str(word) for word in words], catch_exceptions=False)
        assert told.exit_code == 0, told.output

    yield measured
    settings.cache_clear()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_the_rows_have_the_lengths_that_they_should(minilm: EngineSpec) -> None:
    tokenizer = open_tokenizer(minilm)
    reviews = tokenize(list(texts("reviews", 3000)), tokenizer)[1]
    assert np.minimum(reviews, 512).mean() == pytest.approx(280, rel=0.04)
    assert (reviews > 512).mean() == pytest.approx(0.15, abs=0.03)
    assert tokenize(list(texts("short", 3000)), tokenizer)[1].mean() == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_the_rows_however_many_there_are(kind: str, tmp_path: Path) -> None:
    rows = 50 if kind == "documents" else 5000  # of 4,000 tokens each
    some = list(texts(kind, rows, seed=3))
    assert some[:20] == list(texts(kind, 20, seed=3)) != list(texts(kind, 20, seed=4))
    write(tmp_path / "rows.csv", kind, rows, seed=3)
    write(tmp_path / "rows.parquet", kind, rows, seed=3)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == some
    assert pq.read_table(tmp_path / "rows.parquet")["text"].to_pylist() == some


def test_a_record_takes_the_place_of_an_earlier_one_of_the_same_thing(tmp_path: Path) -> None:
    target = tmp_path / "benchmarks" / "job.json"

    def record(system: str, rows_per_s: float) -> Record:
        return Record(
            system=system, dataset="short", machine="a mill", model="tiny", date="", rows=10, seconds=1.0,
            rows_per_s=rows_per_s, tokens_per_s=40.0, batch="4",
        )  # fmt: skip

    store([record("engine alone", 1.0), record("embedmill job", 2.0)], target)
    store([record("embedmill job", 3.0)], target)
    assert load(target) == [record("engine alone", 1.0), record("embedmill job", 3.0)]


@pytest.mark.slow
def test_the_whole_job_is_measured(tiny: EngineSpec, tmp_path: Path, measure: Callable[..., None]) -> None:
    target = tmp_path / "job.json"
    options = ["--rows", "200", "--batch-rows", "64", "--kind", "short", "--engine-seconds", "0.2", "--verify"]
    measure("--engine", tiny.name, *options, "--json", target)
    records = {record.system: record for record in load(target)}
    assert list(records) == ["sentence-transformers fp32", "engine alone, onnxruntime", "embedmill job, onnxruntime"]
    job, alone = records["embedmill job, onnxruntime"], records["engine alone, onnxruntime"]
    assert (job.rows, job.workers, job.children, job.verified, job.hidden) == (200, 1, 1, True, 32)
    assert job.rows_per_s == pytest.approx(200 / job.seconds, rel=0.01)
    assert job.whole_to_engine == pytest.approx(job.rows_per_s / alone.rows_per_s, rel=0.01)
    assert job.job_to_engine
    assert job.whole_to_engine
    assert job.job_to_engine >= job.whole_to_engine
    assert list(job.stages) == ["tokenize", "publish", "fetch", "decode", "compute", "write"]
    assert all(seconds > 0 for seconds in job.stages.values())
    assert {"worker 0", "producer", "redis"} <= job.memory.keys()
    assert job.verification.keys() == {"rows", "lowest_cosine", "seconds", "memory"}
    assert job.verification["rows"] == 200
    assert 0.99999 < job.verification["lowest_cosine"] <= 1.0001
    assert job.verification["memory"] > 100
    assert (job.gpu_busy is None) == (not gpus())
    tokens = [record.tokens_per_s / record.rows_per_s for record in records.values()]
    assert tokens == pytest.approx([tokens[0]] * 3, rel=0.01)  # each counts the same tokens


def test_a_job_without_a_model_is_measured(tiny: EngineSpec, tmp_path: Path, measure: Callable[..., None]) -> None:
    target = tmp_path / "job.json"
    measure("--engine", "tiny", "--rows", "100", "--kind", "short", "--null", "--json", target)
    (record,) = load(target)
    assert (record.system, record.rows, record.runtime) == ("embedmill job, null engine", 100, "none")
    assert record.job_to_engine is None
    assert record.producer_cpu
    assert record.worker_cpu


@pytest.mark.slow
def test_what_a_killed_worker_costs_is_measured(tiny: EngineSpec, tmp_path: Path, measure: Callable[..., None]) -> None:
    target = tmp_path / "job.json"
    options = ["--rows", "6000", "--batch-rows", "32", "--kind", "short", "--children", "2"]
    measure("--engine", tiny.name, *options, "--null", "--kill", "worker", "--json", target)
    (record,) = load(target)
    assert (record.system, record.rows, record.children) == ("embedmill job, null engine, worker killed", 6000, 2)
    assert record.recovery
    assert 0 < record.recovery < record.seconds


def test_one_producer_alone_is_not_killed() -> None:
    told = CliRunner().invoke(bench.job.main, ["--producers", "1", "--kill", "producer"])
    assert (told.exit_code, "expected several --producers for --kill producer" in told.output) == (2, True)


def test_a_job_that_ends_before_its_kill_is_an_error(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim, subprocess.Popen(["true"]) as producer:
        with pytest.raises(UserError, match="the job ended before a quarter of its shards was seen"):
            killed_at(tmp_path, victim, [producer])
        assert victim.poll() is None
        victim.kill()


def test_the_tokenizing_processes_are_measured(tmp_path: Path) -> None:
    target = tmp_path / "tokenize.json"
    small = ["--batches", "4", "--batch-rows", "32", "--kind", "short"]
    run("-m", "bench.tokenize", "--processes", "1,2", *small, "--json", target)
    one, two = json.loads(target.read_text())
    assert (one["processes"], one["rows"], two["processes"], two["rows"]) == (1, 128, 2, 256)
    assert one["per_core"] == 1.0
    assert two["per_core"] == pytest.approx(two["rows_per_s"] / 2 / one["rows_per_s"], rel=0.05)
    # What padding takes is a difference of two medians.
    assert all(seconds > 0 for stage, seconds in one["stages"].items() if stage != "joining")


def test_a_job_on_paper_is_computed_from_its_units() -> None:
    units = Units(
        gpu_rows=5000.0, core_rows=2000.0, batch_seconds=0.002, wire_bytes=700.0, shard_bytes=2800.0, listing=2e-6
    )
    plan = Plan(rows=36_000_000, gpus=2, batch_rows=1000, gpu_price=3.0, outstanding=14_000_000, network=70e6)
    found = {
        what: (value, why) for what, value, why in (line.strip("| ").split(" | ") for line in table(plan, units)[2:])
    }
    assert found["rows/s"][0] == "10,000"
    assert found["hours"][0] == "1.00"
    assert found["GPU-hours, dollars"][0] == "2, 6"
    assert found["tokenizer cores"][0] == "5"
    assert found["batches, shards, messages"] == ("36,000", "10 a second")
    assert found["a producer's one thread"][0] == "2 % busy"
    assert found["Redis, in and out each"] == ("7 MB/s", "700 bytes a row; 10 % of its network")
    assert found["batches in Redis"] == ("14 MB", "2.0 s of work")
    assert found["one listing of a bucket"][0] == "36 LIST requests"
    assert found["output"][0] == "0.10 TB"


def test_a_folder_without_rows_is_refused_and_not_computed_for_ever(tmp_path: Path) -> None:
    told = CliRunner().invoke(bench.engine_loop.main, [str(tmp_path)])
    assert told.exit_code == 1
    assert f"Error: {tmp_path} has 0 batches and no row; expected batches with rows" in told.output
