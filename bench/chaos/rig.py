"""One run of the job with everything it needs as processes of its own, to be hurt and watched."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import redis

from bench.chaos.place import Host, Place
from bench.chaos.servers import OneServer, Servers, Start, kill
from contract.job import Job, load_job
from contract.redis import heartbeat
from contract.store import StoreError, location
from embedmill.processes import process
from worker.environment import STOP
from worker.heartbeat import command_id

ROOT = Path(__file__).resolve().parent.parent.parent

_LOADING = 1.0
"""Seconds in which a child may be loading its engine. Celery ends a worker whose first child dies in them."""

_LAST_WORDS = 10.0
"""Seconds after a job's end in which a worker may still be at its last word about a batch."""

_PATIENCE = 240.0
"""Seconds in which a job must come to its end after the last fault."""


@dataclass
class Rig:
    """A Redis, workers and producers. ``open_rig`` makes and ends one."""

    place: Place
    dataset: Path
    batch_rows: int
    servers: Servers
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    producers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    output: str = ""
    """Location of the jobs."""
    faults: list[float] = field(default_factory=list)
    """When each fault was injected."""
    commits: list[float] = field(default_factory=list)
    """When each shard came."""
    shards: dict[int, float] = field(default_factory=dict)
    """The same by batches."""
    cut: list[tuple[int, float]] = field(default_factory=list)
    """Batches that a worker had in hand when it was killed, and when that was."""

    @property
    def folder(self) -> Path:
        return self.place.folder

    def start(self, workers: int, producers: int = 1) -> None:
        self.servers.start()
        for number in range(workers):
            self.start_worker(number)
        for number in range(producers):
            self.start_producer(number)
        threading.Thread(target=self._watch, daemon=True).start()

    # Workers

    def start_worker(self, number: int) -> None:
        """Start a worker in this place, whatever became of the last one there."""
        command = [sys.executable, "-m", "celery", "-A", "bench.chaos.haunted", "worker", "-n", f"{number}@%h"]
        self.workers[number : number + 1] = [self._process(f"worker{number}", command)]

    def child_of(self, number: int) -> psutil.Process | None:
        """The child of a worker that computes; None if there is none just now, or it has only begun to load."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.workers[number].pid).children():
                if time.time() - child.create_time() > _LOADING:
                    return child
        return None

    def in_hand(self, number: int) -> int | None:
        """The batch that a worker computes, as far as its heartbeat tells."""
        own = command_id(self.workers[number].pid)
        with contextlib.suppress(redis.RedisError):
            client = self.servers.client()
            for name in map(os.fsdecode, client.smembers(heartbeat.WORKERS)):
                if name.startswith(f"{own}/") and (record := client.get(heartbeat.key_of(name))):
                    found = heartbeat.read(os.fsencode(record))
                    if found and found.batch is not None and found.batch not in self.shards:
                        return found.batch
        return None

    def note_cut(self, batch: int) -> None:
        """A worker was killed just now with this batch in hand."""
        self.cut.append((batch, time.monotonic()))

    # Producers

    def start_producer(self, number: int = 0) -> None:
        command = [sys.executable, "-m", "producer", "--dataset", str(self.dataset), "--text-column", "text"]
        started = self._process(f"producer{number}", [*command, "--batch-rows", str(self.batch_rows)])
        self.producers[number : number + 1] = [started]

    def kill_producer(self, number: int = 0) -> None:
        kill(self.producers[number])

    @property
    def running(self) -> bool:
        return any(producer.poll() is None for producer in self.producers)

    @property
    def failed(self) -> bool:
        """Whether a producer ended with an error."""
        return any((producer.poll() or 0) > 0 for producer in self.producers)

    def finish(self) -> int:
        """Wait for the producers' end; returns the first exit status that is not 0."""
        until = time.monotonic() + _PATIENCE
        try:
            statuses = [producer.wait(max(0.1, until - time.monotonic())) for producer in self.producers]
        except subprocess.TimeoutExpired:
            return -1
        return next(filter(None, statuses), 0)

    # Faults and what comes of them

    def fault(self) -> None:
        """Note that a fault was injected just now."""
        self.faults.append(time.monotonic())

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)

    def job(self) -> Job | None:
        jobs = location(self.output)
        with contextlib.suppress(StoreError, FileNotFoundError):
            return next((load_job(jobs / name) for name in jobs.names() if (jobs / name / "job.json").exists()), None)
        return None

    def left_on_redis(self) -> list[str]:
        """Keys of the job that stay on Redis after its end; a worker may still be at its last word about a batch.

        That word counts rows, after the job's end too: to count only while the batch is out, in one step, would take a
        script, and a full Redis refuses scripts. So the count may be there if it expires.
        """
        job = self.job()
        if job is None:
            return []
        found: list[str] = []
        until = time.monotonic() + _LAST_WORDS
        while time.monotonic() < until:
            with contextlib.suppress(redis.RedisError):
                client = self.servers.client()
                there = sorted(os.fsdecode(key) for key in client.scan_iter(f"embedmill:{job.key}*"))
                found = [key for key in there if not (key.endswith(":rows") and client.ttl(key) > 0)]
                if not found:
                    break
            time.sleep(0.1)
        return found

    @property
    def recovery(self) -> float:
        """The longest time without a new shard from the first fault on, in seconds; of an undisturbed run, from its
        first shard on. The first shard after a fault would say little: batches in hand are finished without Redis."""
        if not self.commits:
            return 0.0
        begin = min(self.faults, default=self.commits[0])
        times = [begin, *(commit for commit in self.commits if commit > begin)]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    @property
    def cut_recoveries(self) -> list[float]:
        """Of each batch that a killed worker had in hand: seconds until it had its shard."""
        return [self.shards[batch] - when for batch, when in self.cut if self.shards.get(batch, 0) > when]

    def work(self) -> int:
        """Rows that the engines were given, the same row as often as it was."""
        file = self.folder / "work"
        return sum(int(line) for line in file.read_text().split()) if file.exists() else 0

    def begin_round(self, output: str) -> None:
        """Let the next producers do the same job anew, at another location."""
        self.output = output
        self.commits, self.shards, self.cut, self.faults = [], {}, [], []
        (self.folder / "work").unlink(missing_ok=True)

    def _watch(self) -> None:
        """Note when shards come; start a worker that has ended again, as any supervisor would."""
        while not (self.folder / "ended").exists():
            shards, commits = self.shards, self.commits  # of this round
            with contextlib.suppress(StoreError):
                job = self.job()
                new = job.committed() - shards.keys() if job and shards is self.shards else set()
                now = time.monotonic()
                shards |= dict.fromkeys(new, now)
                commits += [now] * len(new)
            for number, worker in enumerate(self.workers):
                if worker.poll() is not None:
                    self.start_worker(number)
            time.sleep(0.5 if self.place.bucket else 0.05)

    def _process(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return start_process(self.stack, self.place, name, command, {
            "EMBEDMILL_REDIS_URL": self.servers.url,
            "EMBEDMILL_ENGINES": str(self.place.engines),
            "EMBEDMILL_OUTPUT": self.output,
            "CHAOS_WORK": str(self.folder / "work"),
            "PYTHONPATH": str(ROOT),
            **STOP,  # so that Celery need not begin anew
        })  # fmt: skip


def start_process(
    stack: contextlib.ExitStack, place: Place, name: str, command: Sequence[str], env: dict[str, str]
) -> subprocess.Popen[bytes]:
    """A process on its host, which is gone when the stack is closed."""
    host = place.hosts.get(name, Host())
    log = place.folder / f"{name}.log"
    every = {**place.env, **host.env, **env}
    return stack.enter_context(process([*host.prefix, *command], log, env=every, patience=10))


MakeServers = Callable[[Start, Place], Servers]


def one_server(*options: str) -> MakeServers:
    """One Redis with these options."""
    return lambda start, place: OneServer(start, place.folder, place.address, options)


ONE_SERVER = one_server()


@contextlib.contextmanager
def open_rig(place: Place, dataset: Path, *, batch_rows: int, servers: MakeServers = ONE_SERVER) -> Iterator[Rig]:
    """A rig; all its processes are gone when the block ends."""
    with contextlib.ExitStack() as stack:
        start = partial(start_process, stack, place, env={})
        output = place.output or str(place.folder / "output")
        rig = Rig(place, dataset, batch_rows, servers(start, place), stack, output=output)
        try:
            yield rig
        finally:
            (place.folder / "ended").touch()
            for worker in rig.workers:  # all at once: each takes seconds to stop
                worker.terminate()
