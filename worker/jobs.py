"""Which jobs a ``celery worker`` takes batches of: all that are under way, but for those that it cannot serve."""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from contract.errors import UserError
from contract.job import Job, JobKey
from contract.redis.ledger import Ledger
from worker.heartbeat import Heart
from worker.serving import CannotServe, check

log = logging.getLogger("embedmill.worker")

_LOOK_EVERY = 0.25
"""Seconds between two looks for jobs."""

_TRY_EVERY = 2.0
"""Seconds after which it is seen whether a job can be served by now."""

_AGAIN_AFTER = 30.0
"""Seconds after which a job is tried again that a batch was given back of, for a reason that cannot be looked at."""


class Refusal(NamedTuple):
    """Why a job is not served."""

    why: str
    until: float
    """When to look again, by the monotonic clock."""


class Jobs:
    """Looks at Redis in a thread of its own, from ``start`` on.

    Args:
        heart: tells everybody what is refused.
        check: raises ``CannotServe`` for a job that this machine cannot serve.
    """

    def __init__(self, heart: Heart, check: Callable[[Job], None] = check) -> None:
        self._heart, self._check = heart, check
        self._ledger = Ledger(patience=0)
        self._refused: dict[JobKey, Refusal] = {}
        self._lock = threading.Lock()
        self.served: frozenset[JobKey] = frozenset()
        """Keys of the jobs whose batches are taken."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    def refuse(self, key: JobKey, why: str) -> None:
        """Take no more of a job's batches for a while: one was given back."""
        with self._lock:
            self._note(key, Refusal(why, time.monotonic() + _AGAIN_AFTER))
            self.served -= {key}
        self._tell()

    def refuses(self, key: object) -> bool:
        """Whether no batch of this job is taken just now."""
        return isinstance(key, str) and key in self._refused

    def look(self) -> None:
        """Bring ``served`` up to date.

        Raises:
            UserError: Redis does not answer.
        """
        there = self._ledger.jobs()
        news = {key: self._refusal(key) for key in there if self._due(key)}
        with self._lock:
            for key, refusal in news.items():
                self._note(key, refusal)
            for key in self._refused.keys() - there:
                del self._refused[key]
            self.served = frozenset(there - self._refused.keys())
        self._tell()

    def _due(self, key: JobKey) -> bool:
        if key in self.served:
            return False
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
        if before is None or before.why != refusal.why:
            log.warning("cannot serve job %s, and leaves it to others: %s", key, refusal.why, extra={"job": key})

    def _tell(self) -> None:
        self._heart.says("idle", refuses={key: refusal.why for key, refusal in self._refused.items()})

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except UserError:
                pass  # Redis: the worker's own connection waits for it and says so
            except Exception:
                log.exception("the jobs could not be looked at")
            time.sleep(_LOOK_EVERY)
