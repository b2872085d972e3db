from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest

import worker.embed
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.files import sha256_of
from contract.job import Job
from contract.shard import read_info
from contract.store import location
from producer.batches import batch_of
from producer.tokenizer import open_tokenizer
from tests.conftest import build_engine
from tests.contract.samples import packed
from worker.embed import Embedder
from worker.runtime.interface import Done, Inference, unseen
from worker.runtime.onnx import OnnxEngine, onnx_engine
from worker.serving import CannotServe

TEXTS = ["A foo.", None, "bar " * 600, "\u200b", "A longer text about bits and bytes."]


def job_for(spec: EngineSpec, folder: Path, fingerprint: str | None = None) -> Job:
    job = Job.create(
        location(folder), dataset="d", config=None, split="train", text="{text}", revision="r", limit=None,
        prefix="", engine=spec.name, fingerprint=fingerprint or spec.fingerprint, rows=len(TEXTS),
        batch_rows=len(TEXTS),
    )  # fmt: skip
    job.save()
    return job


def batch_for(job: Job, spec: EngineSpec) -> Batch:
    return batch_of(job, 0, TEXTS, open_tokenizer(spec))


def test_a_batch_becomes_a_shard_that_says_what_it_holds(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path)
    batch, began = batch_for(job, tiny), datetime.now(UTC)
    Embedder(threads=1).embed(job, 0, packed(batch))
    table = pq.read_table(job.shard(0))
    assert table["row_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert [vector is None for vector in table["embedding"].to_pylist()] == [False, True, False, False, False]
    assert table["truncated"].to_pylist() == [False, False, True, False, False]
    assert table["n_tokens"].to_pylist() == batch.n_tokens.tolist()
    info = read_info(job.shard(0))
    assert began <= info.finished <= datetime.now(UTC)
    assert (info.rows, info.truncated, info.without_text, info.precision) == (5, 1, 1, "fp32")
    assert info.tokens == batch.lengths.sum() <= info.computed_tokens
    assert list(job.staging.iterdir()) == []


def test_the_seconds_of_a_batch_are_told_stage_by_stage(
    tiny: EngineSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, embedder = job_for(tiny, tmp_path), Embedder(threads=1)
    with caplog.at_level("INFO"):
        embedder.embed(job, 0, packed(batch_for(job, tiny)))
    stages = embedder.stages
    assert stages.fetch == 0
    assert min(stages.decode, stages.compute, stages.write) > 0
    assert stages.decode + stages.compute <= read_info(job.shard(0)).seconds
    assert f" s (fetch 0.000, decode {stages.decode:.3f}, compute " in caplog.text


def test_a_batch_of_another_job_number_or_engine_is_refused(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path)
    batch = batch_for(job, tiny)
    for other in (
        replace(batch, job="other"),
        replace(batch, number=1),
        replace(batch, engine="other"),
        replace(batch, row_id=batch.row_id + 1),
    ):
        with pytest.raises(ValueError, match="expected batch 0"):
            Embedder(threads=1).embed(job, 0, packed(other))
    assert job.committed() == set()


def test_an_engine_other_than_the_jobs_is_refused(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path, fingerprint="0" * 16)
    with pytest.raises(CannotServe, match=tiny.fingerprint):
        Embedder(threads=1).get_ready_for(job)


def test_a_batch_costs_one_reading_of_the_engines_record(
    tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, embedder, read = job_for(tiny, tmp_path), Embedder(threads=1), []
    record = tiny.folder / "engine.json"
    read_bytes = Path.read_bytes

    def counted(file: Path) -> bytes:
        read.extend([file] if file == record else [])
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", counted)
    for batches in (1, 2):
        embedder.get_ready_for(job)
        embedder.embed(job, 0, packed(batch_for(job, tiny)))
        assert len(read) == batches


def test_a_folder_that_holds_another_job_or_none_is_refused(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path)
    for other in (job.model_copy(update={"folder": tmp_path}), job.model_copy(update={"revision": "other"})):
        with pytest.raises(CannotServe, match=r"no job in|another job"):
            Embedder(threads=1).get_ready_for(other)
    assert job.committed() == set()


def broken_engine(model: Path, name: str, word: str) -> EngineSpec:
    """An engine whose own weights make a real inference of any text with this word give NaN."""
    spec = build_engine(model, name)
    token = open_tokenizer(spec).tokenizer.token_to_id(word)
    file = spec.folder / "model.onnx"
    graph = onnx.load(file)
    weights = next(w for w in graph.graph.initializer if w.name.endswith("word_embeddings.weight"))
    values = onnx.numpy_helper.to_array(weights).copy()
    values[token] = np.nan
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(graph, file)
    broken = spec.model_copy(update={"onnx_sha256": sha256_of(file)})
    (spec.folder / "engine.json").write_text(broken.model_dump_json())
    return broken


def test_a_row_that_yields_nan_has_an_error_and_costs_no_other_row(tiny_model: Path, tmp_path: Path) -> None:
    spec = broken_engine(tiny_model, "broken", "about")
    job = job_for(spec, tmp_path)
    Embedder(threads=1).embed(job, 0, packed(batch_for(job, spec)))
    table = pq.read_table(job.shard(0))
    assert [error is None for error in table["error"].to_pylist()] == [True, True, True, True, False]
    assert [vector is None for vector in table["embedding"].to_pylist()] == [False, True, False, False, True]
    assert np.isfinite(np.stack(table["embedding"].drop_null().to_numpy())).all()
    assert (read_info(job.shard(0)).failed, read_info(job.shard(0)).recomputed) == (1, 0)


class HalfPrecise:
    """A real engine that claims FP16 and, as FP16 does at times, overflows on some rows."""

    precision = "fp16"

    def __init__(self, engine: OnnxEngine) -> None:
        self.spec, self.runtime, self._engine = engine.spec, engine.runtime, engine

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        found = self._engine.infer(batch, done)
        found.vectors[batch.row_id >= 3] = [np.inf] + [0] * (self.spec.hidden - 1)
        return found


@contextmanager
def half_precise(spec: EngineSpec, threads: int, gpu: int) -> Iterator[HalfPrecise]:
    with onnx_engine(spec, threads) as engine:
        yield HalfPrecise(engine)


def test_a_vector_that_overflows_in_fp16_is_computed_again_in_fp32(
    tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, half = job_for(tiny, tmp_path / "exact"), job_for(tiny, tmp_path / "half")
    Embedder(threads=1).embed(exact, 0, packed(batch_for(exact, tiny)))
    monkeypatch.setattr(worker.embed, "open_engine", half_precise)
    Embedder(threads=1).embed(half, 0, packed(batch_for(half, tiny)))
    left, right = (pq.read_table(job.shard(0)) for job in (exact, half))
    assert right["error"].null_count == len(right)
    np.testing.assert_allclose(
        np.stack(right["embedding"].drop_null().to_numpy()),
        np.stack(left["embedding"].drop_null().to_numpy()),
        atol=1e-6,
    )
    assert (read_info(half.shard(0)).recomputed, read_info(exact.shard(0)).recomputed) == (2, 0)
