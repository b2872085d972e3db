"""One batch's way through a worker: bytes → vectors → shard."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.engines import engine_of, load_engine
from contract.job import Job, JobKey
from contract.redis.working import WorkerLedger
from contract.shard import commit, table_of
from contract.vectors import RowVectors
from contract.words import count
from worker import metrics
from worker.folder_patience import FolderPatience
from worker.footer import footer_of
from worker.heartbeat import HeartbeatSender, command_id
from worker.isolate import failing_rows
from worker.rows import EmbeddedBatch, into_form, pool_windows
from worker.runtime.choose import open_engine, open_fp32_engine
from worker.runtime.interface import Engine
from worker.serving import SAME_ENGINE, check_folder, workers_fault
from worker.stages import Stages
from worker.taking import EarlierJobs, complete

log = logging.getLogger("embedmill.worker")


class Embedder:
    """What one worker child keeps from batch to batch: the engines that its jobs name.

    Args:
        threads: cores to compute on, where an engine computes on a CPU.
        gpu: the GPU to compute on, where it does that.
        heartbeat: says what this process does; by default one that sends nothing.
    """

    def __init__(self, threads: int, gpu: int = 0, heartbeat: HeartbeatSender | None = None) -> None:
        self._threads = threads
        self._gpu = gpu
        self._engines: dict[str, Engine] = {}
        self._fp32: dict[str, Engine] = {}
        self._open = ExitStack()
        self._heartbeat = heartbeat or HeartbeatSender(command_id(os.getpid()))
        self.patiently = FolderPatience(self._heartbeat)
        """Calls what uses a job's folder."""
        self._earlier = EarlierJobs()
        self.stages = Stages()
        """Of the batch that is being worked on, or was last."""

    @contextmanager
    def working_on(self, key: JobKey, number: int) -> Iterator[None]:
        """In the ``with`` block the heartbeat says that this batch is being computed."""
        self._heartbeat.set_state("computing", job=key, batch=number)
        try:
            yield
        finally:
            self._heartbeat.set_state("idle")

    def get_ready_for(self, job: Job) -> None:
        """Load the job's engine, once it is known that this machine has all that the job needs.

        Raises:
            CannotServe: it has not.
            EngineDead: the GPU failed.
        """
        with workers_fault():
            spec = engine_of(job, SAME_ENGINE)
            self.patiently(check_folder, job)
        self._loaded(spec)

    def engine(self, name: str | None) -> Engine:
        """The engine of this name, loaded on first use.

        Args:
            name: None for the default engine.

        Raises:
            CannotServe: there is no such engine here, or it cannot be loaded.
            EngineDead: the GPU failed.
        """
        with workers_fault():
            spec = load_engine(name)
        return self._loaded(spec)

    def _loaded(self, spec: EngineSpec) -> Engine:
        if spec.fingerprint not in self._engines:
            began = time.monotonic()
            with workers_fault():
                engine = self._open.enter_context(open_engine(spec, self._threads, self._gpu))
            self._engines[spec.fingerprint] = engine
            log.info("engine %s loaded: %s, %.1f s", spec.name, engine.runtime, time.monotonic() - began)
        engine = self._engines[spec.fingerprint]
        self._heartbeat.set_fields(engine=spec.name, runtime=engine.runtime)
        return engine

    def _of(self, job: Job) -> Engine:
        """The job's engine: the loaded one, without a look at ``engine.json``, if ``get_ready_for`` was called."""
        if job.fingerprint not in self._engines:
            with workers_fault():
                self._loaded(engine_of(job, SAME_ENGINE))
        return self._engines[job.fingerprint]

    def embed(self, job: Job, number: int, payload: bytes, ledger: WorkerLedger | None = None) -> int:
        """Make and commit one batch's shard.

        Args:
            job: the job.
            number: the batch's number.
            payload: a ``Batch``'s bytes.
            ledger: keeps how far the search for a failing row is. None for a batch that is not under suspicion: a row
                that fails then fails the batch.

        Returns:
            The shard's rows; 0 where another worker's shard was there first.

        Raises:
            ValueError: the bytes are no batch, or another one.
            CannotServe: this machine cannot write into the job's folder, or lacks a package.
        """
        began, stages = time.monotonic(), self.stages
        with stages.timed("decode"):
            batch = _decoded(job, number, payload)
        engine = self._of(job)
        with stages.timed("compute"):
            errors = _search(engine, job, batch, ledger) if ledger else {}
            rows, found = pool_windows(batch, self._vectors(engine, batch, errors), normalize=engine.spec.unit_norm)
            found = into_form(rows, found, job.form, engine.spec)
            with workers_fault():
                taken = self._earlier.take(job, rows, engine.spec.layout)
            rows, found = complete(rows, found, taken)
        info = footer_of(job, rows, engine, found, taken, time.monotonic() - began)
        with stages.timed("write"):
            table = table_of(rows, found.vectors, info, errors=found.errors, windowed=job.windowed)
            with workers_fault(job.data):
                won = self.patiently(commit, table, job.shard(number), job.staging)
        metrics.time(stages)
        if won:
            metrics.count(info, job)
        log.info(
            "job %s, batch %d of 0 to %d: %s, %s, %.1f %% padding computed, %.2f s (%s)%s",
            *(job.id, number, job.batches - 1, count(info.rows, "row"), count(info.tokens, "token")),
            *(100 * info.padding, time.monotonic() - began, stages),
            f", {info.spared} not computed" * bool(info.spared)
            + f", {info.recomputed} recomputed, {info.failed} failed" * bool(info.recomputed or info.failed),
            extra=info.model_dump(mode="json", exclude={"digests"}),
        )
        return info.rows if won else 0

    def _vectors(self, engine: Engine, batch: Batch, errors: Mapping[int, str]) -> EmbeddedBatch:
        """The batch's vectors, each finite and not zero; a row for which that cannot be had gets an error."""
        rows = np.array([row for row in np.flatnonzero(batch.lengths) if row not in errors], np.intp)
        self._heartbeat.begin_rows(len(rows))
        inference = engine.infer(batch.take(rows), self._heartbeat.add_computed)
        vectors = inference.rows
        bad = still = vectors.unfit()
        if len(bad) and engine.precision != "fp32":
            vectors = vectors.replaced(bad, self._recompute(engine.spec, batch.take(rows[bad])))
            still = vectors.unfit()
        if len(still):
            vectors = vectors.take(~np.isin(np.arange(len(rows)), still))
            errors = {**errors, **{int(rows[row]): "its vector is not finite or zero, in FP32 too" for row in still}}
        recomputed = 0 if engine.precision == "fp32" else len(bad)
        return EmbeddedBatch(vectors, errors, recomputed, inference.computed_tokens)

    def _recompute(self, spec: EngineSpec, batch: Batch) -> RowVectors:
        if spec.fingerprint not in self._fp32:
            with workers_fault():
                self._fp32[spec.fingerprint] = self._open.enter_context(open_fp32_engine(spec, self._threads))
        return self._fp32[spec.fingerprint].infer(batch).rows

    def close(self) -> None:
        """Free the engines, the last one loaded first."""
        self._open.close()
        self._engines.clear()
        self._fp32.clear()


def _decoded(job: Job, number: int, payload: bytes) -> Batch:
    batch, wanted = Batch.from_bytes(payload), job.row_range(number)
    # Without windows every row is a text of its own.
    rows = batch.row_id[np.flatnonzero(np.diff(batch.owners, prepend=-1))] if job.windowed else batch.row_id
    if (
        (batch.job, batch.number, batch.engine) != (job.id, number, job.fingerprint)
        or not np.array_equal(rows, np.arange(wanted.start, wanted.stop))
        or tuple(batch.kept) != job.columns
    ):
        raise ValueError(
            f"found batch {batch.number} of job {batch.job} for engine {batch.engine} with {count(len(rows), 'row')} "
            f"and the columns {tuple(batch.kept)}, expected batch {number} of {job.id} for {job.fingerprint}: row ids "
            f"{wanted.start} to {wanted.stop - 1}, the columns {job.columns}"
        )
    return batch


def _search(engine: Engine, job: Job, batch: Batch, ledger: WorkerLedger) -> dict[int, str]:
    errors = failing_rows(
        len(batch),
        lambda rows: engine.infer(batch.take(np.array(rows))),
        ledger.search(job.key, batch.number),
        lambda note: ledger.save_search(job.key, batch.number, note),
    )
    for row, error in errors.items():
        log.error("row %d of job %s has no vector: %s", batch.row_id[row], batch.job, error)
    return errors
