"""obstore's client, and how long a request and its repetitions may take.

Credentials, region and endpoint are the usual variables (``AWS_*``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``); profiles in ``~/.aws`` are read by boto3, where that is installed.
"""

import functools
import logging
import math
import os
from datetime import timedelta
from typing import Any

import obstore.store
import tenacity
from obstore.exceptions import AlreadyExistsError, BaseError

from contract.store.refusals import bare, refuses

_PATIENCE = 30.0
"""Seconds for which a call tries again, at least once, while an object store does not answer."""

_REQUEST_SECONDS = 30.0
"""Of one request that carries next to nothing."""

_SLOWEST = 250_000
"""Bytes a second of the slowest connection on which a large object still arrives."""

_GIVES_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
}

_REGION = {"AWS_REGION", "AWS_DEFAULT_REGION"}

_log = logging.getLogger("embedmill.store")


@functools.cache
def store_of(scheme: str, bucket: str, timeout: float) -> Any:
    """obstore's store. Made on first use, so never in a process that forks workers: its threads would be missing there.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: the bucket's name.
        timeout: seconds that one request may take in all.
    """
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=_PATIENCE)}  # ours are told in the log
    client = {"allow_http": True, "timeout": timedelta(seconds=timeout), "connect_timeout": "5s"}
    options: dict[str, Any] = {"client_options": client, "retry_config": retries}
    if scheme == "s3":
        options |= profile_options()
    return obstore.store.from_url(f"{scheme}://{bucket}", **options)


def profile_options() -> dict[str, Any]:
    """Credentials and region of the user's profile in ``~/.aws``, for what no variable says; empty without boto3, or
    where it finds none."""
    if "AWS_ACCESS_KEY_ID" in os.environ and os.environ.keys() & _REGION:
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session, options = boto3.Session(), dict[str, Any]()
    if not os.environ.keys() & _REGION and session.region_name:
        options["region"] = session.region_name
    if not os.environ.keys() & _GIVES_CREDENTIALS and session.get_credentials() is not None:
        # Asked again well before temporary credentials expire; boto3 keeps them as long as they are good.
        options["credential_provider"] = Boto3CredentialProvider(session, ttl=timedelta(minutes=10))
    return options


def timeout(size: int) -> float:
    """Seconds for a request with this many bytes: 30, 60, 120, … so that few clients serve all sizes."""
    needed = _REQUEST_SECONDS + size / _SLOWEST
    return _REQUEST_SECONDS * 2 ** math.ceil(math.log2(needed / _REQUEST_SECONDS))


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, BaseError) and not isinstance(error, AlreadyExistsError) and not refuses(error)


def _log_waiting(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome and (error := state.outcome.exception()):
        _log.warning("the object store does not answer (%s); trying again", bare(error))


patiently = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_exponential(multiplier=0.5, max=5),
    stop=tenacity.stop_after_delay(_PATIENCE) & tenacity.stop_after_attempt(2),
    before_sleep=_log_waiting,
    reraise=True,
)
