"""Runs a job: makes its folder, drives it under a display, and prints what came of it."""

import time
from collections.abc import Callable
from dataclasses import replace

from contract.engine import EngineSpec
from contract.errors import Interrupted, UserError
from contract.job import Job
from contract.redis.claims import Claims
from contract.redis.producing import ProducerLedger
from contract.words import count
from producer.batches import Work
from producer.calibrate import CALIBRATION_ROWS, Ranges, ranges_from, ranges_of
from producer.console import STDERR, STDOUT, print_line, print_note
from producer.display import progress_display
from producer.driver import Driver
from producer.estimate import how_far_off, kept_estimate
from producer.progress import Progress, ShardTotals
from producer.reasons import reason, workers_line
from producer.repair import set_faulty_aside
from producer.repeats import FEW, repeated_work, search_pays
from producer.request import JobRequest, elements_of, resolve
from producer.reuse import index_of
from producer.tables import summary
from producer.texts import TextDataset
from producer.tokenizer import RowTokenizer
from producer.tokenizing import processes_for, tokenizing
from producer.view import view_of

NEXT = "Next: python -m verify"


def begin(job: Job) -> ProducerLedger:
    """Make a job's folder and let workers know the job.

    Returns:
        The job's keys in Redis.

    Raises:
        UserError: Redis does not answer or refuses this user, or the folder cannot be made.
    """
    ledger = ProducerLedger.open()
    ledger.queued(job.key)  # before the folder is made: without a Redis nothing is left behind
    job.save()
    ledger.announce(job)  # after it: workers look into the folder
    print_note(
        f"{count(job.rows, 'row')} of {job.dataset} ({job.split}, {job.parts.shown}) in "
        f"{count(job.batches, 'batch', 'batches')} of {count(job.batch_rows, 'row')}, engine {job.engine}: job {job.id}"
    )
    return ledger


def _nothing() -> None:
    pass


def run(
    work: Work, spec: EngineSpec, ledger: ProducerLedger, *, detach: bool, watch: Callable[[], None] = _nothing
) -> bool:
    """Drive a job, and print what came of it.

    Args:
        work: a job that workers know of, its dataset, and its engine's tokenizer.
        spec: its engine.
        ledger: its keys in Redis.
        detach: leave once everything is published.
        watch: called a few times a second; what it raises ends the drive.

    Returns:
        Whether every batch has its shard.

    Raises:
        UserError: batches were given up, Redis does not answer, or somebody cancelled the job.
    """
    job, began = work.job, time.monotonic()
    try:
        with progress_display(STDERR) as show:

            def report(progress: Progress) -> None:
                watch()
                show(progress)

            progress = drive(work, ledger, report, detach=detach)
    except KeyboardInterrupt:
        raise _interrupted(job) from None
    if detach and progress.totals.shards + len(progress.dead) < job.batches:
        _print_detached(progress, ledger)
        return False
    STDOUT.print(summary(progress, spec, time.monotonic() - began))
    if missing := job.batches - progress.totals.shards - len(progress.dead):
        raise UserError(f"{count(missing, 'shard')} of {job.id} missing", hint="run the same command again")
    if progress.dead:
        raise _given_up(progress)
    if found := kept_estimate(job):
        vectors = None if progress.before.rows else found.vectors
        print_line(how_far_off(found, progress.totals.tokens, vectors, time.monotonic() - began))
    return True


def drive(work: Work, ledger: ProducerLedger, report: Callable[[Progress], None], *, detach: bool = False) -> Progress:
    """Drive a job, as ``run`` does, and print nothing.

    Args:
        work: the job, its dataset and its tokenizer.
        ledger: of the job's Redis.
        report: called with how far the job is, a few times a second.
        detach: leave once everything is published.

    Returns:
        How far the job is at the end.
    """
    job, first = work.job, ShardTotals()
    if not detach and len(job.committed()) < job.batches and search_pays(work):
        if job.rows > FEW:
            print_note(f"First {count(job.rows, 'row')} are read for texts that come again: a sample has some")
        if repeated := repeated_work(work):
            first = _drive_repeated(repeated, report)
    return replace(_drive(work, ledger, report, detach=detach), first=first)


def _drive(work: Work, ledger: ProducerLedger, report: Callable[[Progress], None], *, detach: bool = False) -> Progress:
    job = work.job
    claims = Claims(job, ledger.connection)
    with claims.joined(), index_of(job) as index:
        division = claims.division()
        processes = processes_for(job.batches - len(job.committed()), len(division.alive), division.here)
        if len(division.alive) > 1:
            print_note(_shared(len(division.alive), division.here, processes))
        with tokenizing(work._replace(known=index), processes) as source:
            return Driver(claims, source, ledger, detach=detach).run(report)


def _drive_repeated(work: Work, report: Callable[[Progress], None]) -> ShardTotals:
    """Embed the texts that several batches have; returns the new shards' sums. Where a batch of them is given up, those
    that have them compute them."""
    job = work.job
    set_faulty_aside(job, whole=True)
    if len(job.committed()) == job.batches:
        return ShardTotals()
    print_note(f"{count(job.rows, 'text')} in several batches: first each of them is embedded once")
    return _drive(work, begin(job), report).new


def _shared(producers: int, here: int, processes: int) -> str:
    """That a job has several producers, ``here`` of them on this machine, whose cores they share."""
    machine = f", {here} of them on this machine" if here > 1 else ""
    many = f"This one has {count(processes, 'tokenizing process', 'tokenizing processes')}"
    who = "This one tokenizes in its own process" if processes == 1 else many
    return f"{producers} producers share this job{machine}. {who}."


def job_for(
    request: JobRequest,
    ranges: str | None,
    texts: TextDataset,
    spec: EngineSpec,
    tokenizer: RowTokenizer,
    watch: Callable[[], None] = _nothing,
) -> Job:
    """The job that a request makes. For int8 without ``ranges``, which no earlier job has, the dataset's first rows are
    embedded for them.

    Args:
        request: what is asked for, without the ranges of int8.
        ranges: what gives the ranges of int8; None for the dataset's first rows.
        texts: the dataset.
        spec: the engine.
        tokenizer: the engine's.
        watch: called a few times a second while these rows are embedded; what it raises ends that.

    Raises:
        UserError: the engine or the dataset cannot do what is asked for.
    """
    if request.dtype == "int8":
        elements = elements_of(request, spec)
        found = ranges_from(ranges, elements) if ranges else request.earlier_ranges
        found = found or calibrate(request, texts, spec, tokenizer, watch)
        request = replace(request, ranges=found)
    return resolve(request, texts, spec, tokenizer)


def calibrate(
    request: JobRequest, texts: TextDataset, spec: EngineSpec, tokenizer: RowTokenizer, watch: Callable[[], None]
) -> Ranges:
    """The ranges of the first rows that a request asks for, by a float32 job of these rows alone.

    Raises:
        UserError: the request cannot be resolved, or the job does not come to its end.
    """
    few = min(request.limit or texts.rows, texts.rows, CALIBRATION_ROWS)
    print_note(f"The ranges for int8 come from the first {count(few, 'row')}, as float32:")
    texts = replace(texts, columns=())
    job = resolve(replace(request, dtype="float32", name=None, limit=few), texts, spec, tokenizer)
    set_faulty_aside(job, whole=True)
    run(Work(job, texts, tokenizer), spec, begin(job), detach=False, watch=watch)
    return ranges_of(job)


def _print_detached(progress: Progress, ledger: ProducerLedger) -> None:
    """What was published, and who takes it."""
    job = progress.job
    there = f"{progress.totals.shards} of {count(job.batches, 'shard')} there"
    print_line(f"Published; {there}: {job.folder}")
    view = view_of(job, ledger, frozenset(ledger.outstanding(job)))
    alive = view.alive()
    able = len({worker.command for worker in alive}) > len(view.refusals())
    line = workers_line(view) if alive and able else reason(view).line
    print_line(f"{line[0].upper()}{line[1:]}.")
    print_line(f"Next: python -m producer status --watch {job.id}")


def _given_up(progress: Progress) -> UserError:
    job, dead = progress.job, progress.dead
    numbers = ", ".join(map(str, sorted(dead)[:10])) + (" …" if len(dead) > 10 else "")
    return UserError(
        f"{len(dead)} of {count(job.batches, 'batch', 'batches')} given up: {numbers}; "
        f"batch {min(dead)}: {dead[min(dead)].error}",
        hint=f"fix the cause, then: python -m producer retry {job.folder}",
    )


def _interrupted(job: Job) -> Interrupted:
    return Interrupted(
        f"interrupted; {len(job.committed())} of {count(job.batches, 'shard')} there, and workers compute what is "
        "published",
        hint=f"run the same command again to go on; python -m producer cancel {job.id} to stop the workers too",
    )
