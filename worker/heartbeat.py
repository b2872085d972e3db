"""This process's heartbeat: a thread that writes to Redis every two seconds what the process does."""

import contextlib
import os
import socket
import threading
import time

import redis

from contract.redis.connection import client
from contract.redis.heartbeat import KEPT, WORKERS, Heartbeat, State, key_of

_EVERY = 2.0
"""Seconds between two beats while nothing changes."""

_LEAST = 0.2
"""Seconds between two beats however fast states change: a GPU takes a batch in less."""

_PATIENCE = 2.0
"""Seconds that a beat waits for Redis."""

_SET = 1.0
"""Seconds by which Redis's clock is off if somebody has set it."""


def host_id() -> str:
    """What the ids of all workers of this host begin with. The name space of process numbers is part of it: containers
    that share a host's name may have the same numbers."""
    return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino % 100_000}:"


def command_id(pid: int) -> str:
    """The id of the ``celery worker`` of this process number, which its children can tell too."""
    return f"{host_id()}{pid}"


class HeartbeatSender:
    """Sends this process's heartbeat in a thread of its own, from ``start`` to ``close``; none before.

    Args:
        worker: the id.
        gpu: the GPU that the process computes on; None for a CPU.
    """

    def __init__(self, worker: str, gpu: int | None = None) -> None:
        self._state = Heartbeat(worker=worker, state="starting", beat=0, since=0, gpu=gpu)
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._redis = client(_PATIENCE)
        self._rows = self._computed = 0
        """Of the batch that is computed: how many it has, and of how many there are vectors."""
        self._clock: float | None = None
        """What Redis's clock is ahead of this process's monotonic one; None until it was asked."""

    def start(self) -> None:
        self._thread.start()

    def redis_time(self) -> float:
        """Redis's clock, the one that all share, which is asked with each beat. Seconds since the epoch.

        Raises:
            RedisError: it was not asked yet, and Redis does not answer.
        """
        if self._clock is None:
            self._clock = _seconds(self._redis.time()) - time.monotonic()
        return self._clock + time.monotonic()

    def set_state(self, state: State, *, job: str | None = None, batch: int | None = None, waits_for: str = "") -> None:
        """Change what the process does.

        Args:
            state: the state.
            job: key of the job whose batch is being worked on.
            batch: the batch's number.
            waits_for: what is waited for, such as ``No space left on device: /data/staging``.
        """
        self._update({"state": state, "job": job, "batch": batch, "waits_for": waits_for})

    def set_waiting(self, waits_for: str) -> None:
        """The batch waits for something, or not any more, where ``waits_for`` is empty."""
        if waits_for or self._state.state == "waiting":
            self._update({"state": "waiting" if waits_for else "computing", "waits_for": waits_for})

    def begin_rows(self, rows: int) -> None:
        """A batch of so many rows is going to be computed."""
        with self._lock:
            self._rows, self._computed = rows, 0

    def add_computed(self, rows: int) -> None:
        """So many more of them are computed. It goes with the next beat: a GPU computes some a thousand times a
        second."""
        with self._lock:
            self._computed += rows

    def set_fields(self, **fields: object) -> None:
        """Change other fields of ``Heartbeat``, which stay until they are changed."""
        self._update(fields)

    def close(self, *, children: bool = False) -> None:
        """Remove the heartbeat: this worker is not missing, it has ended.

        Args:
            children: remove those of the command's children too.
        """
        self._closed.set()
        self._changed.set()
        worker = self._state.worker
        with contextlib.suppress(redis.RedisError, RuntimeError):
            self._thread.join(_PATIENCE)
            known = list(map(os.fsdecode, self._redis.smembers(WORKERS))) if children else []
            gone = [worker, *(name for name in known if name.startswith(f"{worker}/"))]
            self._redis.delete(*map(key_of, gone))
            self._redis.srem(WORKERS, *gone)

    def _update(self, fields: dict[str, object]) -> None:
        with self._lock:  # the consumer's thread and the one that looks for jobs both come here
            before = self._state
            self._state = before.model_copy(update=fields)
            if self._state == before:
                return
            if any(getattr(self._state, name) != getattr(before, name) for name in ("state", "job", "batch")):
                self._since = time.monotonic()
        self._changed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.wait(_EVERY)
            self._changed.clear()
            with contextlib.suppress(redis.RedisError):  # the process itself notices that Redis is gone
                self._send()
            self._closed.wait(_LEAST)

    def _send(self) -> None:
        beat = self.redis_time()
        before = beat - time.monotonic()
        with self._lock:
            state, since = self._state, self._since
            computed = self._computed / self._rows if self._rows and state.batch is not None else 0.0
        record = state.model_copy(update={"beat": beat, "since": before + since, "computed": min(computed, 1.0)})
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(key_of(state.worker), record.model_dump_json(), ex=KEPT)
            pipeline.sadd(WORKERS, state.worker)
            pipeline.time()
            *_, answer = pipeline.execute()
        self._clock = _seconds(answer) - time.monotonic()
        if abs(self._clock - before) > _SET:
            self._changed.set()  # the beat had the old time: another one, with the new


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6
