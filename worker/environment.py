"""Variables that Celery and prometheus_client read as they are imported, and that a worker depends on."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from contract.errors import UserError
from contract.settings import settings

STOP = {"REMAP_SIGTERM": "SIGQUIT"}
"""Has children told to stop by SIGQUIT. SIGTERM may go to the whole group, and a child would leave its batch."""

METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the children count."""


def prepare() -> None:
    """Set them, before ``worker.celery`` is imported.

    By the time that ``celery -A worker worker`` asks for the app, Celery has read ``REMAP_SIGTERM``: the process begins
    anew with it. ``python -m worker`` sets it first.

    Raises:
        UserError: a setting is wrong.
    """
    if not STOP.keys() <= os.environ.keys() and "celery" in Path(sys.argv[0]).parts[-2:]:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], STOP | os.environ)
    if settings().metrics_port is not None and METRICS not in os.environ:
        os.environ[METRICS] = tempfile.mkdtemp(prefix="embedmill-metrics-")
        atexit.register(shutil.rmtree, os.environ[METRICS], ignore_errors=True)


def check() -> None:
    """See that what a worker depends on was set before Celery was imported.

    Raises:
        UserError: it was not: this worker was started in another way than ``prepare`` knows.
    """
    unset = [name for name in STOP if name not in os.environ]
    if settings().metrics_port is not None and METRICS not in os.environ:
        unset.append(METRICS)
    if unset:
        raise UserError(
            f"{' and '.join(unset)} was not set before Celery was imported",
            "expected a worker that was started by Celery's own command",
            "start it by: celery -A worker worker, or python -m worker",
        )
