"""The worker's log: lines for people, or with ``EMBEDMILL_LOG=json`` one JSON object a line."""

import logging

from celery.apps.worker import Worker
from celery.signals import after_setup_logger, after_setup_task_logger
from celery.utils.log import get_multiprocessing_logger
from pythonjsonlogger.json import JsonFormatter

from contract.settings import settings

_FIELDS = {"levelname": "level", "name": "logger", "processName": "process", "message": "message"}
"""What every line has besides its ``time``: logging's name of it → ours."""


def begin(worker: Worker) -> None:
    """Before Celery sets its log up: no banner and no warning that is not JSON, if JSON is asked for."""
    if settings().log == "json":
        worker.quiet = True
        logging.basicConfig()
        logging.captureWarnings(True)
        _format(logging.getLogger())


@after_setup_logger.connect
@after_setup_task_logger.connect
def _format(logger: logging.Logger, **_: object) -> None:
    if settings().log == "json":
        formatter = JsonFormatter([*_FIELDS], timestamp="time", rename_fields=_FIELDS)
        for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
            handler.setFormatter(formatter)
