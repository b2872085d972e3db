"""Variables that Celery and prometheus_client read as they are imported, and that a worker depends on."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

STOP = {"REMAP_SIGTERM": "SIGQUIT"}
"""Has children told to stop by SIGQUIT. SIGTERM may go to the whole group, and a child would leave its batch."""

METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the children count."""

_COUNTS = 256 * 1024
"""Bytes for the counts of a worker and its first child: a file of 64 KiB for each kind of metric."""


def begin_anew() -> None:
    """Start this process again with ``STOP``, unless it has that or runs no ``celery`` command.

    By the time that ``celery -A worker worker`` asks for the app, Celery has read ``REMAP_SIGTERM``. ``python -m
    worker`` sets it first. To be called before anything large is imported: that would be imported twice.
    """
    if not STOP.keys() <= os.environ.keys() and "celery" in Path(sys.argv[0]).parts[-2:]:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], STOP | os.environ)


def prepare() -> None:
    """Name the folder of the metrics, before ``worker.celery`` is imported.

    Raises:
        UserError: a setting is wrong, or there is no space for what the metrics count.
    """
    from contract.errors import UserError  # here: begin_anew needs none
    from contract.settings import settings

    if settings().metrics_port is None or METRICS in os.environ:
        return
    try:
        folder = tempfile.mkdtemp(prefix="embedmill-metrics-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, _COUNTS)
    except OSError as error:
        raise UserError(
            f"no space for what the metrics count ({error.strerror}: {tempfile.gettempdir()})",
            f"expected {_COUNTS // 1024} KiB",
            "free some, name another folder in TMPDIR, or unset EMBEDMILL_METRICS_PORT",
        ) from None
    os.environ[METRICS] = folder


def check() -> None:
    """See that what a worker depends on was set before Celery was imported.

    Raises:
        UserError: it was not: this worker was started in another way than ``begin_anew`` knows.
    """
    from contract.errors import UserError  # here: as above
    from contract.settings import settings

    unset = [name for name in STOP if name not in os.environ]
    if settings().metrics_port is not None and METRICS not in os.environ:
        unset.append(METRICS)
    if unset:
        raise UserError(
            f"{' and '.join(unset)} was not set before Celery was imported",
            "expected a worker that was started by Celery's own command",
            "start it by: celery -A worker worker",
        )
