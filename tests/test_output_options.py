"""The options of the output by the commands, over a real Redis and a worker."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

import producer.command
import verify.command
from contract.engine import EngineSpec
from contract.job import Job, load_job
from contract.jobs import latest_job
from contract.store import location
from embedmill.processes import celery_worker
from embedmill.search import search
from tests.conftest import JARGON, MINILM

_TEXTS = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]
TEXTS = [*[text for text in _TEXTS if len(text) < 300][:24], max((text for text in _TEXTS[:200]), key=len)]
"""24 short ones, and one that is truncated."""


QUERY = ("a sound that a machine makes",)


def produced(*options: object) -> str:
    command = ["--dataset", "some.jsonl", "--text-column", "text", "--batch-rows", 10, *options]
    done = CliRunner().invoke(producer.command.main, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def stored(job: Job) -> np.ndarray:
    return np.stack(pq.read_table(str(job.data))["embedding"].to_numpy())


def verified() -> None:
    told = CliRunner().invoke(verify.command.main, ["--sample", "8"])
    assert told.exit_code == 0, told.output


@pytest.mark.slow
def test_the_real_model_in_every_form_agrees_with_sentence_transformers(
    minilm: EngineSpec, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    model = SentenceTransformer(str(MINILM), device="cpu")
    model.max_seq_length = minilm.max_length
    theirs = model.encode(TEXTS, batch_size=1, normalize_embeddings=True)
    with celery_worker(tmp_path / "worker.log"):
        told = produced("--dtype", "int8", "--keep-columns", "text")
        assert "The ranges for int8 come from the first 25 rows" in told
        job = latest_job()
        # The ranges come from vectors that differ from sentence-transformers' in the last digits: so may a step.
        steps = stored(job).astype(int) - quantize_embeddings(theirs, "int8").astype(int)
        assert (np.abs(steps).max(), (steps != 0).mean() < 0.01) in ((0, True), (1, True))
        assert pq.read_table(str(job.data))["text"].to_pylist() == TEXTS
        verified()
        shards = {path: path.stat().st_mtime_ns for path in Path("output").rglob("*.parquet")}
        assert "25 of 25 (25 were there)" in produced("--dtype", "int8", "--keep-columns", "text")
        assert {path: path.stat().st_mtime_ns for path in Path("output").rglob("*.parquet")} == shards

        produced("--dtype", "int8", "--keep-columns", "text", "--ranges", job.folder)
        assert latest_job().id == job.id
        hits = search(job, QUERY, count=3)

        produced("--dtype", "binary", "--dimensions", 128)
        cut = model.encode(TEXTS, batch_size=1, normalize_embeddings=True, truncate_dim=128)
        bits = np.unpackbits((stored(latest_job()).astype(int) + 128).astype(np.uint8), axis=1)
        expected = np.unpackbits((quantize_embeddings(cut, "binary").astype(int) + 128).astype(np.uint8), axis=1)
        assert (bits != expected).mean() < 0.001
        verified()
        produced("--dtype", "float16")
        np.testing.assert_allclose(stored(latest_job()), theirs, atol=5e-4)
        close = search(latest_job(), QUERY, count=3)
        assert hits[0][0].row == close[0][0].row
        assert hits[0][0].score == pytest.approx(close[0][0].score, abs=0.01)
        produced("--long-texts", "window", "--overlap", 32, "--dtype", "float16")
        verified()


def damage(job: Job, how: str) -> None:
    """Cut a shard short, or change one byte of its footer or in the middle of its last column."""
    shard = Path(str(job.shard(1)))
    data = bytearray(shard.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if how == "cut":
        del data[1000:]
    elif how == "footer":
        data[footer] ^= 0xFF
    else:
        group = pq.read_metadata(shard).row_group(0)
        column = group.column(group.num_columns - 1)
        data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    shard.write_bytes(data)


def test_damaged_files_of_the_jobs_that_a_job_begins_are_made_again(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, *TEXTS]))
    with celery_worker(tmp_path / "worker.log"):
        produced("--dtype", "int8")
        job = latest_job()
        expected = stored(job)
        (folder,) = (path.parent for path in Path("output").glob("*/job.json") if path.parent.name != job.id)
        of_ranges = load_job(location(folder))
        shutil.rmtree(str(job.folder))
        damage(of_ranges, "cut")
        damage(load_job(of_ranges.repeated), "footer")
        assert produced("--dtype", "int8").count("Set aside: ") == 2
        assert np.array_equal(stored(job), expected)
        for shard in Path(str(job.data)).iterdir():
            shard.unlink()
        damage(load_job(job.repeated), "column")
        told = produced("--dtype", "int8")
        assert told.count("Set aside: ") == 1
        assert "3 shards of job" in told
        assert np.array_equal(stored(job), expected)
        verified()
