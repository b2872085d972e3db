"""One batch's way through a worker: bytes → vectors → shard."""

import errno
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tenacity

from contract.batch import Batch
from contract.engine import EngineSpec, load_engine
from contract.errors import UserError
from contract.job import Job, load_job
from contract.ledger import Ledger
from contract.shard import ShardInfo, commit, table_of
from worker import metrics
from worker.engine import Engine, fp32_engine, open_engine
from worker.isolate import failing_rows

log = logging.getLogger("embedmill.worker")

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, eq=False)
class Vectors:
    """A batch's vectors, and what is to be said of them."""

    vectors: npt.NDArray[np.float32]
    """Of the rows that have a text and no error, in row order; see ``contract.shard.table_of``."""
    errors: Mapping[int, str]
    """Place in the batch → why this row has no vector."""
    recomputed: int
    """Rows that were computed again in FP32."""
    computed_tokens: int


class Embedder:
    """What one worker child keeps from batch to batch: the engines that its jobs name.

    Args:
        threads: cores to compute on, where an engine computes on a CPU.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self._fp32: dict[str, Engine] = {}
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

    def embed(self, job: Job, number: int, payload: bytes, ledger: Ledger | None = None) -> None:
        """Make and commit one batch's shard.

        Args:
            job: the job.
            number: the batch's number.
            payload: a ``Batch``'s bytes.
            ledger: keeps how far the search for a failing row is. None for a batch that is not under suspicion: a row
                that fails then fails the batch.

        Raises:
            ValueError: the bytes are no batch, or another one.
            UserError: the engine or the job's folder is missing here, or another.
        """
        began = time.monotonic()
        with metrics.stage("decode"):
            _check_folder(job)
            batch = _decoded(job, number, payload)
        engine = self.engine(job.engine, job.fingerprint)
        with metrics.stage("compute"):
            errors = _search(engine, batch, ledger) if ledger else {}
            found = self._vectors(engine, batch, errors)
        info = _info(job, number, batch, engine, found, time.monotonic() - began)
        per_token = engine.spec.pooling == "tokens"
        with metrics.stage("commit"):
            table = table_of(batch, found.vectors, info, per_token=per_token, errors=found.errors)
            won = _when_there_is_space(commit, table, job.shard(number), job.staging)
        if won:
            metrics.count(info)
        log.info(
            "%s %d/%d: %d rows, %d tokens, %.1f %% padding computed, %.2f s%s",
            *(job.id, number + 1, job.batches, info.rows, info.tokens),
            *(100 * (1 - info.tokens / max(1, info.computed_tokens)), time.monotonic() - began),
            f", {info.recomputed} recomputed, {info.failed} failed" if info.recomputed or info.failed else "",
            extra=info.model_dump(),
        )

    def _vectors(self, engine: Engine, batch: Batch, errors: Mapping[int, str]) -> Vectors:
        """The batch's vectors, each finite and not zero; a row for which that cannot be had gets an error."""
        places = np.array([place for place in np.flatnonzero(batch.lengths) if place not in errors], np.intp)
        inference = engine.infer(batch.take(places))
        per_token = engine.spec.pooling == "tokens"
        owners = np.repeat(np.arange(len(places)), batch.lengths[places] if per_token else 1)
        vectors, bad = inference.vectors, _unfit(inference.vectors, owners)
        if len(bad) and engine.precision != "fp32":
            again = self._recompute(engine.spec, batch.take(places[bad]))
            vectors[np.isin(owners, bad)] = again
            still = _unfit(vectors, owners)
        else:
            still = bad
        if len(still):
            vectors = vectors[~np.isin(owners, still)]
            errors = {**errors, **{int(places[row]): "its vector is not finite or zero, in FP32 too" for row in still}}
        recomputed = 0 if engine.precision == "fp32" else len(bad)
        return Vectors(vectors, errors, recomputed, inference.computed_tokens)

    def _recompute(self, spec: EngineSpec, batch: Batch) -> npt.NDArray[np.float32]:
        if spec.fingerprint not in self._fp32:
            self._fp32[spec.fingerprint] = self._open.enter_context(fp32_engine(spec, self._threads))
        return self._fp32[spec.fingerprint].infer(batch).vectors

    def close(self) -> None:
        """Free the engines, the last one loaded first."""
        self._open.close()
        self._engines.clear()
        self._fp32.clear()


def _check_folder(job: Job) -> None:
    """Only into a folder that a producer made for this very job, whatever Redis says where that is."""
    there = load_job(job.folder)
    if there.identity != job.identity:
        raise UserError(f"{job.folder} belongs to another job on this worker", f"expected job {job.id}")


def _decoded(job: Job, number: int, payload: bytes) -> Batch:
    batch, wanted = Batch.from_bytes(payload), job.row_range(number)
    if (batch.job, batch.number, batch.engine) != (job.id, number, job.fingerprint) or not np.array_equal(
        batch.row_id, np.arange(wanted.start, wanted.stop)
    ):
        raise ValueError(
            f"found batch {batch.number} of job {batch.job} with {len(batch)} rows for engine {batch.engine}, "
            f"expected batch {number} of {job.id} with rows {wanted.start} to {wanted.stop - 1} for {job.fingerprint}"
        )
    return batch


def _search(engine: Engine, batch: Batch, ledger: Ledger) -> dict[int, str]:
    errors = failing_rows(
        len(batch),
        lambda places: engine.infer(batch.take(np.array(places))),
        ledger.search(batch.job, batch.number),
        lambda note: ledger.save_search(batch.job, batch.number, note),
    )
    for place, error in errors.items():
        log.error("row %d of job %s has no vector: %s", batch.row_id[place], batch.job, error)
    return errors


def _unfit(vectors: npt.NDArray[np.float32], owners: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The rows that have a vector that is not finite or whose norm is zero.

    Args:
        vectors: ``[n, hidden]``.
        owners: ``[n]``, the row of each vector.
    """
    norms = np.linalg.norm(vectors, axis=1)
    return np.unique(owners[~np.isfinite(norms) | (norms == 0)])


def _info(job: Job, number: int, batch: Batch, engine: Engine, found: Vectors, seconds: float) -> ShardInfo:
    embedded = batch.lengths.copy()
    embedded[list(found.errors)] = 0
    return ShardInfo(
        job=job.id,
        batch=number,
        engine=job.fingerprint,
        runtime=engine.runtime,
        precision=engine.precision,
        max_length=engine.spec.max_length,
        rows=len(batch),
        tokens=int(embedded.sum()),
        truncated=int((batch.n_tokens > engine.spec.max_length).sum()),
        without_text=int((batch.n_tokens == 0).sum()),
        recomputed=found.recomputed,
        failed=len(found.errors),
        computed_tokens=found.computed_tokens,
        seconds=seconds,
    )


def _say_full(state: tenacity.RetryCallState) -> None:
    log.warning("no space for the shard (%s); waiting for some", state.outcome and state.outcome.exception())


_when_there_is_space = tenacity.Retrying(
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, OSError) and error.errno in _FULL),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5),
    before_sleep=_say_full,
    reraise=True,
)
"""A full disk is a pause, not a failure of the batch."""
