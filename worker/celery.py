"""The Celery app: ``celery -A worker worker``.

Each child of the worker owns its engines, from its start to its end; the parent owns none. The one task is thin:
a message names a batch, the batch becomes a shard, and the message is acknowledged when the shard is on the disk.
"""

import logging
import os

from billiard import current_process
from celery import Celery, Task
from celery.apps.worker import Worker
from celery.exceptions import Reject
from celery.signals import celeryd_init, worker_process_init, worker_process_shutdown
from celery.worker.consumer import Gossip, Mingle

from contract.errors import UserError
from contract.job import JobKey
from contract.redis.connection import Connection, tls_options
from contract.redis.messages import TASK, ignore_celery_variables, ignored, transport_options
from contract.settings import settings
from worker import consuming, environment, holding, metrics, starting
from worker.embed import Embedder
from worker.heartbeat import HeartbeatSender, command_id
from worker.jobs import Jobs
from worker.message import make_shard, shown
from worker.runtime.choose import gpu_usable
from worker.runtime.gpus import CHILDREN, gpu_count
from worker.runtime.interface import EngineDead
from worker.serving import CannotServe
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
    # On a CPU one child uses all cores, and several would only share them.
    worker_concurrency=CHILDREN * gpu_count() if gpu_usable() else 1,
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
starting.tell_concurrency(f"Child processes. The default is {CHILDREN} for each GPU, and one on a machine without.")

# Workers need to know nothing of one another. Asking for neighbours keeps a worker from taking work for a second after
# every reconnection, and gossip among n workers is n² messages.
Mingle.compatible_transports = Gossip.compatible_transports = frozenset()

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
        embedder = _ready()
        with embedder.working_on(key, number):
            make_shard(self, embedder, key, number)
    except EngineDead as error:
        # Nothing on the GPU can be freed any more, and the pool makes a new child. The message goes back to the queue.
        log.critical("this process ends: %s", error)
        os._exit(1)
    except CannotServe as error:
        log.warning("batch %s of job %s goes back: %s", shown(number), shown(key), error)
        raise Reject(str(error), requeue=True) from None


def _ready() -> Embedder:
    if _embedder is None:
        raise RuntimeError("this process has no engines: worker_process_init has not run")
    return _embedder
