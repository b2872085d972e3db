"""Nearest neighbours over a job's shards: what the vectors are for, in one file.

    embedmill search "a program that breaks when you look at it closely"

No index and no database: every vector is compared with the query. One shard is in memory at a time.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.engines import engine_of
from contract.errors import UserError
from contract.job import Job
from contract.jobs import find_job
from contract.settings import settings
from contract.shard import open_file
from contract.store import Location
from contract.vectors import RowVectors
from embedmill.similarity import Cosine, DotProduct, Similarity
from producer.dataset import dataset_of
from producer.tokenizer import open_tokenizer, tokenize
from worker.runtime.choose import open_engine

_EPILOG = """\b
Examples:
  embedmill search "unsolicited bulk email"
  embedmill search --count 10 "a slow computer" "a fast one"
  embedmill search --job output/jargon-train-0123456789 --prefix "query: " "unsolicited bulk email"
"""

_SHOWN = 80
"""Characters of a row's text that are shown."""


@dataclass(frozen=True)
class Hit:
    """One row near a query."""

    score: float
    """Their ``similarity``."""
    similarity: str
    """``cosine``, or of sparse vectors ``dot product``."""
    row: int
    """``row_id``: the row's index in the dataset."""
    text: str


@click.command(epilog=_EPILOG)
@click.argument("queries", nargs=-1, required=True, metavar="QUERY [QUERY]...")
@click.option("--job", "name", help="The job's folder, object store URI or id.  [default: the latest job]")
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Rows shown for each query.")
@click.option("--prefix", help="Text put before each query, such as 'query: '.  [default: what the job's rows got]")
def main(queries: tuple[str, ...], name: str | None, count: int, prefix: str | None) -> None:
    """Show the rows of a job whose meaning is nearest to each QUERY."""
    job = find_job(name)
    console = Console()
    for query, hits in zip(queries, search(job, queries, count=count, prefix=prefix), strict=True):
        console.print(table_of(query, hits))


def search(job: Job, queries: tuple[str, ...], *, count: int, prefix: str | None = None) -> list[list[Hit]]:
    """The rows nearest to each query, by the cosine of their vectors or the dot product of sparse ones, the nearest
    first. Rows without a text have no vector and are left out.

    Args:
        job: a job of which at least one shard is there; only the shards that are there are searched.
        queries: ``n`` texts.
        count: most rows for each.
        prefix: put before each query; None for what the job's rows got.

    Returns:
        ``n`` lists, in the order of the queries.

    Raises:
        UserError: the job has a vector for each token and not for each row, or no shard yet; its engine is missing or
            another one now; its dataset is missing or another one now.
    """
    spec = engine_of(job, "vectors of two engines cannot be compared: point EMBEDMILL_ENGINES to the job's own")
    if prefix and not spec.include_prompt and "onnx" in spec.tiers:
        raise UserError(
            f"--prefix {prefix!r}",
            f"the model of engine {spec.name} leaves prompts out of its pooling, and its export pools all tokens",
            "leave out --prefix",
        )
    if spec.per_token:
        raise UserError(
            f"job {job.id} has a vector for each token",
            "a search needs one for each row",
            "embed with an engine of another pooling: python -m engine_build --model MODEL --pooling mean",
        )
    shards = [job.shard(batch) for batch in sorted(job.committed())]
    if not shards:
        raise UserError(f"no shard in {job.data}", "expected some", "start a worker: celery -A worker worker")
    texts = dataset_of(job)
    vectors = embed(spec, queries, job.prefix if prefix is None else prefix)
    similarity = (DotProduct if spec.layout == "sparse" else Cosine)(vectors, spec, job.form)
    scores, rows = nearest(shards, similarity, count)
    return [
        [
            Hit(float(score), similarity.name, int(row), texts.texts(range(row, row + 1))[0] or "")
            for score, row in zip(*found, strict=True)
        ]
        for found in zip(scores, rows, strict=True)
    ]


def embed(spec: EngineSpec, queries: tuple[str, ...], prefix: str) -> RowVectors:
    """The vectors of some texts, made as a worker makes those of a dataset's rows."""
    rows = open_tokenizer(spec)
    tokens, n_tokens = tokenize(queries, rows, prefix)
    batch = Batch(
        job="search",
        number=0,
        engine=spec.fingerprint,
        row_id=np.arange(len(queries), dtype=np.int64),
        tokens=tokens,
        n_tokens=n_tokens,
        prompt_tokens=0 if rows.pools_prompt else rows.prompt_tokens(prefix),
    )
    with open_engine(spec, settings().threads or len(os.sched_getaffinity(0))) as engine:
        return engine.infer(batch).rows


def nearest(
    shards: Sequence[Location], similarity: Similarity, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The ``count`` rows nearest to each query, the nearest first, of equals the one that comes first.

    Args:
        shards: Parquet files; one is in memory at a time.
        similarity: of the queries to the rows of a shard.
        count: most rows for each query.

    Returns:
        Similarities, float32, and row ids, int64, each ``[n, min(count, rows with a vector)]``.
    """
    scores = np.empty((similarity.queries, 0), np.float32)
    rows = np.empty((similarity.queries, 0), np.int64)
    for shard in shards:
        with open_file(shard) as file:
            table = file.read(columns=["row_id", *similarity.columns])
        table = table.filter(table[similarity.columns[0]].is_valid()).combine_chunks()
        if not table.num_rows:
            continue
        scores = np.hstack([scores, similarity.of(table)])
        rows = np.hstack([rows, np.broadcast_to(table["row_id"].to_numpy(), (similarity.queries, table.num_rows))])
        best = np.lexsort((rows, -scores))[:, :count]
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return scores, rows


def table_of(query: str, hits: list[Hit]) -> Table:
    """A query's hits for the terminal."""
    table = Table(title=Text(query), title_justify="left")
    table.add_column("", justify="right")
    table.add_column(hits[0].similarity if hits else "", justify="right")
    table.add_column("row", justify="right")
    table.add_column("text")
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.text.split())
        shown = text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + " …"
        table.add_row(str(rank), f"{hit.score:.3f}", str(hit.row), Text(shown))  # Text: a row's brackets are no markup
    return table


if __name__ == "__main__":
    main(prog_name="embedmill search")
