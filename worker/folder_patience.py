"""Waiting for a job's folder: a full disk or a silent object store is a pause, and not the batch's fault.

A longer pause is this worker's failure: it gives the batch back, leaves the job to other workers, and is free for other
jobs.
"""

import errno
import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from contract.errors import reason
from contract.store import StoreError, StoreRefuses
from worker.heartbeat import HeartbeatSender

log = logging.getLogger("embedmill.worker")

_FULL = (errno.ENOSPC, errno.EDQUOT)

_SECONDS = 30.0
"""For which a batch waits for its folder."""

_Result = TypeVar("_Result")


class FolderPatience:
    """Calls what uses a job's folder, and again for half a minute while the folder is full or does not answer.

    Args:
        heartbeat: tells what is waited for.
    """

    def __init__(self, heartbeat: HeartbeatSender) -> None:
        self._heartbeat = heartbeat
        self._retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=tenacity.wait_exponential(multiplier=0.5, max=5),
            stop=tenacity.stop_after_delay(_SECONDS),
            before_sleep=self._say_waiting,
            reraise=True,
        )

    def __call__(self, use: Callable[..., _Result], *arguments: object) -> _Result:
        """What ``use`` returns for these arguments. Raises what its last call raised."""
        try:
            return self._retry(use, *arguments)
        finally:
            self._heartbeat.set_waiting("")

    def _say_waiting(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, OSError):  # a full disk; calls name what they write first
            line = f"{error.strerror}: {state.args[1]}" if len(state.args) > 1 else f"{error.strerror}"
        else:
            line = reason(error) if error else ""
        if state.attempt_number == 1:
            at_store = isinstance(error, StoreError)
            log.warning(
                f"waiting for the shard's folder: {line}" if at_store else f"waiting for space for the shard: {line}"
            )
        self._heartbeat.set_waiting(line)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, StoreError):
        return not isinstance(error, StoreRefuses)
    return isinstance(error, OSError) and error.errno in _FULL
