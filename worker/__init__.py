"""Step 2: batches from Redis become vectors, and vectors Parquet shards. ``celery -A worker worker``."""

from typing import Any

# At the top: Celery has the working directory in Python's path while it imports this package, but not when it asks for
# the app. In a container our packages are in that folder and are not installed, so a later import would fail.
from contract.entry import end_at_once, uncollected


def __getattr__(name: str) -> Any:
    """``app``, which Celery asks for, and which takes most of a second to import: in that time Ctrl-C ends the
    process."""
    if name != "app":
        raise AttributeError(name)
    end_at_once()
    with uncollected():  # the children that are forked from this process need no copy of what stays as it is
        return _app()


def _app() -> Any:
    from worker import environment

    environment.begin_anew()
    from contract.errors import UserError
    from contract.redis.connection import tls_options

    try:
        environment.prepare()
        tls_options()
    except UserError as error:  # which Celery would show as a failure to import this module, with a traceback
        error.show()
        raise SystemExit(1) from None
    from worker.celery import app

    return app
