"""Two jobs of the same rows, read side by side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.engines import engine_of
from contract.entry import importing
from contract.errors import UserError
from contract.job import Job
from contract.words import count
from verify.shards import BadShard, open_shard


class Chunk(NamedTuple):
    """Consecutive rows of a job."""

    rows: range
    there: npt.NDArray[np.bool_]
    """``[n]``: whether a row has a vector."""
    vectors: npt.NDArray[np.float32]
    """``[n, elements]``, to compute with; zeros where there is none."""


class Side:
    """One of the two jobs.

    Args:
        job: a job whose every shard is there.

    Raises:
        UserError: a shard is missing, the job's engine is gone, or it gives a vector for each token.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.spec = job, engine_of(job)
        if self.spec.per_token:
            raise UserError(f"job {job.id} has a vector for each token", "a comparison needs one for each row")
        if missing := job.batches - len(job.committed()):
            raise UserError(
                f"{count(missing, 'shard')} of {job.id} missing",
                "jobs are compared once they have ended",
                "run the command that began it again",
            )
        self.elements = job.form.elements(self.spec.hidden)

    def chunks(self) -> Iterator[Chunk]:
        """All rows, one shard in memory at a time.

        Raises:
            UserError: a shard cannot be read.
        """
        for batch in range(self.job.batches):
            yield self._chunk(batch)

    def _chunk(self, batch: int) -> Chunk:
        job = self.job
        try:
            with open_shard(job, batch) as (file, _):
                column = file.read(columns=["embedding"]).column("embedding").combine_chunks()
            there = column.is_valid().to_numpy(zero_copy_only=False)
            stored = column.drop_null().flatten().to_numpy(zero_copy_only=False)
            vectors = np.zeros((len(there), self.elements), np.float32)
            width = job.form.width(self.elements)
            vectors[there] = job.form.dequantized(stored.reshape(int(there.sum()), width), self.elements)
        except (BadShard, ValueError) as error:
            raise UserError(
                f"{job.shard(batch)} cannot be read ({error})",
                hint=f"verify the job: embedmill verify {job.folder}",
            ) from None
        return Chunk(job.row_range(batch), there, vectors)


def in_step(left: Side, right: Side) -> Iterator[tuple[Chunk, Chunk]]:
    """The same rows of both, whatever their shards' sizes, one shard of each in memory at a time."""
    others = right.chunks()
    other = next(others)
    for chunk in left.chunks():
        start = chunk.rows.start
        while start < chunk.rows.stop:
            if start >= other.rows.stop:
                other = next(others)
            stop = min(chunk.rows.stop, other.rows.stop)
            yield _part(chunk, start, stop), _part(other, start, stop)
            start = stop


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    inside = slice(start - chunk.rows.start, stop - chunk.rows.start)
    return Chunk(range(start, stop), chunk.there[inside], chunk.vectors[inside])


def same_texts(left: Job, right: Job, rows: Sequence[int]) -> dict[int, str]:
    """The texts of some rows, without prefixes, once it is known that both jobs have the same.

    Args:
        left: a job.
        right: another one.
        rows: row ids.

    Raises:
        UserError: the jobs have other rows, or a dataset is gone or was changed.
    """
    if left.rows != right.rows:
        raise UserError(
            f"{left.id} has {count(left.rows, 'row')} and {right.id} has {right.rows:,}",
            "two jobs of the same rows are compared",
            "embed the same dataset, with the same --limit, twice",
        )
    first = _texts(left, rows)
    if (left.revision, left.text, left.split, left.csv) == (right.revision, right.text, right.split, right.csv):
        return {row: text or "" for row, text in first.items()}
    second = _texts(right, rows)
    differing = [row for row in rows if first[row] != second[row]]
    if differing:
        raise UserError(
            f"{left.id} and {right.id} are of other texts ({len(differing)} of {count(len(rows), 'row')} looked at, "
            f"the first is row {differing[0]})",
            "two jobs of the same rows are compared",
        )
    return {row: text or "" for row, text in first.items()}


def _texts(job: Job, rows: Sequence[int]) -> dict[int, str | None]:
    with importing():
        from producer.dataset import dataset_of
    texts = dataset_of(job)
    return {row: texts.texts(range(row, row + 1))[0] for row in rows}
