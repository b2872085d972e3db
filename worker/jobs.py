"""Which jobs a ``celery worker`` takes batches of: all that are under way, but for those that it cannot serve."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from contract.errors import UserError
from contract.job import Job, JobKey
from contract.redis.ledger import Ledger
from worker.heartbeat import HeartbeatSender
from worker.serving import CannotServe, check

log = logging.getLogger("embedmill.worker")

_REFRESH_EVERY = 0.25
"""Seconds between two questions for jobs."""

_TRY_EVERY = 2.0
"""Seconds after which a refused job is checked again."""

_AGAIN_AFTER = 30.0
"""Seconds after which a job is tried again of which a batch was given back, for a reason that no check finds."""


class Refusal(NamedTuple):
    """Why a job is not served."""

    reason: str
    until: float
    """When to look again, by the monotonic clock."""


class Jobs:
    """Asks Redis for them in a thread of its own, from ``start`` on.

    Args:
        heartbeat: says which jobs are refused.
        check: raises ``CannotServe`` for a job that this machine cannot serve.
    """

    def __init__(self, heartbeat: HeartbeatSender, check: Callable[[Job], None] = check) -> None:
        self._heartbeat, self._check = heartbeat, check
        self._ledger = Ledger(patience=0)
        self._refused: dict[JobKey, Refusal] = {}
        self._given_back: set[JobKey] = set()
        """Of which a batch was given back just now: a check may find why, and later that it is over."""
        self._lock = threading.Lock()
        self.served: Mapping[JobKey, float] = {}
        """Keys of the jobs whose batches are taken → their priorities."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    def refuse(self, key: JobKey, reason: str) -> None:
        """Take no more of a job's batches for a while: one was given back."""
        with self._lock:
            self._note(key, Refusal(reason, time.monotonic() + _AGAIN_AFTER))
            self._given_back.add(key)
            self.served = {other: priority for other, priority in self.served.items() if other != key}
        self._publish()

    def refuses(self, key: object) -> bool:
        """Whether no batch of this job is taken just now."""
        return isinstance(key, str) and key in self._refused

    def refresh(self) -> None:
        """Bring ``served`` up to date.

        Raises:
            UserError: Redis does not answer.
        """
        jobs = self._ledger.priorities()
        given_back = self._given_back.copy()
        checked = {key: self._refusal(key) for key in jobs if self._due(key)}
        with self._lock:
            for key, refusal in checked.items():
                if refusal or key not in given_back:
                    self._note(key, refusal)
            self._given_back -= given_back
            for key in self._refused.keys() - jobs.keys():
                del self._refused[key]
            self.served = {key: priority for key, priority in jobs.items() if key not in self._refused}
        self._publish()

    def _due(self, key: JobKey) -> bool:
        if key in self.served:
            return False
        if key in self._given_back:
            return True
        refusal = self._refused.get(key)
        return refusal is None or time.monotonic() >= refusal.until

    def _refusal(self, key: JobKey) -> Refusal | None:
        job = self._ledger.job(key)
        try:
            if job is None:
                raise CannotServe("its record in Redis is not a job's")
            self._check(job)
        except CannotServe as error:
            return Refusal(str(error), time.monotonic() + _TRY_EVERY)
        return None

    def _note(self, key: JobKey, refusal: Refusal | None) -> None:
        before = self._refused.pop(key, None)
        if refusal is None:
            if before:
                log.info("takes job %s again", key)
            return
        self._refused[key] = refusal
        if before is None or before.reason != refusal.reason:
            log.warning("cannot serve job %s, and leaves it to others: %s", key, refusal.reason, extra={"job": key})

    def _publish(self) -> None:
        self._heartbeat.set_state("idle")
        self._heartbeat.set_fields(refuses={key: refusal.reason for key, refusal in self._refused.items()})

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except UserError:
                pass  # Redis: the worker's own connection waits for it and says so
            except Exception:
                log.exception("the jobs could not be read from Redis")
            time.sleep(_REFRESH_EVERY)
