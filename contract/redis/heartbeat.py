"""What a worker tells everybody about itself, once every second or two, by way of Redis.

::

    embedmill:workers       set: the ids of workers
    embedmill:worker:<id>   the Heartbeat, JSON; gone an hour after the last one

A worker is a process that computes: a child of ``celery worker``, or that command itself while it has no child.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.settings import settings

WORKERS = "embedmill:workers"

KEPT = 3600
"""Seconds after which Redis forgets a worker that is silent."""

State = Literal["starting", "idle", "computing", "waiting"]


class Heartbeat(BaseModel):
    """A worker at one instant. Times are seconds since the epoch, by Redis's clock, which all share."""

    model_config = ConfigDict(frozen=True)

    worker: str
    """The id: host, process and a random part, and a child's number behind a slash."""
    state: State
    beat: float
    """When it said this."""
    since: float
    """When it came into this state."""
    job: str | None = None
    """Key of the job whose batch it has in hand."""
    batch: int | None = None
    """The batch's number."""
    computed: float = 0.0
    """The share of the batch's rows that are computed, 0 to 1."""
    waits_for: str = ""
    """What it waits for, or why it starts late."""
    engine: str = ""
    """Name of the engine that it used last."""
    runtime: str = ""
    """Such as ``onnxruntime 1.32.0``."""
    gpu: int | None = None
    """Number of the GPU that it computes on; None for a CPU."""
    refuses: dict[str, str] = {}
    """Of ``celery worker`` itself: the jobs that it cannot serve, by their keys, and why."""

    @property
    def command(self) -> str:
        """The id of the ``celery worker`` that it belongs to."""
        return self.worker.partition("/")[0]

    @property
    def is_child(self) -> bool:
        return "/" in self.worker

    def silent(self, now: float) -> float:
        """Seconds since it was heard of."""
        return max(0.0, now - self.beat)


def key_of(worker: str) -> str:
    return f"embedmill:worker:{worker}"


def read(record: bytes) -> Heartbeat | None:
    """A record; None for what is none of ours."""
    try:
        return Heartbeat.model_validate_json(record)
    except ValidationError:
        return None


def alive_at(one: Heartbeat, now: float) -> bool:
    """Whether a worker was heard of within ``EMBEDMILL_HEARTBEAT_TIMEOUT``."""
    return one.silent(now) <= settings().heartbeat_timeout


def computing(heartbeats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """One for each process that computes, or would if it could: the children, and commands that have none."""
    every = list(heartbeats)
    parents = {one.command for one in every if one.is_child}
    return [one for one in every if one.is_child or one.worker not in parents]
