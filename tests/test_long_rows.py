"""Whole jobs whose rows have up to 8,192 tokens, through a real Redis and a real worker."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest

from bench import memory
from bench.families import save_family
from contract.engine import EngineSpec
from contract.job import Job
from contract.jobs import latest_job
from contract.settings import settings
from contract.verdict import load_verdict
from embedmill.processes import celery_worker, redis_server
from producer.tokenizer import open_tokenizer
from tests.commands import called
from tests.conftest import JARGON, build_engine

LONGEST = 8192
BENCHMARKS = Path(__file__).parent.parent / "docs" / "benchmarks"


@pytest.fixture
def worker_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log of a worker, started once its engine is there: ``EMBEDMILL_ENGINE`` is ``long``."""
    monkeypatch.setenv("EMBEDMILL_ENGINE", "long")
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    with redis_server() as url:
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        yield tmp_path / "worker.log"


def texts_of(spec: EngineSpec, *lengths: int) -> list[str]:
    """Texts of about so many tokens, special tokens counted."""
    jargon = " ".join(json.loads(line)["text"] for line in JARGON.read_text("utf-8").splitlines()[:400])
    ids = open_tokenizer(spec).tokenizer.encode(jargon * 2)
    return [jargon[: ids.offsets[max(length - 2, 0)][0]] or "a" for length in lengths]


def produced(file: Path, texts: list[str | None], *options: object) -> tuple[Job, str]:
    """A job of these texts that is done and verified, and what the producer said."""
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    told = called("producer", "--dataset", file.name, "--text-column", "text", "--engine", "long", *options)
    called("verify", "--sample", len(texts))
    job = latest_job()
    verdict = load_verdict(job)
    assert verdict
    assert (verdict.total.min_cosine or 0) >= 0.99999
    return job, told.output


def table(job: Job) -> dict[str, np.ndarray]:
    found = pads.dataset(job.data).to_table().sort_by("row_id")
    return {name: found[name].to_numpy() for name in ("n_tokens", "truncated", "embedding")}


def test_the_pages_table_is_of_the_records_and_long_rows_take_hardly_more_memory() -> None:
    records = [memory.Held(**one) for one in json.loads((BENCHMARKS / "memory.json").read_text("utf-8"))]
    assert memory.table(records) in BENCHMARKS.with_suffix(".md").read_text("utf-8")
    for short, long in zip(records[::2], records[1::2], strict=True):
        assert (short.outstanding_tokens, short.rows) == (long.outstanding_tokens, long.rows)
        for program in ("producer", "redis", "worker") if short.rows == "long" else ("producer", "worker"):
            assert getattr(long, program) <= 1.3 * getattr(short, program)


@pytest.mark.slow
def test_xlm_roberta_embeds_rows_of_one_to_8192_tokens_and_truncates_and_counts_longer_ones(
    worker_log: Path, tmp_path: Path
) -> None:
    model = save_family("xlm-roberta", tmp_path / "model", max_position_embeddings=LONGEST + 2, num_attention_heads=1)
    spec = build_engine(model, "long", max_length=LONGEST)
    assert spec.tiers == ("onnx", "torch")
    texts: list[str | None] = [None, *texts_of(spec, 3, 40, 8200, 513, 512, 1, 700, 129, 20_000, 5)]
    with celery_worker(worker_log):
        job, told = produced(tmp_path / "rows.jsonl", texts, "--batch-rows", 5)
    assert "11 of 11" in told
    assert "2, at 8,192 tokens" in told
    log = worker_log.read_text("utf-8")
    assert "engine long is computed by torch on a CPU" in log
    assert "for a row of 8,192 tokens ONNX Runtime's attention would take gigabytes" in log
    found = table(job)
    assert found["truncated"].tolist() == [bool(tokens > LONGEST) for tokens in found["n_tokens"]]
    assert found["n_tokens"].max() > 19_000


@pytest.mark.slow
def test_modernbert_embeds_texts_in_windows_of_8192_tokens(worker_log: Path, tmp_path: Path) -> None:
    spec = build_engine(
        save_family("modernbert", tmp_path / "model", num_attention_heads=1), "long", max_length=LONGEST
    )
    assert spec.tiers == ("torch",)
    texts: list[str | None] = [*texts_of(spec, 20_000, 30, 8193, 1), None, "a"]
    with celery_worker(worker_log):
        job, told = produced(tmp_path / "rows.jsonl", texts, "--long-texts", "window", "--batch-rows", 4)
    assert "6 of 6" in told
    found = table(job)
    assert not found["truncated"].any()
    assert found["n_tokens"][0] > 19_000
