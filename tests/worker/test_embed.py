from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.files import sha256_of
from contract.job import Job
from contract.shard import read_info
from producer.batches import batch_of, open_tokenizer
from tests.conftest import build_engine
from worker.embed import Embedder

TEXTS = ["A foo.", None, "bar " * 600, "", "A longer text about bits and bytes."]


def job_for(spec: EngineSpec, folder: Path) -> Job:
    job = Job(
        folder=folder / "job", dataset="d", config=None, split="train", column="text", revision="r", limit=None,
        prefix="", engine=spec.name, fingerprint=spec.fingerprint, rows=len(TEXTS), batch_rows=len(TEXTS),
    )  # fmt: skip
    job.save()
    return job


def batch_for(job: Job, spec: EngineSpec) -> Batch:
    return batch_of(job, 0, TEXTS, open_tokenizer(spec))


def test_a_batch_becomes_a_shard_that_says_what_it_holds(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path)
    batch = batch_for(job, tiny)
    Embedder(threads=1).embed(job, 0, batch.to_bytes())
    table = pq.read_table(job.shard(0))
    assert table["row_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert [vector is None for vector in table["embedding"].to_pylist()] == [False, True, False, False, False]
    assert table["truncated"].to_pylist() == [False, False, True, False, False]
    assert table["n_tokens"].to_pylist() == batch.n_tokens.tolist()
    info = read_info(job.shard(0))
    assert (info.rows, info.truncated, info.without_text, info.precision) == (5, 1, 1, "fp32")
    assert info.tokens == batch.lengths.sum() <= info.computed_tokens
    assert list(job.staging.iterdir()) == []


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
            Embedder(threads=1).embed(job, 0, other.to_bytes())
    assert job.committed() == set()


def test_an_engine_other_than_the_jobs_is_refused(tiny: EngineSpec, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path)
    other = job.model_copy(update={"fingerprint": "0" * 16})
    payload = replace(batch_for(job, tiny), engine="0" * 16).to_bytes()
    with pytest.raises(UserError, match=tiny.fingerprint):
        Embedder(threads=1).embed(other, 0, payload)


def test_vectors_that_are_not_finite_never_reach_a_shard(tiny_model: Path, tmp_path: Path) -> None:
    """The engine's own weights are broken here, so that a real inference gives NaN."""
    spec = build_engine(tiny_model, "broken")
    file = spec.folder / "model.onnx"
    graph = onnx.load(file)
    weights = next(w for w in graph.graph.initializer if w.name.endswith("LayerNorm.weight"))
    weights.CopyFrom(onnx.numpy_helper.from_array(np.full(32, np.nan, np.float32), weights.name))
    onnx.save(graph, file)
    broken = spec.model_copy(update={"onnx_sha256": sha256_of(file)})
    (spec.folder / "engine.json").write_text(broken.model_dump_json())
    job = job_for(broken, tmp_path)
    with pytest.raises(ArithmeticError, match="not finite"):
        Embedder(threads=1).embed(job, 0, batch_for(job, broken).to_bytes())
    assert job.committed() == set()
