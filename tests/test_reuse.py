"""Vectors that are not computed: those of earlier jobs, and of rows with the same text."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.families import save_family
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.form import VectorForm
from contract.job import EarlierJob, Job, load_job
from contract.reuse import check_fits, load_sources
from contract.settings import settings
from contract.shard import read_info
from contract.store import location
from contract.vector_columns import vectors_of
from contract.verdict import load_verdict
from producer.batches import Work
from producer.dataset import open_dataset
from producer.repeats import repeated_work, search_pays, to_compute
from producer.request import job_of
from producer.reuse import index_of
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer
from tests.commands import called
from tests.conftest import build_engine
from tests.contract.samples import packed
from tests.verify.jobs import TEXTS, plant, rewrite, with_element, with_value
from worker.embed import Embedder

WORDS = [word for text in TEXTS if text for word in text.split()]


def work_of(spec: EngineSpec, folder: Path, texts: Sequence[str | None], **options: object) -> Work:
    """A job of these texts, each with a column ``n`` that no two rows share."""
    folder.mkdir(exist_ok=True)
    rows = {"text": pa.array(texts, pa.string()), "n": [f"{folder.name} {row}" for row in range(len(texts))]}
    pq.write_table(pa.table(rows), folder / "texts.parquet")
    opened = open_dataset(DatasetSource(str(folder / "texts.parquet"), text="{text}", columns=("n",)))
    fields = {"prefix": "", "batch_rows": 16, "limit": None} | options
    job = job_of(opened, spec, settings().output.absolute(), **fields)  # type: ignore[arg-type]
    return Work(job, opened, open_tokenizer(spec))


def run(work: Work, only: range | None = None) -> Job:
    """Make a job's shards as producer and worker do."""
    work.job.save()
    embedder = Embedder(threads=1)
    if repeated := repeated_work(work):
        _make(repeated, embedder, range(repeated.job.batches))
    _make(work, embedder, only or range(work.job.batches))
    embedder.close()
    return work.job


def _make(work: Work, embedder: Embedder, batches: range) -> None:
    work.job.save()
    with index_of(work.job) as index:
        for number in batches:
            embedder.embed(work.job, number, work._replace(known=index).payload(number))


def earlier(*jobs: Job) -> tuple[EarlierJob, ...]:
    return tuple(EarlierJob(id=job.id, folder=job.folder) for job in jobs)


def rows_of(job: Job) -> pa.Table:
    return pa.concat_tables([pq.read_table(job.shard(batch)) for batch in range(job.batches)])


def computed(job: Job) -> int:
    """Rows that have a vector of their own."""
    infos = [read_info(job.shard(batch)) for batch in range(job.batches)]
    return sum(info.rows - info.without_text - info.spared for info in infos)


def same(one: Job, other: Job) -> None:
    """Every column but the vectors' is the same, and these are, up to what a batch's other rows change."""
    left, right = rows_of(one), rows_of(other)
    names = [name for name in left.column_names if name not in ("embedding", "indices", "weights")]
    assert left.select(names).equals(right.select(names))
    mine, theirs = vectors_of(left), vectors_of(right)
    assert mine.values.dtype == theirs.values.dtype
    assert np.array_equal(mine.counts, theirs.counts)
    assert (mine.indices is None) == (theirs.indices is None)
    if mine.indices is not None and theirs.indices is not None:
        assert np.array_equal(mine.indices, theirs.indices)
    if mine.values.dtype == np.int8:  # a step
        assert (mine.values != theirs.values).mean() < 0.01
    else:
        assert np.allclose(mine.values, theirs.values, atol=1e-3 if mine.values.dtype == np.float16 else 1e-4)


def vector_of(job: Job, row: int) -> object:
    column = "embedding" if "embedding" in rows_of(job).column_names else "weights"
    return rows_of(job)[column][row].as_py()


RANGES = ((-1.0,) * 32, (1.0,) * 32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap": 8, "prefix": "passage: "},
        {"form": VectorForm(dtype="float16", dimensions=16)},
        {"form": VectorForm(dtype="int8", ranges=RANGES)},
        {"form": VectorForm(dtype="binary")},
    ],
    ids=["plain", "windows and a prefix", "float16", "int8", "binary"],
)
def test_only_new_texts_are_computed(tiny: EngineSpec, tmp_path: Path, options: dict[str, object]) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS, **options))
    changed = [*TEXTS[:10], "a new one", *TEXTS[10:30], None, "and another", *TEXTS[30:]]
    job = run(work_of(tiny, tmp_path / "b", changed, reuse=earlier(first), **options))
    alone = run(work_of(tiny, tmp_path / "b", changed, **options))
    assert job.id != alone.id
    assert computed(job) == 2
    same(job, alone)
    assert vector_of(job, 0) == vector_of(first, 0)  # to the bit
    assert vector_of(job, 47) == vector_of(first, 44)


def test_vectors_of_each_token_and_sparse_ones_are_taken(workplace: Path) -> None:
    for family in ("ColBERT", "SPLADE"):
        spec = build_engine(save_family(family, workplace / family), f"{family.lower()}-to-reuse", max_length=64)
        first = run(work_of(spec, workplace / f"{family} a", TEXTS))
        changed = ["a new one", *TEXTS[::-1], TEXTS[0]]
        job = run(work_of(spec, workplace / f"{family} b", changed, reuse=earlier(first)))
        assert computed(job) == 1
        same(job, run(work_of(spec, workplace / f"{family} b", changed)))


def test_a_text_is_computed_once_and_a_similar_one_is_another(tiny: EngineSpec, tmp_path: Path) -> None:
    near = ["mill", "mill ", "Mill", "mi\u0301ll", "m\u00edll", "mill\n", " mill", "mill\u200b"]
    texts = [*near * 10, None, "", " \t", *["once"] * 3, "the last"]
    work = work_of(tiny, tmp_path / "a", texts)
    shared = repeated_work(work)
    assert shared is not None
    assert sorted(text or "" for text in shared.texts.texts(range(shared.job.rows))) == sorted(near)
    job = run(work)
    assert run_count(job) == to_compute(work, None) == len(near) + 2
    twice = work_of(tiny, tmp_path / "b", [*near, None, "once", "the last"])
    assert repeated_work(twice) is None
    lone = run(twice)
    for row, text in enumerate(texts):
        place = [*near, None, "once", "the last"].index(text if text and text.strip() else None)
        mine, theirs = vector_of(job, row), vector_of(lone, place)
        assert (mine is None) == (theirs is None)
        assert mine is None or np.allclose(mine, theirs, atol=1e-6)  # type: ignore[arg-type]


def run_count(job: Job) -> int:
    """Texts that a job computed, with those in several batches."""
    return computed(job) + (computed(load_job(job.repeated)) if (job.repeated / "job.json").exists() else 0)


@pytest.mark.parametrize("seed", range(4))
def test_random_jobs_have_the_vectors_that_they_have_alone(tiny: EngineSpec, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    pool: list[str | None] = [None, "", " ", "\ud800", *(" ".join(dice.choices(WORDS, k=k)) for k in range(1, 60))]
    pool += [text + "." for text in pool if text]  # nearly the same
    options: dict[str, object] = {"overlap": dice.choice([None, 8]), "batch_rows": dice.choice([5, 16])}
    chosen = [[dice.choice(pool) for _ in range(dice.randrange(1, 60))] for _ in range(3)]
    texts = [[text and text.encode("utf-8", "replace").decode() for text in some] for some in chosen]
    first = run(work_of(tiny, tmp_path / "a", texts[0], **options | {"batch_rows": 7}))
    second = run(work_of(tiny, tmp_path / "b", texts[1], reuse=earlier(first), **options))
    work = work_of(tiny, tmp_path / "c", texts[2], reuse=earlier(second, first), **options)
    known = {text for text in texts[0] + texts[1] if text and text.strip()}
    due = {text for text in texts[2] if text and text.strip()} - known
    with index_of(work.job) as index:
        assert to_compute(work, index) == len(due)
    job = run(work)
    assert run_count(job) == len(due)
    same(job, run(work_of(tiny, tmp_path / "c", texts[2], **options)))


def test_an_incomplete_job_is_of_use_and_rows_with_an_error_are_computed(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS[:40]), range(2))  # of three batches
    failed = with_value("error", 3, "it burns")
    rewrite(first, 0, lambda table: with_value("embedding", 3, None)(failed(table)), failed=1)
    job = run(work_of(tiny, tmp_path / "b", TEXTS[:40], reuse=earlier(first)))
    assert computed(job) == 8 + 1
    same(job, run(work_of(tiny, tmp_path / "b", TEXTS[:40])))


def test_an_interrupted_job_goes_on_and_takes_what_it_would_have_taken(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    changed = ["a new one", *TEXTS, *TEXTS[:20], "another"]
    work = work_of(tiny, tmp_path / "b", changed, reuse=earlier(first))
    run(work, range(2))
    there = {batch: work.job.shard(batch).read_bytes() for batch in range(2)}
    job = run(work_of(tiny, tmp_path / "b", changed, reuse=earlier(first)), range(2, work.job.batches))
    assert job.id == work.job.id
    assert {batch: job.shard(batch).read_bytes() for batch in range(2)} == there
    assert computed(job) == 2
    same(job, run(work_of(tiny, tmp_path / "b", changed)))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prefix": "query: "}, "another prefix (prefix ''); those of this job are of prefix 'query: '; leave out"),
        ({"form": VectorForm(dtype="float16")}, "another form (float32); those of this job are of float16"),
        ({"overlap": 8}, "another way with long texts (truncated texts); those of this job are of windows that share"),
        ({"fingerprint": "0" * 16}, "those of this job are of fingerprint 0000000000000000"),
    ],
)
def test_a_job_with_other_vectors_is_refused(
    tiny: EngineSpec, tmp_path: Path, options: dict[str, object], what: str
) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS[:5]))
    work = work_of(tiny, tmp_path / "a", TEXTS[:5], reuse=earlier(first), **options)
    with pytest.raises(UserError, match=re.escape(what)):
        check_fits(first, work.job)
    with pytest.raises(UserError, match=re.escape(what)), index_of(work.job):
        pass


def test_a_job_that_is_gone_or_another_one_is_refused(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS[:5]))
    other = EarlierJob(id="texts-train-0123456789", folder=first.folder)
    with pytest.raises(UserError, match=r"holds job .*; job .* takes vectors of job texts-train-0123456789"):
        load_sources(work_of(tiny, tmp_path / "a", TEXTS[:5], reuse=(other,)).job)
    gone = EarlierJob(id=first.id, folder=location(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no job in"):
        load_sources(work_of(tiny, tmp_path / "a", TEXTS[:5], reuse=(gone,)).job)


def test_a_shard_that_was_changed_is_not_taken(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    work = work_of(tiny, tmp_path / "b", TEXTS[:32], reuse=earlier(first))
    plant(first, 1, with_value("text_hash", 2, bytes(16)))
    with pytest.raises(UserError, match=r"vectors cannot be taken from .* \(its column text_hash is not as its worker"):
        run(work)
    first.shard(1).unlink()
    run(work_of(tiny, tmp_path / "a", TEXTS), range(1, 2))
    plant(first, 1, with_element(2, 0, 9.0))
    with pytest.raises(ValueError, match=r"vectors cannot be taken from .*: its column embedding is not as its worker"):
        run(work)
    assert work.job.committed() == {0}


def test_a_row_that_says_another_place_takes_no_neighbours_vector(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    work = work_of(tiny, tmp_path / "b", TEXTS[:16], reuse=earlier(first))
    work.job.save()
    with index_of(work.job) as index:
        batch = Batch.from_bytes(work._replace(known=index).payload(0))
    assert batch.origins is not None
    rows, batches = batch.origins.row[::-1], batch.origins.batch + 3
    for origins, why in (
        (replace(batch.origins, row=rows), "other texts by now"),
        (replace(batch.origins, batch=batches), "there is none"),
    ):
        moved = replace(batch, origins=origins)
        with pytest.raises(ValueError, match=why):
            Embedder(threads=1).embed(work.job, 0, packed(moved))


def test_the_verdict_says_what_was_taken_and_looks_at_it(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    work = work_of(tiny, tmp_path / "b", [*TEXTS, "new", "new", TEXTS[0]], reuse=earlier(first))
    job = run(work)
    shown = called("verify", job.folder, "--sample", "all").output
    assert "Verified: 51 rows accounted for (2 truncated, 2 without a text, 47 taken from earlier jobs)" in shown
    verdict = load_verdict(job)
    assert verdict is not None
    (check,) = (check for check in verdict.checks if check.name == "reuse")
    once = "1 with the text of another row, computed once"
    assert check.detail == f"1 of 49 texts computed; 47 taken from job {first.id}; {once}"
    assert (verdict.taken, verdict.repeated, verdict.compared) == ({first.id: 47}, 1, 49)
    rewrite(job, 0, with_element(2, 0, 9.0))  # a taken one
    assert "FAIL" in called("verify", job.folder, "--sample", "all", expect=1).output


def test_many_rows_are_read_through_only_where_a_sample_has_repeated_texts(
    tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.repeats.FEW", 1999)
    different = [f"text {number}" for number in range(2000)]
    assert not search_pays(work_of(tiny, tmp_path / "a", different))
    assert search_pays(work_of(tiny, tmp_path / "b", different[:1999]))
    assert search_pays(work_of(tiny, tmp_path / "c", ["the same"] * 200 + different))
