"""The Celery app: ``celery -A worker worker``.

Each child of the worker owns its engines, from its start to its end; the parent owns none. The one task is thin:
a message names a batch, the batch becomes a shard, and the message is acknowledged when the shard is on the disk.
"""

import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable

from billiard import current_process
from celery import Celery, Task
from celery.apps.worker import Worker
from celery.signals import celeryd_init, worker_process_init, worker_process_shutdown, worker_ready
from celery.worker.consumer import Consumer, Gossip, Mingle
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.message import Message

from contract.connection import SOCKET, tls_options
from contract.engine import load_engine
from contract.errors import UserError
from contract.ledger import QUEUE, TASK, AlteredBatch, DeadBatch, Ledger
from contract.settings import settings
from worker import logs, metrics
from worker.embed import Embedder, patiently
from worker.engine import EngineDead, log, takes_tensorrt
from worker.gpus import gpu_count, lacking
from worker.stages import Stages


class SturdyConsumer(Consumer):
    """Refuses a message of another form than a task's. Celery's own dies of one, and the next worker after it."""

    def create_task_handler(self, *arguments: object) -> Callable[[Message], None]:
        receive = super().create_task_handler(*arguments)

        def refuse_or_receive(message: Message) -> None:
            try:
                arguments, keywords, options = message.payload
                if list(map(type, (arguments, keywords, options, message.headers["id"]))) != [list, dict, dict, str]:
                    raise TypeError("expected an id, and a body of arguments, keywords and options")
                receive(message)
            except (ContentDisallowed, DecodeError, TypeError, ValueError, LookupError, AttributeError) as error:
                self.on_invalid_task(None, message, error)

        return refuse_or_receive


try:
    settings(), tls_options()
except UserError as error:  # which Celery would show as a failure to import this module, with a traceback
    error.show()
    raise SystemExit(1) from None

app = Celery("embedmill", broker=settings().redis_url)
app.conf.update(
    task_default_queue=QUEUE,
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    # A message goes only when its shard is there, also when the child or the worker dies. A dead child's message is
    # back in the queue at once; how often that may happen is counted in the ledger, which counts the deaths of whole
    # workers too (task_retry_on_worker_lost does not, and waits three minutes).
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_consumer=SturdyConsumer,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Two children for each GPU: while one reads or writes, the other computes. On a CPU one child uses all cores, and
    # several would only share them.
    worker_concurrency=1 if settings().runtime == "onnxruntime" or lacking() else 2 * gpu_count(),
    worker_proc_alive_timeout=120,  # a child loads its engine before it reports; 4 s would have it killed repeatedly
    worker_soft_shutdown_timeout=5,
    broker_use_ssl=tls_options() or None,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,
    broker_transport_options={
        "visibility_timeout": settings().visibility_timeout,
        "unacked_restore_interval": 5,  # how often unacknowledged messages are looked at; the defaults add up to 100 s
        "unacked_restore_throttle": 1,
        **SOCKET,
    },
)

# Workers need to know nothing of one another. Asking for neighbours keeps a worker from taking work for a second after
# every reconnection, and gossip among n workers is n² messages.
Mingle.compatible_transports = Gossip.compatible_transports = frozenset()

_SEARCH_ATTEMPTS = 64
"""Deaths of the process that the search for failing rows may cost: a row that kills it costs two for each halving."""

_children = 1
_embedder: Embedder | None = None


@celeryd_init.connect
def _before_start(instance: Worker, options: dict[str, object], **_: object) -> None:
    """In the parent, before it starts anything."""
    global _children
    # Has SIGTERM stop the worker within seconds and put its unfinished batch back, instead of waiting for the batch's
    # end.
    wanted = {"REMAP_SIGTERM": "SIGQUIT"} | metrics.environment()
    if not wanted.keys() <= os.environ.keys():
        # Celery and prometheus_client have read them by now, so the process begins anew with them.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted | os.environ)
    logs.begin(instance)
    _children = int(str(options.get("concurrency") or app.conf.worker_concurrency))
    logging.getLogger("embedmill").setLevel(logging.INFO)  # its lines are shown at Celery's own default level too
    try:
        metrics.serve()
        spec = load_engine()  # without an engine a worker could do nothing but fail every batch
        on_gpu = takes_tensorrt(spec)
        Ledger(patience=0).knock()  # Celery would try a refused password or certificate for ever
    except UserError as error:
        error.show()
        raise SystemExit(1) from None
    # This process may not touch CUDA, or its children could not. One that ends tries the plan in its place.
    if on_gpu and subprocess.run([sys.executable, "-m", "worker.probe", spec.name]).returncode:
        raise SystemExit(1)


@worker_ready.connect
def _stop_on_interrupt(**_: object) -> None:
    """Ctrl-C is what SIGTERM is: Celery's own first Ctrl-C would wait for the batch's end."""
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@worker_process_init.connect
def _open(**_: object) -> None:
    """In each child, also in one that replaces a killed one: load the default engine before the first batch comes."""
    global _embedder
    cores = len(os.sched_getaffinity(0))
    child = getattr(current_process(), "index", None) or 0  # none in a solo pool; a killed child's goes to the next
    _embedder = Embedder(settings().threads or max(1, cores // _children), gpu=child % max(1, gpu_count()))
    _embedder.engine(None)


@worker_process_shutdown.connect
def _close(**_: object) -> None:
    if _embedder is not None:
        _embedder.close()


@app.task(bind=True, name=TASK, max_retries=None)
def embed_batch(self: Task, job_id: str, number: int) -> None:
    """Make one batch's shard, unless it is there already.

    Args:
        self: the task.
        job_id: the job's id.
        number: the batch's number.
    """
    ledger = Ledger(patience=None)
    stages = _ready().stages = Stages()
    with stages.timed("fetch"):
        job = ledger.job(job_id)
    if job is None or type(number) is not int or number not in range(job.batches):
        log.warning("dropped a message for batch %s of job %s, which nobody announced", _shown(number), _shown(job_id))
        return
    if patiently(job.shard(number).exists):
        ledger.settle(job_id, number)
        return
    about = {"job": job_id, "batch": number}  # for a log in JSON
    try:
        with stages.timed("fetch"):
            payload = ledger.fetch(job_id, number)
    except AlteredBatch as error:
        says = "batch %d of job %s is refused: %s; its producer will publish it again"
        log.error(says, number, job_id, error, extra=about)
        ledger.withdraw(job_id, number)
        return
    if payload is None:
        says = "batch %d of job %s is not in Redis; its producer will publish it again"
        log.warning(says, number, job_id, extra=about)
        return
    attempt = ledger.begin_attempt(job_id, number)
    metrics.ATTEMPTS.inc()
    suspect = attempt > settings().attempts
    if attempt > settings().attempts + _SEARCH_ATTEMPTS:
        _give_up(ledger, job_id, number, attempt, None)
        return
    try:
        _ready().embed(job, number, payload, ledger if suspect else None)
    except EngineDead as error:
        # Nothing on the GPU can be freed any more, and the pool makes a new child. The message goes back to the queue.
        log.critical("this process ends: %s", error)
        os._exit(1)
    except Exception as error:
        if suspect:
            _give_up(ledger, job_id, number, attempt, error)
            return
        log.exception("batch %d of job %s failed, attempt %d", number, job_id, attempt, extra=about)
        raise self.retry(exc=error, countdown=attempt) from None
    ledger.settle(job_id, number)


def _shown(name: object) -> str:
    """What a message says, as one short line of a log: anybody who may write to the queue may have written it."""
    return ascii(name)[:200].strip("'")


def _ready() -> Embedder:
    if _embedder is None:
        raise RuntimeError("this process has no engines: worker_process_init has not run")
    return _embedder


def _give_up(ledger: Ledger, job_id: str, number: int, attempts: int, error: Exception | None) -> None:
    """Set a batch aside. ``error`` is None where it was the process that died."""
    says = f"{type(error).__name__}: {error}" if error else "the worker's process died in each attempt"
    frames = traceback.extract_tb(error.__traceback__) if error else []
    where = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    metrics.DEAD_BATCHES.inc()
    about = {"job": job_id, "batch": number, "where": where}
    log.error("batch %d of job %s is given up after %d attempts: %s", number, job_id, attempts, says, extra=about)
    ledger.bury(job_id, number, DeadBatch(error=says, where=where, attempts=attempts))
