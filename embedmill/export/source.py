"""What is exported: the rows of a job that have a vector, one shard in memory at a time."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.engines import engine_of
from contract.errors import UserError
from contract.job import Job
from contract.shard import ShardInfo, open_file
from contract.vector_columns import is_per_token
from contract.verdict import doubt, load_verdict
from contract.words import count
from verify.shards import BadShard, open_shard
from verify.two_jobs import Chunk

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one shard that have a vector, ``n`` of them."""

    batch: int
    ids: npt.NDArray[np.int64]
    """``[n]``: their ``row_id``, ascending."""
    vectors: Floats
    """``[n, elements]``, finite."""
    kept: pa.Table
    """The kept columns that are exported, ``n`` rows."""


@dataclass(frozen=True, eq=False)
class Source:
    """A job whose every shard is there."""

    job: Job
    elements: int
    """Of a vector."""
    columns: pa.Schema
    """The kept columns that are exported."""
    expected: Sequence[int]
    """By batch: how many of its rows have a vector."""
    content: str
    """A hash over the shards' digests: another one if a shard was made again with other values."""

    @property
    def total(self) -> int:
        """Rows that have a vector."""
        return sum(self.expected)

    def read(self, batch: int) -> Rows:
        """A shard's rows.

        Raises:
            UserError: the shard cannot be read.
        """
        job, form = self.job, self.job.form
        try:
            with open_shard(job, batch) as (file, _):
                table = file.read(columns=["row_id", "embedding", *self.columns.names])
            table = table.filter(table["embedding"].is_valid())
            stored = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = form.dequantized(stored.reshape(table.num_rows, form.width(self.elements)), self.elements)
        except (BadShard, ValueError) as error:
            raise UserError(
                f"{job.shard(batch)} cannot be read ({error})",
                hint=f"verify the job: embedmill verify {job.folder}",
            ) from None
        kept = table.select(self.columns.names).replace_schema_metadata(None)
        return Rows(batch, table["row_id"].to_numpy(), np.ascontiguousarray(vectors), kept)

    def chunks(self) -> Iterator[Chunk]:
        """All rows, also those without a vector, one shard in memory at a time."""
        for batch in range(self.job.batches):
            rows, span = self.read(batch), self.job.row_range(batch)
            there = np.zeros(len(span), np.bool_)
            there[rows.ids - span.start] = True
            vectors = np.zeros((len(span), self.elements), np.float32)
            vectors[there] = rows.vectors
            yield Chunk(span, there, vectors)

    def sample(self, size: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], Floats]:
        """Rows drawn at random from up to 64 shards that lie evenly over the job.

        Args:
            size: most rows.
            seed: another seed, another sample.

        Returns:
            Row ids, ``[n]`` ascending, and their vectors, ``[n, elements]``; fewer than ``size`` where those shards
            have fewer.
        """
        full = [batch for batch, rows in enumerate(self.expected) if rows]
        picked = [full[place] for place in np.unique(np.linspace(0, len(full) - 1, min(64, len(full))).astype(int))]
        there = sum(self.expected[batch] for batch in picked)
        chosen = np.sort(np.random.default_rng(seed).permutation(there)[:size])
        ids, vectors, start = [], [], 0
        for batch in picked:
            stop = start + self.expected[batch]
            inside = chosen[(chosen >= start) & (chosen < stop)] - start
            if len(inside):
                rows = self.read(batch)
                ids.append(rows.ids[inside])
                vectors.append(rows.vectors[inside])
            start = stop
        return np.concatenate(ids), np.concatenate(vectors)


def source_of(job: Job, columns: Sequence[str] | None, *, unverified: bool) -> Source:
    """A job, once it is known that it can be exported.

    Args:
        job: the job.
        columns: which of its kept columns are exported; None for all.
        unverified: whether it may be exported though it is not verified.

    Raises:
        UserError: it is not complete or not verified, it has no vector for each row or none at all, or it did not keep
            such a column.
    """
    if missing := job.batches - len(job.committed()):
        raise UserError(
            f"{count(missing, 'shard')} of {job.id} missing",
            "a job is exported when it is complete",
            "run the command that began it again: it goes on where it was",
        )
    if (why := doubt(job, load_verdict(job))) and not unverified:
        raise UserError(
            f"{job.id} is not exported: {why}",
            hint=f"run: embedmill verify {job.folder}, or export it as it is with --unverified",
        )
    schema = _schema_of(job)
    names = job.columns if columns is None else tuple(columns)
    if strange := [name for name in names if name not in job.columns]:
        raise UserError(
            f"job {job.id} has no kept column {strange[0]}",
            f"it has {', '.join(job.columns) or 'none'}",
            "embed again with --keep-columns to have others",
        )
    infos = [_info(job, batch) for batch in range(job.batches)]
    expected = [info.rows - info.without_text - info.failed for info in infos]
    if not any(expected):
        raise UserError(f"no row of job {job.id} has a vector", "there is nothing to export")
    picked = pa.schema([schema.field(name) for name in names])
    content = hashlib.sha256(json.dumps([info.digests for info in infos], sort_keys=True).encode()).hexdigest()[:10]
    return Source(job, _elements(job, expected), picked, expected, content)


def _schema_of(job: Job) -> pa.Schema:
    with open_file(job.shard(0)) as file:
        schema: pa.Schema = file.schema_arrow.remove_metadata()
    sparse = "embedding" not in schema.names
    if sparse or is_per_token(schema.field("embedding").type):
        raise UserError(
            f"job {job.id} has {'sparse vectors' if sparse else 'a vector for each token'}",
            "an export needs one dense vector for each row",
            "embed with another model, or with an engine of another pooling: embedmill build --pooling mean",
        )
    return schema


def _info(job: Job, batch: int) -> ShardInfo:
    try:
        with open_shard(job, batch) as (_, info):
            return info
    except BadShard as error:
        raise UserError(
            f"{job.shard(batch)} cannot be read ({error})", hint=f"verify the job: embedmill verify {job.folder}"
        ) from None


def _elements(job: Job, expected: Sequence[int]) -> int:
    if job.form.dtype == "binary":  # eight elements to a value, the last of which may have fewer
        return job.form.dimensions or engine_of(job).hidden
    batch = next(batch for batch, rows in enumerate(expected) if rows)
    with open_file(job.shard(batch)) as file:
        for part in file.iter_batches(batch_size=64, columns=["embedding"]):
            if len(full := part.column(0).drop_null()):
                return len(full[0].values)
    raise UserError(
        f"{job.shard(batch)} has no vector",
        f"its footer says {expected[batch]:,}",
        f"verify the job: embedmill verify {job.folder}",
    )
