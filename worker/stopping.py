"""How a worker ends: within ``EMBEDMILL_STOP_SECONDS``, whatever it waits for."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from celery.apps.worker import Worker
from celery.bootsteps import RUN
from celery.utils.log import in_sighandler
from celery.worker import state
from celery.worker.worker import SHUTDOWN_SOCKET_TIMEOUT, bound_open_broker_sockets

from contract.entry import INTERRUPTED, say
from contract.settings import settings
from worker import consuming

_LAST = 3.0
"""Seconds before the end in which a batch that is not finished goes back, and the processes end."""


def grace() -> float:
    """Seconds that a batch has to finish once its worker is told to stop."""
    return max(0.0, settings().stop_seconds - _LAST)


class Stop:
    """What SIGTERM and Ctrl-C do to a worker, from ``listen`` on.

    Args:
        worker: the worker.
        last: what is done at the end, also when it comes by force.
    """

    def __init__(self, worker: Worker, last: Callable[[], None]) -> None:
        self._worker, self._last = worker, last
        self._pid = os.getpid()
        self.exit_status: int | None = None
        """Once a signal came."""

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that is just being made
            return
        if self.exit_status is not None:
            if number == signal.SIGINT:  # again: somebody is in a hurry
                self._end()
            return
        self.exit_status = INTERRUPTED if number == signal.SIGINT else 0
        deadline = threading.Timer(settings().stop_seconds - 0.5, self._end)
        deadline.daemon = True
        deadline.start()
        with in_sighandler():
            waits = f"its batch has {grace():.0f} s to finish, and goes to another worker otherwise; " * bool(
                state.active_requests
            )
            say(f"The worker stops: {waits}it ends within {settings().stop_seconds:.0f} s")
            if self._can_finish():
                self._finish()
            else:
                self._worker.wait_for_soft_shutdown()
                self._cancel()

    def _can_finish(self) -> bool:
        """Whether children compute and Celery's loop hears of them: it does not while it waits for Redis, nor in a solo
        pool."""
        consumer = getattr(self._worker, "consumer", None)
        return bool(
            state.active_requests
            and consumer is not None
            and consumer.blueprint.state == RUN
            and consumer.connection is not None
            and self._worker.pool_cls.uses_semaphore
        )

    def _finish(self) -> None:
        """Take no more, and end once the last batch in hand is acknowledged, or has had its time."""
        consumer = self._worker.consumer
        consuming.jobs = None  # else a job that comes now would be taken from
        with contextlib.suppress(Exception):  # of a Redis that does not answer
            consumer.task_consumer.cancel()
        until = time.monotonic() + grace()

        def end_when_done() -> None:
            if not state.should_terminate and (not state.active_requests or time.monotonic() >= until):
                self._cancel()

        consumer.timer.call_repeatedly(0.1, end_when_done)

    def _cancel(self) -> None:
        """Celery's cold shutdown, without its lines. What is not acknowledged goes back."""
        consumer = getattr(self._worker, "consumer", None)
        if consumer is not None:
            if getattr(consumer, "connection", None) is not None:
                bound_open_broker_sockets(consumer.connection, SHUTDOWN_SOCKET_TIMEOUT)
            if consumer.task_consumer:
                with contextlib.suppress(Exception):  # of a Redis that does not answer
                    consumer.task_consumer.cancel()
            with contextlib.suppress(Exception):
                consumer.cancel_active_requests()
        state.should_terminate = True
        if consumer is not None and consumer.pool:
            consumer.pool.stop()

    def _end(self) -> None:
        """By force: children end with their parent. What they held is published again by the producer."""
        ending = threading.Thread(target=self._last, daemon=True)
        ending.start()
        ending.join(0.3)
        os._exit(self.exit_status or 0)
