"""From a model and a dataset on the Hub to vectors on the Hub: the commands as a user runs them, over a real Redis."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contract.engines import load_engine
from contract.job import Job, load_job
from contract.jobs import latest_job
from contract.settings import settings
from contract.store import location
from embedmill.processes import celery_worker
from tests.commands import called
from tests.conftest import JARGON, build_engine
from tests.hub import READER, WRITER, Hub, files_of
from tests.producer.test_hub import parquet

TEXTS: list[str | None] = [
    *(json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:59]),
    *(None, "", "\u3000\n", "grain " * 3000, "日本"),
]


def run(*arguments: object, **env: str) -> str:
    """A command in a process of its own, which must succeed; what it says."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(job: Job) -> pa.Table:
    return pa.concat_tables(pq.read_table(job.shard(batch)) for batch in range(job.batches))


@pytest.fixture
def imdb(hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model and a dataset on the Hub, the model built into the engine ``tiny-bert``; the dataset's commit."""
    hub.add("models", "mill/tiny-bert", files_of(tiny_model))
    hub.renamed["imdb"] = "stanfordnlp/imdb"
    files = {f"plain_text/train-0000{part}-of-00002.parquet": parquet(TEXTS[part::2]) for part in (0, 1)}
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    settings.cache_clear()
    build_engine(Path("mill/tiny-bert"), "tiny-bert")
    return hub.add("datasets", "stanfordnlp/imdb", files)


@pytest.mark.slow
def test_from_the_hub_to_the_hub(imdb: str, hub: Hub, redis_url: str, tmp_path: Path) -> None:
    """Downloaded and streamed: a dataset by its name of old, verified, pushed, and loaded by somebody else.

    The streamed one is tokenized by processes, which fetch a kept column, too, and cut windows.
    """
    texts = TEXTS[0::2] + TEXTS[1::2]
    options = ("--batch-rows", 16, "--keep-columns", "ballast", "--long-texts", "window")
    with celery_worker(tmp_path / "worker.log"):
        assert f"{len(texts)} of {len(texts)}" in called("producer", "--dataset", "imdb", *options).stdout
        job = latest_job()
        assert (job.dataset, job.revision, job.batches) == ("stanfordnlp/imdb", imdb, 4)
        assert (load_engine().model, load_engine().revision) == (
            "mill/tiny-bert",
            hub.repos["models", "mill/tiny-bert"].refs["main"],
        )

        hub.repos["datasets", "stanfordnlp/imdb"].commit({"train.parquet": parquet(["it went on"])})
        empty = str(tmp_path / "another home")
        streamed = ("--dataset", "imdb", "--revision", imdb, "--stream", "--output", tmp_path / "streamed")
        run("-m", "producer", *streamed, *options, HF_HOME=empty, EMBEDMILL_TOKENIZERS="2")
        other = load_job(location(tmp_path / "streamed" / job.id))  # the same job by the same name
        assert (other.identity, other.stream) == (job.identity, True)
        assert not list(Path(empty).rglob("*.parquet")) + list(Path(empty).rglob("*.arrow"))

    for one in (job, other):  # at its own commit, though the dataset has a newer one
        called("verify", one.folder, "--sample", 30)
    ours, theirs = table(job), table(other)
    for column in ("row_id", "n_tokens", "truncated", "error", "ballast"):
        assert ours[column].equals(theirs[column])
    for vector, expected in zip(ours["embedding"].to_pylist(), theirs["embedding"].to_pylist(), strict=True):
        assert (vector is None) == (expected is None)
        if vector is not None:
            np.testing.assert_allclose(vector, expected, atol=1e-6)

    said = run("-m", "producer", "push", job.folder, "--to", "mill/imdb-vectors", "--private", HF_TOKEN=WRITER)
    assert f"Pushed: {hub.url}/datasets/mill/imdb-vectors" in said
    loaded = tmp_path / "loaded.parquet"
    code = f"import datasets; datasets.load_dataset('mill/imdb-vectors', split='train').to_parquet({str(loaded)!r})"
    run("-c", code, HF_TOKEN=READER, HF_HOME=str(tmp_path / "a third home"))
    assert pq.read_table(loaded).to_pylist() == ours.to_pylist()
    assert [row for row, text in enumerate(texts) if text is None or not text.strip()] == [
        row for row, vector in enumerate(ours["embedding"].to_pylist()) if vector is None
    ]
