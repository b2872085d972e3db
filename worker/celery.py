"""The Celery app: ``celery -A worker worker``.

Each child of the worker owns its engines, from its start to its end; the parent owns none. The one task is thin:
a message names a batch, the batch becomes a shard, and the message is acknowledged when the shard is on the disk.
"""

import logging
import os
import traceback

from billiard import current_process
from celery import Celery, Task
from celery.apps.worker import Worker
from celery.exceptions import Reject
from celery.signals import celeryd_init, worker_process_init, worker_process_shutdown
from celery.worker.consumer import Gossip, Mingle

from contract.errors import UserError
from contract.job import Job, JobKey
from contract.redis.connection import Connection, tls_options
from contract.redis.keys import queue_of
from contract.redis.ledger import DeadBatch
from contract.redis.messages import TASK, direct_queue, ignore_celery_variables, ignored, transport_options
from contract.redis.working import AlteredBatch, WorkerLedger
from contract.settings import settings
from contract.words import count
from worker import consuming, environment, holding, metrics, starting
from worker.embed import Embedder
from worker.heartbeat import HeartbeatSender, command_id
from worker.jobs import Jobs
from worker.runtime.choose import gpu_usable
from worker.runtime.gpus import gpu_count
from worker.runtime.interface import EngineDead
from worker.serving import CannotServe
from worker.stages import Stages
from worker.stopping import Stop, grace

log = logging.getLogger("embedmill.worker")

_ignored = ignore_celery_variables()

app = Celery("embedmill", broker=settings().redis.broker)
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    # A message goes only when its shard is there, also when the child or the worker dies. A dead child's message is
    # back in the queue at once; how often that may happen is counted in the ledger, which counts the deaths of whole
    # workers too (Celery's own task_retry_on_worker_lost does not, and waits three minutes).
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_consumer=consuming.SturdyConsumer,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Three children for each GPU: while one computes, the others read and write, which takes longer where texts are
    # short. On a CPU one child uses all cores, and several would only share them.
    worker_concurrency=3 * gpu_count() if gpu_usable() else 1,
    worker_proc_alive_timeout=120,  # a child loads its engine before it reports; 4 s would have it killed repeatedly
    worker_soft_shutdown_timeout=grace(),
    broker_use_ssl=tls_options() or None,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "visibility_timeout": settings().visibility_timeout,
        "unacked_restore_interval": 5,  # how often unacknowledged messages are looked at; the defaults add up to 100 s
        "unacked_restore_throttle": 1,
        "queue_order_strategy": "worker.consuming:ByPriority",
        **transport_options(),
    },
)
app.steps["consumer"].add(consuming.JobQueues)
starting.tell_concurrency("Child processes. The default is three for each GPU, and one on a machine without.")

# Workers need to know nothing of one another. Asking for neighbours keeps a worker from taking work for a second after
# every reconnection, and gossip among n workers is n² messages.
Mingle.compatible_transports = Gossip.compatible_transports = frozenset()

_SEARCH_ATTEMPTS = 64
"""Deaths of the process that the search for failing rows may cost: a row that kills it costs two for each halving."""

_children = 1
_embedder: Embedder | None = None


class BatchWorker(Worker):
    """``celery worker``, which takes every job's batches and ends in time."""

    app = app
    _stop: Stop | None = None

    def setup_queues(self, include: object, exclude: object = None) -> None:
        """The queues are the jobs', and no others."""
        if include or exclude:
            log.warning("the options -Q and -X are ignored: a worker takes the batches of every job that it can serve")
        self.app.amqp.queues.deselect(list(self.app.amqp.queues))

    def install_platform_tweaks(self, worker: Worker) -> None:
        super().install_platform_tweaks(worker)
        self._stop = Stop(self, lambda: _heartbeat.close(children=True) if _heartbeat else None)
        self._stop.listen()

    def start(self) -> None:
        super().start()
        if _heartbeat:
            _heartbeat.close(children=True)
        if self._stop and self._stop.exit_status is not None:
            self.exitcode = self._stop.exit_status


app.Worker = BatchWorker

_heartbeat: HeartbeatSender | None = None
"""This process's: the parent's, and in a child the child's."""


@celeryd_init.connect
def _before_start(instance: Worker, options: dict[str, object], **_: object) -> None:
    """In the parent, before it starts anything."""
    global _children, _heartbeat
    _children = int(str(options.get("concurrency") or app.conf.worker_concurrency))
    starting.set_up_log(instance, map(ignored, _ignored))
    _heartbeat = HeartbeatSender(command_id(os.getpid()))
    _heartbeat.start()
    try:
        environment.check()
        starting.refuse_pool(options.get("pool"))
        metrics.serve()
        Connection(patience=0).ping()  # Celery would try a refused password or certificate for ever
        starting.wait_for_engine(_heartbeat)
    except UserError as error:
        _heartbeat.close()
        error.show()
        raise SystemExit(1) from None
    holding.install(_heartbeat.redis_time)
    consuming.jobs = Jobs(_heartbeat)
    consuming.jobs.start()


@worker_process_init.connect
def _open(**_: object) -> None:
    """In each child, also in one that replaces a killed one: load the default engine before the first batch comes."""
    global _embedder, _heartbeat
    metrics.begin()
    cores = len(os.sched_getaffinity(0))
    child = getattr(current_process(), "index", None)  # none in a solo pool; a killed child's goes to the next
    gpu = (child or 0) % max(1, gpu_count())
    parent = os.getpid() if child is None else os.getppid()
    heartbeat = HeartbeatSender(f"{command_id(parent)}/{child or 0}", gpu if gpu_usable() else None)
    heartbeat.start()
    heartbeat.set_state("starting", waits_for="its engine, which is being loaded")
    _embedder = Embedder(settings().threads or max(1, cores // _children), gpu=gpu, heartbeat=heartbeat)
    try:
        _embedder.engine(None)
    except CannotServe as error:  # another job's engine may do
        log.error("the engine could not be loaded: %s", error)
    heartbeat.set_state("idle")
    if child is not None:
        _heartbeat = heartbeat


@worker_process_shutdown.connect
def _close(**_: object) -> None:
    if _embedder is not None:
        _embedder.close()


@app.task(bind=True, name=TASK, max_retries=None, Request=consuming.BatchRequest)
def embed_batch(self: Task, key: JobKey, number: int) -> None:
    """Make one batch's shard, unless it is there already.

    Args:
        self: the task.
        key: the job's key.
        number: the batch's number.
    """
    try:
        with _ready().working_on(key, number):
            _embed(self, key, number)
    except EngineDead as error:
        # Nothing on the GPU can be freed any more, and the pool makes a new child. The message goes back to the queue.
        log.critical("this process ends: %s", error)
        os._exit(1)
    except CannotServe as error:
        log.warning("batch %s of job %s goes back: %s", _shown(number), _shown(key), error)
        raise Reject(str(error), requeue=True) from None


def _embed(task: Task, key: JobKey, number: int) -> None:
    ledger = WorkerLedger(patience=None)
    embedder = _ready()
    stages = embedder.stages = Stages()
    with stages.timed("fetch"):
        job = ledger.job(key)
    if job is None or not _is_announced(task, job, number):
        log.warning("dropped a message for batch %s of job %s, which nobody announced", _shown(number), _shown(key))
        return
    embedder.get_ready_for(job)
    if embedder.patiently(job.shard(number).exists):
        ledger.settle(key, number)
        return
    with stages.timed("fetch"):
        payload = _fetch(ledger, job, number)
    if payload is not None:
        _attempt(task, ledger, job, number, payload)


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


def _attempt(task: Task, ledger: WorkerLedger, job: Job, number: int, payload: bytes) -> None:
    """Make the batch's shard, or have it tried again, or give it up."""
    attempt, attempts = ledger.begin_attempt(job.key, number), settings().attempts
    metrics.attempt()
    if attempt > attempts + _SEARCH_ATTEMPTS:
        _give_up(ledger, job, number, None)
        return
    suspect = attempt > attempts
    try:
        rows = _ready().embed(job, number, payload, ledger if suspect else None)
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


def _shown(name: object) -> str:
    """What a message says, as one short line of a log: anybody who may write to the queue may have written it."""
    return ascii(name)[:200].strip("'")


def _ready() -> Embedder:
    if _embedder is None:
        raise RuntimeError("this process has no engines: worker_process_init has not run")
    return _embedder


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
