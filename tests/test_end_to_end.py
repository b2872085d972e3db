"""From a model and a dataset to a verdict: the commands over a real Redis and a real worker."""

import csv
import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow.dataset as pads
import pytest
import sentence_transformers
from celery import Celery
from click.testing import Result
from sentence_transformers import SentenceTransformer

from bench.families import FAMILIES, save_family
from contract.compare import cosines
from contract.engine import EngineSpec
from contract.job import Job
from contract.jobs import latest_job
from contract.redis.keys import queue_of
from contract.redis.messages import TASK, direct_queue
from contract.settings import settings
from contract.vectors import dense_of
from embedmill.processes import celery_worker, redis_server
from engine_build.compare_export import truncate_at
from engine_build.outputs import opened_parts
from tests.commands import called, run, wait_until
from tests.conftest import JARGON, MINILM, build_engine
from tests.contract.samples import WholeLedger
from tests.verify.jobs import plant, scaled


@pytest.fixture(scope="module")
def station(
    session_engines: Path, _tiny_built: EngineSpec, _minilm_built: EngineSpec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A Redis server and one worker, started apart from everything else; its URL and the worker's log."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with redis_server() as url:
        env = {"EMBEDMILL_REDIS_URL": url, "EMBEDMILL_ENGINES": str(session_engines), "EMBEDMILL_ENGINE": "tiny"}
        with celery_worker(log, env=env):
            yield url, log


@pytest.fixture
def worker_log(station: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points this test's commands at the station."""
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", station[0])
    settings.cache_clear()
    return station[1]


def verified(*arguments: object) -> None:
    called("verify", *arguments)


def vectors(job: Job) -> np.ndarray:
    table = pads.dataset(job.data).to_table().sort_by("row_id")
    return np.stack(table["embedding"].to_numpy())


@pytest.mark.slow
def test_four_commands_on_a_json_file_a_csv_and_a_saved_folder(
    worker_log: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EMBEDMILL_ENGINE", raising=False)
    monkeypatch.setenv("EMBEDMILL_ENGINES", os.environ["EMBEDMILL_ENGINES"])
    called("engine_build", "--model", tiny_model, "--name", "four-commands", "--normalize")
    rows = datasets.load_dataset("json", data_files=str(JARGON), split="train").select(range(200))
    rows.to_csv(tmp_path / "jargon.csv")
    rows.save_to_disk(tmp_path / "saved")
    rows.to_json(tmp_path / "jargon.jsonl", force_ascii=False)
    found = []
    for dataset in ("jargon.jsonl", "jargon.csv", "saved"):
        produce = run if dataset == "saved" else called
        told = produce(
            "producer", "--dataset", dataset, "--text-column", "text", "--batch-rows", 64, "--engine", "four-commands"
        )
        assert "200 of 200" in told.stdout
        job = latest_job()
        assert job.batches == 4
        verified("--sample", 30)
        assert json.loads((job.folder / "verify.json").read_text())["checks"]
        found.append(vectors(job))
    told = called("verify", "--sample", 50)
    assert (told.stderr, "FAIL" in told.stdout) == ("", False)
    assert "Verified: 200 rows accounted for" in told.stdout
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_real_model_agrees_with_sentence_transformers_on_every_row(
    worker_log: Path, minilm: EngineSpec, tmp_path: Path
) -> None:
    lines = JARGON.read_text(encoding="utf-8").splitlines()
    longest = sorted(lines, key=len)[-6:]
    chosen = lines[:60] + longest
    (tmp_path / "some.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    told = called("producer", "--dataset", "some.jsonl", "--text-column", "text", "--batch-rows", 25)
    assert "66 of 66" in told.stdout
    verified("--sample", 40)
    model = SentenceTransformer(str(MINILM))
    model.max_seq_length = 512
    theirs = model.encode([json.loads(line)["text"] for line in chosen], batch_size=1)
    ours = vectors(latest_job())
    assert cosines(ours, theirs).min() >= 0.99999


@pytest.mark.parametrize(
    ("family", "runtime", "prompt"),
    [
        ("mpnet", "onnxruntime", None),
        ("qwen3", "torch", "query"),
        ("gemma3_text", "torch", "document"),
        ("LaBSE", "onnxruntime", None),
        ("nomic_bert", "onnxruntime", "document"),
        ("t5", "modules", None),
        ("SPLADE", "modules", None),
        ("ColBERT", "onnxruntime", None),
    ],
)
def test_a_whole_job_of_a_family(
    family: str, runtime: str, prompt: str | None, worker_log: Path, tmp_path: Path
) -> None:
    spec = build_engine(save_family(family, tmp_path / "family"), f"job-of-{family}", max_length=64)
    lines = JARGON.read_text("utf-8").splitlines()[:50]
    (tmp_path / "some.jsonl").write_text("\n".join(lines) + '\n{"text": ""}\n', "utf-8")
    options = ("--dataset", "some.jsonl", "--text-column", "text", "--batch-rows", 25, "--engine", spec.name)
    told = called("producer", *options, *(("--prompt", prompt) if prompt else ()))
    assert "51 of 51" in told.stdout
    assert f"engine {spec.name} is computed by {runtime} on a CPU" in worker_log.read_text()
    verified("--sample", 40)
    how = {"onnxruntime": "exported to ONNX", "torch": "packed rows in PyTorch", "modules": "the model's own modules"}
    assert f"({how[runtime]}, fp32)" in html.unescape((latest_job().folder / "report.html").read_text())
    job, model = latest_job(), getattr(sentence_transformers, spec.opened_by)(spec.model, device="cpu")
    assert job.prefix == (
        FAMILIES[family].prompts["document"] if spec.per_token else spec.prompts.get(prompt or "", "")
    )
    truncate_at(model, 64)
    texts = [json.loads(line)["text"] for line in lines]
    theirs = opened_parts(model, None, None).encode(texts, job.prefix)
    *ours, none = row_vectors(job, spec)
    assert none is None
    for found, expected in zip(ours, theirs, strict=True):
        assert found is not None
        assert cosines(found, expected).min() >= 0.99999


def row_vectors(job: Job, spec: EngineSpec) -> list[np.ndarray | None]:
    """Each row's vectors, ``[1, hidden]`` or ``[tokens, hidden]``, in the dataset's order; None where it has none."""
    table = pads.dataset(job.data).to_table().sort_by("row_id")
    if spec.layout != "sparse":
        return [row and np.atleast_2d(np.array(row, np.float32)) for row in table["embedding"].to_pylist()]
    rows = zip(table["indices"].to_pylist(), table["weights"].to_pylist(), strict=True)
    return [row and dense_of(np.array(row, np.int32), np.array(weights), spec.hidden) for row, weights in rows]


def test_rows_of_every_strange_kind_are_accounted_for(worker_log: Path, tiny: EngineSpec, tmp_path: Path) -> None:
    strange = [
        '{"text": ""}', '{"text": null}', json.dumps({"text": "x" * 1_000_000}),
        json.dumps({"text": "word " * 200_000}), json.dumps({"text": "\0" * 500}),
        '{"text": "half \\ud83d a pair"}', '{"text": "\\udc00"}',
        json.dumps({"text": "👩‍👩‍👧‍👦 🏳️‍🌈"}), json.dumps({"text": "שלום עולם مرحبا"}), json.dumps({"text": " \n\t "}),
        json.dumps({"text": "\u202e\u200b\ufeff"}), '{"text": "plain"}',
    ]  # fmt: skip
    (tmp_path / "strange.jsonl").write_text("\n".join(strange) + "\n", encoding="utf-8")
    told = called("producer", "--dataset", "strange.jsonl", "--batch-rows", 5)
    assert f"{len(strange)} of {len(strange)}" in told.stdout
    assert "without a text 3" in " ".join(told.stdout.replace("│", " ").split())
    verified("--sample", 40)
    table = pads.dataset(latest_job().data).to_table().sort_by("row_id")
    assert table["row_id"].to_pylist() == list(range(len(strange)))
    assert [row for row, vector in enumerate(table["embedding"].to_pylist()) if vector is None] == [0, 1, 9]
    assert [row for row, count in enumerate(table["n_tokens"].to_pylist()) if not count] == [0, 1, 9]
    assert table["truncated"].to_pylist() == [row == 3 for row in range(len(strange))]


def test_token_level_output_holds_the_real_tokens_only(worker_log: Path, tiny_model: Path, tmp_path: Path) -> None:
    spec = build_engine(tiny_model, "tokens-end-to-end", "tokens")
    called("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 100, "--engine", spec.name)
    job = latest_job()
    assert job.batch_rows == 64
    table = pads.dataset(job.data).to_table().sort_by("row_id")
    lengths = [len(tokens) for tokens in table["embedding"].to_pylist()]
    assert lengths == [min(count, 512) for count in table["n_tokens"].to_pylist()]
    verified(job.folder)


def test_a_second_run_computes_nothing_again(worker_log: Path, tiny: EngineSpec) -> None:
    command = ("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 300, "--batch-rows", 50)
    called(*command)
    job = latest_job()
    before = {path: path.stat().st_mtime_ns for path in job.data.iterdir()}
    job.shard(2).unlink()
    told = called(*command)
    after = {path: path.stat().st_mtime_ns for path in job.data.iterdir()}
    assert {path for path in before if before[path] != after[path]} == {job.shard(2)}
    assert "250 were there" in told.stdout


def test_an_interrupted_producer_says_how_to_go_on_and_does(worker_log: Path, minilm: EngineSpec) -> None:
    command = [sys.executable, "-m", "producer", "--dataset", str(JARGON), "--text-column", "text", "--limit", "160"]
    command += ["--batch-rows", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as producer:
        wait_until(lambda: list(Path("output").glob("*/data/*.parquet")))
        producer.send_signal(signal.SIGINT)
        told = producer.communicate(timeout=30)[1]
    assert producer.returncode == 130
    assert told.splitlines()[-1].startswith("Error: interrupted; ")
    assert "run the same command again" in told
    assert "Traceback" not in told
    before = {path: path.stat().st_mtime_ns for path in latest_job().data.iterdir()}
    assert "160 of 160" in called(*command[2:]).stdout
    assert all(path.stat().st_mtime_ns == made for path, made in before.items())
    verified("--sample", 10)


def test_a_detached_producer_leaves_and_the_job_goes_on(worker_log: Path, tiny: EngineSpec) -> None:
    command = ("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 200, "--batch-rows", 50)
    run(*command, "--detach")
    job = latest_job()
    wait_until(lambda: len(job.committed()) == job.batches)
    assert "200 were there" in called(*command).stdout


def test_a_killed_child_costs_no_row(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    slow = {"CHAOS_SECONDS": "1", "PYTHONPATH": str(JARGON.parent.parent)}
    command = [sys.executable, "-m", "producer", "--dataset", str(JARGON), "--text-column", "text", "--limit", "120"]
    with (
        celery_worker(log, app="bench.chaos.haunted", env=slow) as worker,
        subprocess.Popen([*command, "--batch-rows", "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as producer,
    ):
        wait_until(lambda: len(list(Path("output").glob("*/data/*.parquet"))) >= 1)
        for child in psutil.Process(worker.pid).children():
            child.kill()
        assert producer.wait(120) == 0, log.read_text()
    job = latest_job()
    assert job.committed() == set(range(4))
    verified("--sample", 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_ends_soon_and_its_batch_goes_to_another(
    tiny: EngineSpec, redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "producer", "--dataset", str(JARGON), "--text-column", "text"]
    command += ["--limit", "50", "--batch-rows", "50"]
    haunted = {"CHAOS_SECONDS": "90", "PYTHONPATH": str(JARGON.parent.parent)}
    first, second, ledger = tmp_path / "first.log", tmp_path / "second.log", WholeLedger(patience=5)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as producer:
        with celery_worker(first, app="bench.chaos.haunted", env=haunted) as worker:
            # Held is not enough: to Celery a batch is in work once a child has said that it took it, and one that is
            # stopped in the milliseconds before waits for the batch's end.
            inspect = Celery(broker=settings().redis_url, set_as_current=False).control.inspect(timeout=1)
            wait_until(lambda: any((inspect.active() or {}).values()))
            began = time.monotonic()
            worker.send_signal(number)
            worker.wait(60)
            assert time.monotonic() - began < 30  # of the 90 s that the batch takes
        assert (ledger.queued(latest_job().key), ledger.held()) == (1, [])
        with celery_worker(second):
            assert producer.wait(100) == 0, second.read_text()
    assert latest_job().committed() == {0}


def test_a_batch_that_always_fails_is_given_up_and_named_until_it_is_retried(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    command = ("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 100, "--batch-rows", 50)
    called(*command, "--detach")
    job, ledger = latest_job(), WholeLedger(patience=5)
    for number in range(2):  # bytes with a right hash that are no batch
        ledger.withdraw(job.key, number)
        ledger.publish(job, number, b"no batch")
    with celery_worker(tmp_path / "worker.log", env={"EMBEDMILL_ATTEMPTS": "1"}):
        told = run(*command, expect=1)
        assert "2 of 2 batches given up: 0, 1; batch 0: ValueError: no batch" in told.stderr
        assert "python -m producer retry" in told.stderr
        assert all(record.attempts == 1 and "batch.py" in record.where for record in ledger.dead(job).values())
        assert {"dead 0", "dead 1", "(after 1"} <= set(
            re.findall(r"dead [01]|\(after 1", called("producer", "status").stdout)
        )
        assert "dead batches" in called("producer", "list").stdout
        called(*command, expect=1)
        assert "100 of 100" in called("producer", "retry").stdout
    assert (
        "given up after 1 attempt and a search for the rows that it fails on" in (tmp_path / "worker.log").read_text()
    )


def test_messages_that_name_nothing_are_dropped_and_the_worker_goes_on(worker_log: Path, tiny: EngineSpec) -> None:
    sender = Celery(broker=settings().redis_url, set_as_current=False)
    called("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 10)
    job, ledger = latest_job(), WholeLedger(patience=5)
    ledger.announce(job)  # as if it were not done
    queue = direct_queue(queue_of(job.key))
    sender.send_task(TASK, args=("no-such-job", 0), queue=queue)
    wait_until(lambda: "no-such-job, which nobody announced" in worker_log.read_text())
    sender.send_task(TASK, args=(job.key, 99), queue=queue)
    wait_until(lambda: f"batch 99 of job {job.key}, which nobody announced" in worker_log.read_text())
    sender.send_task(TASK, args=(job.key, 0), queue=queue)
    wait_until(lambda: ledger.queued(job.key) + len(ledger.held()) == 0)
    assert job.committed() == {0}


@pytest.mark.slow
def test_every_row_of_a_csv_with_line_ends_in_its_texts_is_what_encode_gives(
    tiny: EngineSpec, worker_log: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]
    texts = [f'{lines[number]}\n\n"{lines[number + 700]}",\r\n{number}' for number in range(642)]
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["review", "n"], *([text, "007"] for text in texts)])
    called("producer", "--dataset", tmp_path / "reviews.csv", "--batch-rows", 100)
    job = latest_job()
    reference = SentenceTransformer(tiny.model, device="cpu")
    reference.max_seq_length = tiny.max_length
    assert cosines(vectors(job), reference.encode(texts, show_progress_bar=False)).min() >= 0.99999
    found = pads.dataset(job.data).to_table().sort_by("row_id")["n_tokens"].to_pylist()
    assert found == [len(ids) for ids in reference.tokenizer(texts, verbose=False)["input_ids"]]
    verified("--sample", "all")


def advised(told: Result) -> list[list[str]]:
    """The commands in what the verifier says: behind a colon, to the line's end."""
    lines = [line.rpartition(": ")[2] for line in told.output.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("harm", ["one shard", "more shards than are named", "a stray file", "a missing shard"])
def test_what_the_verifier_advises_mends_the_job_and_destroys_nothing(
    harm: str, tiny: EngineSpec, worker_log: Path
) -> None:
    called("producer", "--dataset", JARGON, "--limit", 150, "--batch-rows", 5)
    job = latest_job()
    before = {batch: job.shard(batch).read_bytes() for batch in range(30)}
    removed: list[str] = []
    for batch in {"one shard": [3], "more shards than are named": range(2, 27)}.get(harm, []):
        plant(job, batch, scaled(1, 2.0))
        removed.append(job.shard(batch).name)
    if harm == "a stray file":
        (job.data / "notes.txt").write_text("mine")
        removed.append("notes.txt")
    if harm == "a missing shard":
        job.shard(7).unlink()
    harmed = {name: (job.data / name).read_bytes() for name in removed}

    told = called("verify", "--sample", 3, expect=1)
    ((python, dash_m, *command),) = advised(told)
    assert (python, dash_m) == ("python", "-m")
    called(*command)
    verified("--sample", "3")
    assert {name: (job.folder / "aside" / f"{name}.1").read_bytes() for name in removed} == harmed
    kept = {batch: job.shard(batch).read_bytes() == content for batch, content in before.items()}
    assert all(kept[batch] for batch in range(30) if job.shard(batch).name not in removed and batch != 7)


def test_an_edited_job_is_told_as_that_and_nothing_is_touched(tiny: EngineSpec, worker_log: Path) -> None:
    called("producer", "--dataset", JARGON, "--limit", 20, "--batch-rows", 10)
    job = latest_job()
    file = job.folder / "job.json"
    genuine, shards = file.read_text(), {batch: job.shard(batch).read_bytes() for batch in (0, 1)}
    file.write_text(genuine.replace('"batch_rows": 10', '"batch_rows": 20'))
    for command in (["verify"], ["producer", "retry"], ["producer", "status"]):
        told = called(*command, expect=1)
        assert "job.json was edited" in told.stderr
        assert told.stderr.count("\n") == 1
        assert "python -m producer retry" not in told.stdout
    file.write_text(genuine)
    assert {batch: job.shard(batch).read_bytes() for batch in (0, 1)} == shards
    verified("--sample", "3")
