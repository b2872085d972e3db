"""Finished jobs of the tiny engine, made by the code of producer and worker without Redis, and ways to harm them."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract.digest import digests_of
from contract.engine import EngineSpec
from contract.job import Job
from contract.settings import settings
from contract.shard import ShardInfo
from producer.batches import batch_of
from producer.dataset import open_dataset
from producer.request import job_of
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer
from tests.conftest import JARGON
from tests.contract.samples import a_batch, info_for, packed
from worker.embed import Embedder

_ENTRIES = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]

TEXTS: list[str | None] = [
    *[text for text in _ENTRIES if len(text) < 900][:40],
    *(None, "\u200b", "🙂 \0 متن", "line\nend", "bar " * 600, "spam, spam and spam " * 300, None, "The last row."),
]
"""48 rows of every length: rows 40 and 46 have no text, 41 has one without a token, 44 and 45 are truncated."""


def save_texts(folder: Path, texts: list[str | None]) -> Path:
    """A dataset as ``save_to_disk`` leaves it, in place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    datasets.Dataset.from_dict({"text": texts}, datasets.Features({"text": datasets.Value("string")})).save_to_disk(
        folder
    )
    return folder


def finished_job(
    spec: EngineSpec,
    dataset: Path,
    *,
    batch_rows: int = 16,
    prefix: str = "",
    limit: int | None = None,
    columns: tuple[str, ...] = (),
    text: str | None = None,
    **options: object,
) -> Job:
    """A job with every shard, below the output folder; ``options`` are further fields of a ``Job``."""
    texts = open_dataset(DatasetSource(str(dataset), columns=columns, text=text))
    tokenizer, embedder = open_tokenizer(spec), Embedder(threads=1)
    output = settings().output.absolute()
    job = job_of(texts, spec, output, limit=limit, prefix=prefix, batch_rows=batch_rows, **options)
    job.save()
    for number in range(job.batches):
        rows = job.row_range(number)
        some, kept = texts.read(rows)
        batch = batch_of(job, number, some, tokenizer, kept)
        embedder.embed(job, number, packed(batch))
    embedder.close()
    return job


def rewrite(job: Job, batch: int, change: Callable[[pa.Table], pa.Table], /, **info: object) -> None:
    """Change a shard as if its worker had written it so: its digests are those of what it holds now."""
    plant(job, batch, change, digests=digests_of(change(pq.read_table(job.shard(batch)))), **info)


def plant(job: Job, batch: int, change: Callable[[pa.Table], pa.Table], /, **info: object) -> None:
    """Change a shard's table behind the job's back, and of its footer only ``info``."""
    table = change(pq.read_table(job.shard(batch)))
    metadata = dict(table.schema.metadata)
    metadata[b"embedmill"] = json.dumps(json.loads(metadata[b"embedmill"]) | info).encode()
    pq.write_table(table.replace_schema_metadata(metadata), job.shard(batch))


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def with_value(name: str, place: int, value: object) -> Callable[[pa.Table], pa.Table]:
    """A change of one value of one column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[place] = value
        return with_column(table, name, pa.array(values, table.schema.field(name).type))

    return change


def with_element(place: int, element: int, value: float) -> Callable[[pa.Table], pa.Table]:
    """A change of one element of one row's vector."""

    def change(table: pa.Table) -> pa.Table:
        vector = list(table["embedding"][place].as_py())
        vector[element] = value
        return with_value("embedding", place, vector)(table)

    return change


def scaled(place: int, factor: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        vector = np.array(table["embedding"][place].as_py()) * factor
        return with_value("embedding", place, vector.tolist())(table)

    return change


def shard(begin: float, seconds: float, rows: int = 100) -> ShardInfo:
    """What the footer of a shard says that was computed from ``begin`` on, in seconds."""
    finished = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=begin + seconds)
    return info_for(a_batch(), seconds=seconds, finished=finished, rows=rows)
