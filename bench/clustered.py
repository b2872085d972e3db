"""``python -m bench.clustered``: a complete job of random vectors in clusters, without a dataset or a model, to time
exports with."""

from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.batch import Batch
from contract.form import VectorForm
from contract.job import Job
from contract.shard import ShardInfo, commit, table_of
from contract.store import location
from contract.tokens import TokenRows
from contract.vectors import RowVectors

_ENGINE = "0123456789abcdef"

_WITHOUT = 97
"""Every so manieth row has no text."""


def clustered_job(
    output: Path, rows: int, *, width: int, batch_rows: int, seed: int = 0, form: VectorForm | None = None
) -> Job:
    """A complete job, the same for the same arguments.

    Args:
        output: the folder of the jobs' folders.
        rows: how many, of which every 97th has no text.
        width: elements of a vector.
        batch_rows: rows of a shard.
        seed: of the random numbers.
        form: of the vectors; None for float32.
    """
    job = Job.create(
        location(str(output.absolute())),
        dataset="/clustered.parquet",
        config=None,
        split="train",
        text="{text}",
        revision=f"{rows} rows of {width}, seed {seed}",
        limit=None,
        prefix="",
        engine="none",
        fingerprint=_ENGINE,
        rows=rows,
        batch_rows=batch_rows,
        form=form or VectorForm(),
        columns=("title", "stars"),
    )
    job.save()
    centres = np.random.default_rng(seed).standard_normal((max(4, rows // 100), width), np.float32)
    for number in range(job.batches):
        _commit(job, number, centres, np.random.default_rng((seed, number)))
    return job


def _commit(job: Job, number: int, centres: npt.NDArray[np.float32], random: np.random.Generator) -> None:
    ids = np.array(job.row_range(number), np.int64)
    lengths = np.where(ids % _WITHOUT == _WITHOUT - 1, 0, 3).astype(np.int32)
    kept = {
        "title": pa.array([f"row {row}, \N{SNOWMAN} \t\\N" for row in ids]),
        "stars": pa.array((ids % 5).tolist(), pa.int64()),
    }
    tokens = TokenRows(np.ones(int(lengths.sum()), np.int32), lengths)
    batch = Batch(
        job=job.id, number=number, engine=job.fingerprint, row_id=ids, tokens=tokens, n_tokens=lengths, kept=kept
    )
    there = int((lengths > 0).sum())
    noise = random.standard_normal((there, centres.shape[1]), np.float32)
    vectors = centres[random.integers(len(centres), size=there)] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    info = ShardInfo(
        job=job.id,
        batch=number,
        engine=job.fingerprint,
        runtime="random numbers",
        precision="fp32",
        max_length=3,
        rows=len(ids),
        tokens=int(lengths.sum()),
        truncated=0,
        without_text=len(ids) - there,
        recomputed=0,
        failed=0,
        computed_tokens=int(lengths.sum()),
        seconds=0.1,
        finished=datetime(2026, 1, 2, tzinfo=UTC),
    )
    commit(table_of(batch, RowVectors.pooled(job.form.quantized(vectors)), info), job.shard(number), job.staging)


@click.command()
@click.option("--rows", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--width", type=click.IntRange(min=1), default=384, show_default=True)
@click.option("--batch-rows", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("output"), show_default=True)
def main(rows: int, width: int, batch_rows: int, output: Path) -> None:
    """Make the job, and print its folder."""
    click.echo(str(clustered_job(output, rows, width=width, batch_rows=batch_rows).folder))


if __name__ == "__main__":
    main()
