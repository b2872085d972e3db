"""What a worker does with a message: it fetches the job and the batch that the message names, and has the batch's shard
made, or tried again, or gives the batch up."""

import logging
import traceback

from celery import Task

from contract.job import Job, JobKey
from contract.redis.keys import queue_of
from contract.redis.ledger import DeadBatch
from contract.redis.messages import direct_queue
from contract.redis.working import AlteredBatch, WorkerLedger
from contract.settings import settings
from contract.words import count
from worker import metrics
from worker.embed import Embedder
from worker.serving import CannotServe
from worker.stages import Stages

log = logging.getLogger("embedmill.worker")

_SEARCH_ATTEMPTS = 64
"""Deaths of the process that the search for failing rows may cost: a row that kills it costs two for each halving."""


def make_shard(task: Task, embedder: Embedder, key: JobKey, number: int) -> None:
    """Make the shard of the batch that a message names, unless it is there already.

    Args:
        task: the message's.
        embedder: this process's.
        key: the job's key.
        number: the batch's number.

    Raises:
        CannotServe: this worker lacks something that the job needs.
        EngineDead: the GPU failed.
        Retry: the batch failed, and its message was sent again.
    """
    ledger = WorkerLedger(patience=None)
    stages = embedder.stages = Stages()
    with stages.timed("fetch"):
        job = ledger.job(key)
    if job is None or not _is_announced(task, job, number):
        log.warning("dropped a message for batch %s of job %s, which nobody announced", shown(number), shown(key))
        return
    embedder.get_ready_for(job)
    if embedder.patiently(job.shard(number).exists):
        ledger.settle(key, number)
        return
    with stages.timed("fetch"):
        payload = _fetch(ledger, job, number)
    if payload is not None:
        _attempt(task, embedder, ledger, job, number, payload)


def _is_announced(task: Task, job: Job, number: object) -> bool:
    """Whether the message is for a batch of this job and came by the job's own queue. Another job's message may not
    come back into this queue."""
    return (
        task.request.delivery_info.get("routing_key") == queue_of(job.key)
        and type(number) is int
        and number in range(job.batches)
    )


def _fetch(ledger: WorkerLedger, job: Job, number: int) -> bytes | None:
    """The batch's bytes; None where there is nothing to compute and its producer will publish it again."""
    about = {"job": job.id, "batch": number}  # for a log in JSON
    try:
        payload = ledger.fetch(job.key, number)
    except AlteredBatch as error:
        line = "batch %d of job %s is refused: %s; its producer will publish it again"
        log.error(line, number, job.id, error, extra=about)
        ledger.withdraw(job.key, number)
        return None
    if payload is None:
        line = "batch %d of job %s is not in Redis; its producer will publish it again"
        log.warning(line, number, job.id, extra=about)
    return payload


def _attempt(task: Task, embedder: Embedder, ledger: WorkerLedger, job: Job, number: int, payload: bytes) -> None:
    """Make the batch's shard, or have it tried again, or give it up."""
    attempt, attempts = ledger.begin_attempt(job.key, number), settings().attempts
    metrics.attempt()
    if attempt > attempts + _SEARCH_ATTEMPTS:
        _give_up(ledger, job, number, None)
        return
    suspect = attempt > attempts
    try:
        rows = embedder.embed(job, number, payload, ledger if suspect else None)
    except CannotServe:
        ledger.end_attempt(job.key, number)
        raise
    except Exception as error:
        if suspect:
            _give_up(ledger, job, number, error)
            return
        line, about = "batch %d of job %s failed, attempt %d of %d", {"job": job.id, "batch": number}
        log.exception(line, number, job.id, attempt, attempts, extra=about)
        raise task.retry(exc=error, countdown=attempt, queue=direct_queue(queue_of(job.key))) from None
    ledger.settle(job.key, number, rows)


def _give_up(ledger: WorkerLedger, job: Job, number: int, error: Exception | None) -> None:
    """Set a batch aside. ``error`` is None where it was the process that died."""
    line = f"{type(error).__name__}: {error}" if error else "the worker's process died in each attempt"
    frames = traceback.extract_tb(error.__traceback__) if error else []
    where = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    metrics.dead_batch()
    attempts = settings().attempts
    about = {"job": job.id, "batch": number, "where": where}
    tries = f"{count(attempts, 'attempt')} and a search for the rows that it fails on"
    log.error("batch %d of job %s is given up after %s: %s", number, job.id, tries, line, extra=about)
    ledger.bury(job.key, number, DeadBatch(error=line, where=where, attempts=attempts))


def shown(name: object) -> str:
    """What a message says, as one short line of a log: anybody who may write to the queue may have written it."""
    return ascii(name)[:200].strip("'")
