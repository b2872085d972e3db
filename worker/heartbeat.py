"""This process's signs of life: a thread that tells Redis every second or two what the process does."""

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


def command_id(pid: int) -> str:
    """The id of the ``celery worker`` of this process number, which its children can tell too. The name space of
    process numbers is part of it: containers that share a host's name may have the same numbers."""
    return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino % 100_000}:{pid}"


class Heart:
    """Beats from ``start`` to ``close``.

    Args:
        worker: the id.
        gpu: the GPU that the process computes on; None for a CPU.
    """

    def __init__(self, worker: str, gpu: int | None = None) -> None:
        self._said = Heartbeat(worker=worker, state="starting", beat=0, since=0, gpu=gpu)
        self._since = time.monotonic()
        self._changed, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._redis = client(_PATIENCE)
        self._clock: float | None = None
        """What Redis's clock is ahead of this process's monotonic one; None until it was asked."""

    def start(self) -> None:
        self._thread.start()

    def says(
        self, state: State, *, job: str | None = None, batch: int | None = None, waits_for: str = "", **about: object
    ) -> None:
        """Change the state.

        Args:
            state: the state.
            job: key of the job whose batch is in hand.
            batch: the batch's number.
            waits_for: what is waited for.
            about: other fields of ``Heartbeat``, which stay until they are changed.
        """
        now = {"state": state, "job": job, "batch": batch, "waits_for": waits_for} | about
        if now.items() <= self._said.__dict__.items():
            return
        if (state, job, batch) != (self._said.state, self._said.job, self._said.batch):
            self._since = time.monotonic()
        self._said = self._said.model_copy(update=now)
        self._changed.set()

    def about(self, **fields: object) -> None:
        """Change other fields of ``Heartbeat`` than the state's."""
        said = self._said
        self.says(said.state, job=said.job, batch=said.batch, waits_for=said.waits_for, **fields)

    def waits(self, waits_for: str) -> None:
        """Say that the batch in hand waits for something; empty: not any more."""
        said = self._said
        if waits_for or said.state == "waiting":
            self.says("waiting" if waits_for else "computing", job=said.job, batch=said.batch, waits_for=waits_for)

    def _beat(self) -> None:
        while not self._closed.is_set():
            self._changed.wait(_EVERY)
            self._changed.clear()
            with contextlib.suppress(redis.RedisError):  # whose absence the process itself notices
                self._tell()
            self._closed.wait(_LEAST)

    def _tell(self) -> None:
        if self._clock is None:
            self._clock = _seconds(self._redis.time()) - time.monotonic()
        said, now = self._said, self._clock + time.monotonic()
        record = said.model_copy(update={"beat": now, "since": self._clock + self._since})
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(key_of(said.worker), record.model_dump_json(), ex=KEPT)
            pipe.sadd(WORKERS, said.worker)
            pipe.time()
            *_, there = pipe.execute()
        self._clock = _seconds(there) - time.monotonic()

    def close(self, *, children: bool = False) -> None:
        """Say goodbye: this worker is not missing, it has ended.

        Args:
            children: of the command's children too.
        """
        self._closed.set()
        self._changed.set()
        worker = self._said.worker
        with contextlib.suppress(redis.RedisError, RuntimeError):
            self._thread.join(_PATIENCE)
            known = list(map(os.fsdecode, self._redis.smembers(WORKERS))) if children else []
            gone = [worker, *(name for name in known if name.startswith(f"{worker}/"))]
            self._redis.delete(*map(key_of, gone))
            self._redis.srem(WORKERS, *gone)


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6
