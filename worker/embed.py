"""One batch's way through a worker: bytes → vectors → shard."""

import errno
import logging
import time
from contextlib import ExitStack

import numpy as np
import tenacity

from contract.batch import Batch
from contract.engine import load_engine
from contract.errors import UserError
from contract.job import Job
from contract.shard import ShardInfo, commit, table_of
from worker.engine import Engine, Inference, open_engine

log = logging.getLogger("embedmill.worker")

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Embedder:
    """What one worker child keeps from batch to batch: the engines that its jobs name.

    Args:
        threads: threads for computing on a CPU.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self._open = ExitStack()

    def engine(self, name: str | None, fingerprint: str | None = None) -> Engine:
        """The engine of this name, loaded on first use.

        Args:
            name: None for the default engine.
            fingerprint: what the engine must be.

        Raises:
            UserError: there is no such engine here, or it is another than the fingerprint says.
        """
        spec = load_engine(name)
        if fingerprint and spec.fingerprint != fingerprint:
            raise UserError(
                f"engine {spec.name} has the fingerprint {spec.fingerprint} on this worker",
                f"the job was made for {fingerprint}",
                "give every worker the engine directory that the producer used",
            )
        if spec.fingerprint not in self._engines:
            began = time.monotonic()
            engine = self._open.enter_context(open_engine(spec, self._threads))
            self._engines[spec.fingerprint] = engine
            log.info("engine %s loaded: %s, %.1f s", spec.name, engine.runtime, time.monotonic() - began)
        return self._engines[spec.fingerprint]

    def embed(self, job: Job, number: int, payload: bytes) -> None:
        """Make and commit one batch's shard.

        Args:
            job: the job.
            number: the batch's number.
            payload: a ``Batch``'s bytes.

        Raises:
            ValueError: the bytes are no batch, or another one.
            UserError: the engine is missing or another.
            ArithmeticError: a vector is not finite, or its norm is zero.
        """
        began = time.monotonic()
        batch = Batch.from_bytes(payload)
        wanted = job.row_range(number)
        if (batch.job, batch.number, batch.engine) != (job.id, number, job.fingerprint) or not np.array_equal(
            batch.row_id, np.arange(wanted.start, wanted.stop)
        ):
            raise ValueError(
                f"found batch {batch.number} of job {batch.job} with {len(batch)} rows for engine {batch.engine}, "
                f"expected batch {number} of {job.id} with rows {wanted.start} to {wanted.stop - 1} "
                f"for {job.fingerprint}"
            )
        engine = self.engine(job.engine, job.fingerprint)
        inference = engine.infer(batch)
        _check(inference, wanted)
        info = _info(job, number, batch, engine, inference, time.monotonic() - began)
        table = table_of(batch, inference.vectors, info, per_token=engine.spec.pooling == "tokens")
        _when_there_is_space(commit, table, job.shard(number), job.staging)
        log.info(
            "%s %d/%d: %d rows, %d tokens, %.1f %% padding computed, %.2f s",
            *(job.id, number + 1, job.batches, info.rows, info.tokens),
            *(100 * (1 - info.tokens / max(1, info.computed_tokens)), time.monotonic() - began),
        )

    def close(self) -> None:
        """Free the engines, the last one loaded first."""
        self._open.close()
        self._engines.clear()


def _check(inference: Inference, rows: range) -> None:
    norms = np.linalg.norm(inference.vectors, axis=1)
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        raise ArithmeticError(
            f"{int(bad.sum())} of {len(bad)} vectors of rows {rows.start} to {rows.stop - 1} are not finite or zero"
        )


def _info(job: Job, number: int, batch: Batch, engine: Engine, inference: Inference, seconds: float) -> ShardInfo:
    return ShardInfo(
        job=job.id,
        batch=number,
        engine=job.fingerprint,
        runtime=engine.runtime,
        precision=engine.precision,
        max_length=engine.spec.max_length,
        rows=len(batch),
        tokens=int(batch.lengths.sum()),
        truncated=int((batch.n_tokens > engine.spec.max_length).sum()),
        without_text=int((batch.n_tokens == 0).sum()),
        computed_tokens=inference.computed_tokens,
        seconds=seconds,
    )


def _say_full(state: tenacity.RetryCallState) -> None:
    log.warning("no space for the shard (%s); waiting for some", state.outcome and state.outcome.exception())


_when_there_is_space = tenacity.Retrying(
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and error.errno in _FULL),
    wait=tenacity.wait_fixed(5),
    before_sleep=_say_full,
    reraise=True,
)
"""A full disk is a pause, not a failure of the batch."""
