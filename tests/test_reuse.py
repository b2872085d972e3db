"""Vectors that are not computed: those of earlier jobs, and of rows with the same text."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from contract.engine import EngineSpec
from contract.job import EarlierJob, Job
from contract.settings import settings
from contract.shard import read_info
from producer.batches import open_tokenizer
from producer.dataset import open_dataset
from producer.making import Work
from producer.repeats import repeated_work
from producer.request import job_of
from producer.reuse import index_of
from producer.texts import DatasetSource
from tests.verify.jobs import TEXTS
from worker.embed import Embedder

WORDS = [word for text in TEXTS if text for word in text.split()]


def work_of(spec: EngineSpec, folder: Path, texts: list[str | None], **options: object) -> Work:
    """A job of these texts, each with a column ``n`` that no two rows share."""
    folder.mkdir(exist_ok=True)
    rows = {"text": pa.array(texts, pa.string()), "n": [f"{folder.name} {row}" for row in range(len(texts))]}
    pq.write_table(pa.table(rows), folder / "texts.parquet")
    opened = open_dataset(DatasetSource(str(folder / "texts.parquet")), text="{text}", columns=("n",))
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
            embedder.embed(work.job, number, work._replace(index=index).payload(number))


def earlier(*jobs: Job) -> tuple[EarlierJob, ...]:
    return tuple(EarlierJob(id=job.id, folder=job.folder) for job in jobs)


def rows_of(job: Job) -> pa.Table:
    return pa.concat_tables([pq.read_table(job.shard(batch)) for batch in range(job.batches)])


def computed(job: Job) -> int:
    """Rows that have a vector of their own."""
    infos = [read_info(job.shard(batch)) for batch in range(job.batches)]
    return sum(info.rows - info.without_text - info.spared for info in infos)


def test_only_new_texts_are_computed(tiny: EngineSpec, tmp_path: Path) -> None:
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    changed = [*TEXTS[:10], "a new one", *TEXTS[10:30], None, "and another", *TEXTS[30:]]
    job = run(work_of(tiny, tmp_path / "b", changed, reuse=earlier(first)))
    alone = run(work_of(tiny, tmp_path / "b", changed))
    assert computed(job) == 2
    assert rows_of(job).equals(rows_of(alone))
