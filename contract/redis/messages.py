"""Celery on this Redis: one queue for each job, one message for each batch, and no setting but embedmill's."""

import base64
import json
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.entity import Exchange, Queue

from contract.job import JobKey
from contract.redis.connection import SOCKET, client_options, tls_options
from contract.settings import settings

if TYPE_CHECKING:
    from celery import Celery

TASK = "worker.embed_batch"
"""The Celery task's name; its arguments are the job's key and the batch's number."""

CELERY_VARIABLES = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
    "CELERY_CONFIG_MODULE",
    "CELERY_LOADER",
    "CELERY_CUSTOM_WORKER_POOL",
)
"""Variables that Celery puts before what its app says; ``celery -b`` and ``--config`` set them too. Messages would go
to another server, past the checks of ``rediss://``."""

_log = logging.getLogger("embedmill.redis")


class Held(NamedTuple):
    """A message that a worker has taken and not acknowledged."""

    tag: str
    """Kombu's name of it."""
    job: JobKey
    batch: int
    message: str
    """As Kombu has it in the queue, JSON."""


def batch_of(message: bytes | str) -> tuple[JobKey, int] | None:
    """The job's key and the batch that a message in a queue names; None for what is none of ours."""
    try:
        arguments, *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
        key, batch = arguments
    except (ValueError, TypeError, LookupError):
        return None
    return (JobKey(key), batch) if isinstance(key, str) and type(batch) is int else None


def ignore_celery_variables() -> dict[str, str]:
    """Have Celery see none of ``CELERY_VARIABLES`` in this process; returns those that were set."""
    return {name: os.environ.pop(name) for name in CELERY_VARIABLES if name in os.environ}


def ignored(name: str) -> str:
    """What is to be said of such a variable."""
    return f"{name} is ignored: EMBEDMILL_REDIS_URL says where Redis is, embedmill says all else"


def celery_client() -> "Celery":
    """Celery on this Redis for those who are no worker: to send, and to ask."""
    from celery import Celery  # here: who reads shards needs none of it

    for name in ignore_celery_variables():
        _log.warning(ignored(name))
    client = Celery(broker=settings().redis.broker, set_as_current=False)
    client.conf.update(
        task_ignore_result=True, broker_use_ssl=tls_options() or None, broker_transport_options=transport_options()
    )
    return client


def transport_options() -> dict[str, Any]:
    """Kombu's options for this Redis, beside its URL and TLS."""
    return {**SOCKET, **settings().redis.transport_options(client_options())}


def direct_queue(name: str) -> Queue:
    """The Celery queue that is the Redis list of this name, without an exchange, of which Redis would keep a record."""
    return Queue(name, Exchange(""), routing_key=name, no_declare=True)
