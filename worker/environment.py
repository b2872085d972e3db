"""Variables that Celery and prometheus_client read as they are imported, and that a worker depends on."""

import atexit
import importlib
import os
import shutil
import sys
import tempfile

import billiard.common

from contract.settings import settings

METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the children count."""

METRICS_PREFIX = "embedmill-metrics-"

_TOO_LATE = ("billiard.pool", "billiard.popen_fork", "celery.apps.worker", "celery.concurrency.prefork")
"""Modules that take ``billiard.common``'s constants as they are imported."""


def prepare() -> None:
    """Set them, before ``worker.celery`` is imported.

    ``celery -A worker worker`` imports ``billiard.common`` before it asks for the app, so that module is read again;
    the modules that take its constants are imported later.

    Raises:
        UserError: a setting is wrong.
    """
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"  # children are told to stop by SIGQUIT: SIGTERM may go to the whole group
    if not sys.modules.keys() & set(_TOO_LATE):
        importlib.reload(billiard.common)
    if settings().metrics_port is not None and METRICS not in os.environ:
        os.environ[METRICS] = tempfile.mkdtemp(prefix=METRICS_PREFIX)
        atexit.register(shutil.rmtree, os.environ[METRICS], ignore_errors=True)
