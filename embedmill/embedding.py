"""From a dataset and a model to verified vectors, with nothing that was started before."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa

from contract.engines import load_engine
from contract.entry import uncollected
from contract.errors import Interrupted, UserError
from contract.job import Job
from contract.settings import put
from contract.words import count
from embedmill.children import Child, children
from embedmill.clock import Clock
from embedmill.display import Display
from embedmill.early import Early
from embedmill.engines import EngineRequest, build, check
from embedmill.events import Event
from embedmill.services import Worker, private_redis, worker
from producer.batches import Work
from producer.console import STDERR, print_note
from producer.dataset import open_dataset
from producer.display import StallReport
from producer.progress import Progress
from producer.reasons import reason, workers_line
from producer.repair import set_faulty_aside
from producer.request import JobRequest
from producer.running import begin, drive, job_for
from producer.tokenizer import open_tokenizer
from worker.runtime.gpus import gpu_count

_WARM_UP = 30.0
"""Seconds before the estimated end of the job at which the verifier begins to import PyTorch."""

_FEW = 2000
"""Rows up to which the verifier begins that at once: the import is the longest step of a small job."""


@dataclass(frozen=True)
class EmbedRequest:
    """What a user asks for."""

    engine: EngineRequest
    job: JobRequest
    """Its engine has the name of ``engine``."""
    ranges: str | None
    """What gives the ranges of int8."""
    sample: int | None
    """Rows that the verifier computes again; None for all."""
    seed: int


@dataclass
class Run:
    """One run. Its processes end when ``stack`` is closed."""

    asked: EmbedRequest
    display: Display
    early: Early
    """What was started before, with the folder for logs."""
    stack: contextlib.ExitStack
    job: Job | None = None
    """Once it is known."""
    clock: Clock = field(default_factory=Clock)
    _verifier: Child | None = None
    _worker: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def embed(self) -> Job:
        """Give every row its vector.

        Raises:
            UserError: of any of the programs.
        """
        request, builder = self.asked.job, self._start_builder()
        self.stack.enter_context(private_redis(self.early.folder))
        put(engine=self.asked.engine.name)
        # It waits for its engine. On a GPU it would load the engine before the plan is built, which comes last.
        working = None if builder and gpu_count() else self._start_worker()
        texts = open_dataset(request.source)
        if min(request.limit or texts.rows, texts.rows) <= _FEW:
            self._verifier = self.early.verifier
        else:
            self.early.verifier.cancel()
        if builder:
            build(self.asked.engine, builder, self.display.show, print_note, meanwhile=_import_ahead)
        elif not self._verifier:
            self.early.end()  # both are cancelled: nobody waits for what it imports
        self.display.show(Event("engine", self.asked.engine.name, ended=True))
        working = working or self._start_worker()
        spec = load_engine(request.engine)
        tokenizer = open_tokenizer(spec)
        with self.display.paused() if request.dtype == "int8" else contextlib.nullcontext():
            self.job = job_for(request, self.asked.ranges, texts, spec, tokenizer, working.check)
        self._drive(Work(self.job, texts, tokenizer), working)
        self._worker.close()  # its cores are the verifier's now
        return self.job

    def verify(self, job: Job) -> bool:
        """Verify the job; returns whether it passed. The verdict is in its folder."""
        task = {"job": str(job.folder), "sample": self.asked.sample, "seed": self.asked.seed}
        self.display.show(Event("verification", "importing PyTorch"))
        verifier = self._start_verifier()
        verifier.send(task)
        passed = bool(verifier.result(self.display.show, print_note))
        self.display.show(Event("verification", "passed" if passed else "failed", ended=True))
        return passed

    def _start_worker(self) -> Worker:
        self.stack.push(self._worker)
        return self._worker.enter_context(worker(self.early.folder))

    def _start_builder(self) -> Child | None:
        """A process that builds the engine; None if it is built already."""
        if self.asked.engine.is_built():
            self.early.builder.cancel()
            return None
        check(self.asked.engine)
        self.clock.builds = True
        return self.early.builder

    def _start_verifier(self) -> Child:
        if self._verifier is None:
            (self._verifier,) = self.stack.enter_context(children(self.early.folder, "verify"))
        return self._verifier

    def _drive(self, work: Work, working: Worker) -> None:
        job, began = work.job, time.monotonic()
        stall = StallReport(began)

        def report(progress: Progress) -> None:
            working.check()
            self.clock.see(progress)
            now, view = time.monotonic(), progress.view
            self._show(progress)
            if line := stall.line(progress, now):
                why = reason(view) if view else None
                if why and why.kind.startswith("refused "):  # and there will be no other worker
                    raise UserError(why.line, hint=f"see the worker's log: {working.log}")
                if why and why.kind == "no worker":
                    line = f"The worker has not started for {timedelta(seconds=round(now - began))}"
                STDERR.print(line, highlight=False, soft_wrap=True)
            if progress.new_rows:
                left = (job.rows - progress.rows) * (now - began) / progress.new_rows
                if left < _WARM_UP:
                    self._start_verifier()

        ledger = begin(job)
        set_faulty_aside(job)
        progress = drive(work, ledger, report)
        self._show(progress, ended=True)
        _check(progress)

    def _show(self, progress: Progress, *, ended: bool = False) -> None:
        text = workers_line(progress.view) if progress.view and not ended else ""
        rows, tokens = progress.rows, progress.new.tokens - progress.new.spared_tokens
        self.display.show(Event("vectors", text, rows, progress.job.rows, tokens, ended))


def _import_ahead() -> None:
    """Import what a job's first batch takes."""
    with uncollected():
        from celery import Celery  # noqa: F401

        pa.array([""])  # the first one has pyarrow import pandas


def _check(progress: Progress) -> None:
    """Check that every batch has its shard."""
    job, dead = progress.job, progress.dead
    if dead:
        raise UserError(
            f"{len(dead)} of {count(job.batches, 'batch', 'batches')} given up; batch {min(dead)}: "
            f"{dead[min(dead)].error}",
            hint="fix the cause, then run the same command again",
        )
    if missing := job.batches - progress.totals.shards:
        raise UserError(f"{count(missing, 'shard')} of {job.id} missing", hint="run the same command again")


def embed(asked: EmbedRequest, display: Display, signals: Callable[[], int], early: Early) -> tuple[Job, bool]:
    """Embed a dataset and verify the result. No process is left behind, however this ends.

    Args:
        asked: what is asked for.
        display: takes the events.
        signals: gives the number of the signal that a ``KeyboardInterrupt`` came from.
        early: what was started before; it is closed.

    Returns:
        The job, and whether every check passed.

    Raises:
        UserError: of any of the programs.
        SystemExit: 128 and the number of the signal that interrupted this.
    """
    job = None
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(early.end)
            stack.enter_context(display)
            run = Run(asked, display, early, stack)
            try:
                job = run.embed()
                passed = run.verify(job)
                run.clock.verified(job, asked.sample)
                return job, passed
            finally:
                job = run.job
    except (KeyboardInterrupt, Interrupted):
        there = f"; {len(job.committed())} of {count(job.batches, 'shard')} there" if job else ""
        Interrupted(f"interrupted{there}; no process is left", hint="run the same command again to go on").show()
        raise SystemExit(128 + signals()) from None
    except UserError as error:
        if str(early.folder) in error.message:  # it names a log
            early.keep()
        raise
    finally:
        early.close()
