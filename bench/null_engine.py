"""The worker's own Celery app with an engine that computes nothing: ``celery -A bench.null_engine worker``.

What a job then takes is everything but the model: tokenizing, Redis, Celery, Parquet. Each vector is made of its row's
own number, so that a job's rows can still be told from one another.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# First: it prepares the environment that the next ones are imported in.
# isort: split
from worker import app

# isort: split

import worker.embed
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.vectors import RowVectors
from worker.runtime.interface import Done, Inference, unseen

__all__ = ["app"]


class NullEngine:
    """Takes the place of an engine."""

    runtime = "none"
    precision = "fp32"

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    def infer(self, batch: Batch, done: Done = unseen) -> Inference:
        """One vector for each row: its number and ones."""
        vectors = np.ones((int((batch.n_tokens > 0).sum()), self.spec.hidden), np.float32)
        vectors[:, 0] += batch.row_id[batch.n_tokens > 0]
        return Inference(RowVectors.pooled(vectors), int(batch.lengths.sum()))


@contextmanager
def _open_null(spec: EngineSpec, threads: int, gpu: int) -> Iterator[NullEngine]:
    yield NullEngine(spec)


setattr(worker.embed, "open_engine", _open_null)  # noqa: B010 - the module does not export what is replaced
