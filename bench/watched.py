"""What a job takes while it runs: memory of its processes and of Redis, and how busy the GPUs are."""

import contextlib
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from bench.machine import gpus, nvidia_smi

_EVERY = 0.2
"""Seconds between two looks."""


class Watched:
    """A thread that looks, and an ``nvidia-smi`` that tells, while the ``with`` block runs.

    Args:
        processes: name → process id; a process's descendants count as it.
        redis_url: the Redis server.
    """

    def __init__(self, processes: Mapping[str, int], redis_url: str) -> None:
        self._processes = dict(processes)
        self._redis = redis.Redis.from_url(redis_url)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, daemon=True)]
        self._smi: subprocess.Popen[str] | None = None
        self._busy: list[tuple[float, int, float]] = []
        self.cpu: dict[str, float] = {}
        """Seconds of processor time that each name's processes have taken."""
        self.memory: dict[str, float] = {}
        """MB, the highest: of each name its processes' own memory (anonymous), and ``… resident`` with the files that
        are mapped; ``redis`` is what it says of itself."""

    def also(self, name: str, process: int) -> None:
        """Look at one more process."""
        self._processes[name] = process

    def __enter__(self) -> Self:
        if gpus():
            query = ["--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
            self._smi = subprocess.Popen(nvidia_smi(*query), stdout=subprocess.PIPE, text=True)
            self._threads.append(threading.Thread(target=self._listen, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if self._smi:
            self._smi.terminate()
            self._smi.wait()
        for thread in self._threads:
            thread.join()

    def gpu_busy(self, begin: float, end: float) -> list[float]:
        """The share of the time between two instants in which a GPU had a kernel running, for each that had any.

        NVML samples it over a sixth of a second to a second, so that a job of a few seconds says little.
        """
        by_gpu: dict[int, list[float]] = {}
        for when, gpu, busy in self._busy:
            if begin <= when <= end:
                by_gpu.setdefault(gpu, []).append(busy)
        return [round(statistics.mean(busy) / 100, 4) for busy in by_gpu.values() if max(busy) > 0]

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            families = families_of_processes()
            for name, process in list(self._processes.items()):
                own = resident = spent = 0.0
                for member in families.get(process, [process]):
                    spent += _spent(member)
                    sizes = memory_of(member)
                    own += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
                    resident += sizes.get("VmRSS", 0)
                self.cpu[name] = max(spent, self.cpu.get(name, 0.0))
                self._highest(name, own)
                self._highest(f"{name} resident", resident)
            with contextlib.suppress(redis.RedisError):
                self._highest("redis", self._redis.info("memory")["used_memory"] / 1e6)

    def _listen(self) -> None:
        for line in (self._smi and self._smi.stdout) or ():
            if match := re.match(r"(\d+), (\d+)", line):
                self._busy.append((time.time(), int(match[1]), float(match[2])))

    def _highest(self, name: str, value: float) -> None:
        self.memory[name] = round(max(value, self.memory.get(name, 0.0)), 1)


def families_of_processes() -> dict[int, list[int]]:
    """Each process and its descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()[1])
    families: dict[int, list[int]] = {}
    for process in parents:
        ancestor: int | None = process
        while ancestor:
            families.setdefault(ancestor, []).append(process)
            ancestor = parents.get(ancestor)
    return families


def _spent(process: int) -> float:
    """A process's time in user and in system mode, in seconds."""
    with contextlib.suppress(OSError):
        fields = Path("/proc", str(process), "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory_of(process: int) -> dict[str, float]:
    """A process's memory by the kernel's names, in MB."""
    with contextlib.suppress(OSError):
        text = Path("/proc", str(process), "status").read_text()
        return {name: int(kb) * 1024 / 1e6 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {}
