"""What a worker writes into a shard's footer."""

from datetime import UTC, datetime

import numpy as np

from contract.batch import Batch
from contract.compare import TOLERANCES
from contract.job import Job
from contract.shard import ShardInfo
from worker.rows import EmbeddedBatch
from worker.runtime.interface import Engine
from worker.taking import Taken


def footer_of(job: Job, batch: Batch, engine: Engine, found: EmbeddedBatch, taken: Taken, seconds: float) -> ShardInfo:
    """A shard's footer, but for the digests of its columns.

    Args:
        job: the batch's.
        batch: with a row for each text.
        engine: which computed the rows that were not taken.
        found: the vectors of all rows.
        taken: those of them that are from earlier jobs.
        seconds: from the batch's bytes to its vectors.
    """
    max_length, origins = engine.spec.max_length, batch.origins
    embedded = batch.n_tokens.copy() if job.windowed else np.minimum(batch.n_tokens, max_length)
    embedded[list(found.errors)] = 0
    repeated = np.zeros(len(batch), bool) if origins is None else origins.repeated
    spared = repeated if origins is None else repeated | origins.taken
    runtime, precision = _made_by(engine, taken, computed=found.computed_tokens > 0)
    return ShardInfo(
        job=job.id,
        batch=batch.number,
        engine=job.fingerprint,
        runtime=runtime,
        precision=precision,
        max_length=max_length,
        rows=len(batch),
        tokens=int(embedded.sum()),
        truncated=0 if job.windowed else int((batch.n_tokens > max_length).sum()),
        without_text=int((batch.n_tokens == 0).sum()),
        recomputed=found.recomputed,
        failed=len(found.errors),
        computed_tokens=found.computed_tokens,
        taken=dict(taken.rows),
        repeated=int(repeated.sum()),
        spared_tokens=int(embedded[spared].sum()),
        seconds=seconds,
        finished=datetime.now(UTC),
    )


def _made_by(engine: Engine, taken: Taken, *, computed: bool) -> tuple[str, str]:
    """The runtime and the precision of a shard's vectors. Of several precisions it is the coarsest, and of several
    runtimes this worker's, or where it computed nothing that of the first shard that vectors were taken from."""
    made_by = [(one.runtime, one.precision) for one in taken.infos]
    if computed or not made_by:
        made_by.insert(0, (engine.runtime, engine.precision))
    precisions = [precision for _, precision in made_by]
    return made_by[0][0], max(precisions, key=lambda name: TOLERANCES[name].max_relative_mse)
