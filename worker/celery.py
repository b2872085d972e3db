"""The Celery app: ``celery -A worker worker``.

Each child of the worker owns its engines, from its start to its end; the parent owns none. The one task is thin:
a message names a batch, the batch becomes a shard, and the message is acknowledged when the shard is on the disk.
"""

import logging
import os
import sys

from celery import Celery, Task
from celery.signals import celeryd_init, worker_process_init, worker_process_shutdown

from contract.engine import load_engine
from contract.errors import UserError
from contract.ledger import QUEUE, TASK, Ledger
from contract.settings import settings
from worker.embed import Embedder, log

app = Celery("embedmill", broker=settings().redis_url)
app.conf.update(
    task_default_queue=QUEUE,
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    # A message goes only when its shard is there, also when the child or the worker dies. Without the third, a batch
    # that kills its process would be run for ever.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_retry_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_concurrency=1,  # on a CPU one child uses all cores; several would only share them
    worker_proc_alive_timeout=120,  # a child loads its engine before it reports; 4 s would have it killed repeatedly
    worker_soft_shutdown_timeout=5,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "visibility_timeout": settings().visibility_timeout,
        "unacked_restore_interval": 5,  # how often unacknowledged messages are looked at; the defaults add up to 100 s
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,
        "socket_keepalive": True,
    },
)

_children = 1
_embedder: Embedder | None = None


@celeryd_init.connect
def _before_start(options: dict[str, object], **_: object) -> None:
    """In the parent, before it starts anything."""
    global _children
    if "REMAP_SIGTERM" not in os.environ:
        # Has SIGTERM stop the worker within seconds and put its unfinished batch back, instead of waiting for the
        # batch's end. Celery has read the variable by now, so the process begins anew with it.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"REMAP_SIGTERM": "SIGQUIT"})
    _children = int(str(options.get("concurrency") or app.conf.worker_concurrency))
    logging.getLogger("embedmill").setLevel(logging.INFO)  # its lines are shown at Celery's own default level too
    try:
        load_engine()  # without an engine a worker could do nothing but fail every batch
    except UserError as error:
        error.show()
        raise SystemExit(1) from None


@worker_process_init.connect
def _open(**_: object) -> None:
    """In each child, also in one that replaces a killed one: load the default engine before the first batch comes."""
    global _embedder
    cores = len(os.sched_getaffinity(0))
    _embedder = Embedder(settings().threads or max(1, cores // _children))
    _embedder.engine(None)


@worker_process_shutdown.connect
def _close(**_: object) -> None:
    if _embedder is not None:
        _embedder.close()


@app.task(bind=True, name=TASK, max_retries=settings().attempts)
def embed_batch(self: Task, job_id: str, number: int) -> None:
    """Make one batch's shard, unless it is there already.

    Args:
        self: the task.
        job_id: the job's id.
        number: the batch's number.
    """
    ledger = Ledger(patience=None)
    job = ledger.job(job_id)
    if job is None or number not in range(job.batches):
        log.warning("dropped a message for batch %s of job %s, which nobody announced", number, job_id)
        return
    if not job.shard(number).exists():
        payload = ledger.fetch(job_id, number)
        if payload is None:
            log.warning(
                "batch %d of job %s is not in Redis any more; its producer will publish it again", number, job_id
            )
            return
        attempt = ledger.begin_attempt(job_id, number)
        if attempt > settings().attempts:
            _give_up(ledger, job_id, number, f"the worker's process died in each of {settings().attempts} attempts")
            return
        try:
            _ready().embed(job, number, payload)
        except Exception as error:
            if attempt >= settings().attempts:
                _give_up(ledger, job_id, number, f"{type(error).__name__}: {error}")
                return
            log.exception("batch %d of job %s failed, attempt %d of %d", number, job_id, attempt, settings().attempts)
            raise self.retry(exc=error, countdown=attempt) from None
    ledger.settle(job_id, number)


def _ready() -> Embedder:
    if _embedder is None:
        raise RuntimeError("this process has no engines: worker_process_init has not run")
    return _embedder


def _give_up(ledger: Ledger, job_id: str, number: int, error: str) -> None:
    log.error("batch %d of job %s is given up: %s", number, job_id, error)
    ledger.bury(job_id, number, error)
