"""Batches, models and tokenizers that were altered."""

import contextlib
import shutil
import time
from collections.abc import Iterator

import pyarrow.dataset as pads
import pytest

from contract.engine import EngineSpec
from contract.jobs import latest_job
from contract.settings import settings
from tests.commands import called, wait_until
from tests.contract.samples import WholeLedger
from tests.security.station import COMMAND, Station, point_at


def test_a_garbled_batch_is_refused_by_the_worker_and_published_again(as_producer: Station) -> None:
    station, client = as_producer, as_producer.client()
    with station.paused():
        called(*COMMAND, "--limit", 120, "--detach")
        job = latest_job()
        keys = [f"embedmill:{job.key}:batch:{number}" for number in range(job.batches)]
        whole = client.get(keys[0])
        assert isinstance(whole, bytes)
        client.set(keys[0], whole[:-1] + bytes([whole[-1] ^ 1]))  # as long, another hash
        client.set(keys[1], b"garbage")
        client.set(keys[2], whole * 2)
        client.delete(keys[3])
        client.lpush(keys[3], "no bytes at all")
        client.hset(f"embedmill:{job.key}:out", "4", "no entry at all")
        client.hset(f"embedmill:{job.key}:out", "four", "{}")
        client.hset(f"embedmill:{job.key}:dead", "5", "no record at all")
    told = called(*COMMAND, "--limit", 120)
    assert "120 of 120" in told.stdout
    assert job.committed() == set(range(6))
    rows = pads.dataset(job.data).to_table()["row_id"].to_pylist()
    assert sorted(rows) == list(range(120))
    for number in range(5):
        assert f"batch {number} of job {job.id} is refused" in station.log.read_text()


def test_a_batch_that_was_forged_with_its_hash_is_refused_too(as_producer: Station) -> None:
    station = as_producer
    with station.paused():
        called(*COMMAND, "--limit", 40, "--detach")
        job = latest_job()
        with pytest.MonkeyPatch.context() as patch:
            point_at(patch, f"redis://admin:admin@localhost:{station.port}/0")
            ledger = WholeLedger(patience=5)
        other = ledger.fetch(job.key, 1)
        assert other
        for number, forged in ((0, other), (1, b"no batch")):
            ledger.withdraw(job.key, number)
            ledger.publish(job, number, forged)
    told = called(*COMMAND, "--limit", 40, expect=1)
    assert "2 of 2 batches given up" in told.stderr
    dead = ledger.dead(job)
    assert "found batch 1 of job" in dead[0].error
    assert "no batch, but 8 bytes" in dead[1].error
    assert not job.committed()
    assert "40 of 40" in called("producer", "retry").stdout


@contextlib.contextmanager
def altered_engine(spec: EngineSpec, name: str, file: str) -> Iterator[EngineSpec]:
    """A copy of an engine, of another fingerprint, one of whose files has one more byte than its hash is of."""
    other = spec.model_copy(update={"name": name, "max_length": 256})
    shutil.copytree(spec.folder, other.folder)
    (other.folder / "engine.json").write_text(other.model_dump_json())
    with (other.folder / file).open("ab") as opened:
        opened.write(b"\n")
    try:
        yield other
    finally:
        shutil.rmtree(other.folder)


def test_an_altered_model_is_refused_by_the_worker(as_producer: Station, tiny: EngineSpec) -> None:
    with altered_engine(tiny, "altered-model", "model.onnx") as spec:
        called(*COMMAND, "--limit", 20, "--engine", spec.name, "--detach")
        job = latest_job()
        as_producer.said(f"cannot serve job {job.key}, and leaves it to others: ")
        until = time.monotonic() + 60
        told = ""  # between two tries, of a moment each, it is told
        while "cannot serve this job" not in " ".join(told.replace("│", " ").split()) and time.monotonic() < until:
            told = called("producer", "status").stdout
    line = next(line for line in as_producer.log.read_text().splitlines() if f"cannot serve job {job.key}" in line)
    assert f"engine.json records {spec.onnx_sha256}" in line
    assert "rebuild the engine" in line
    assert "cannot serve this job" in " ".join(told.replace("│", " ").split())
    ledger = WholeLedger(patience=5)
    wait_until(lambda: ledger.queued(job.key) == 1, 60)  # the worker holds it for a moment at each try
    assert (ledger.dead(job), job.committed()) == ({}, set())
    ledger.forget(job)


def test_an_altered_tokenizer_is_refused_before_there_is_a_job(as_producer: Station, tiny: EngineSpec) -> None:
    with altered_engine(tiny, "altered-tokenizer", "tokenizer/tokenizer.json") as spec:
        told = called(*COMMAND, "--limit", 20, "--engine", spec.name, expect=1)
    assert f"engine.json records {spec.tokenizer_sha256}" in told.stderr
    assert not list(settings().output.glob("*"))
