"""Where a run takes place: hosts, disks, buckets and clocks that can be hurt while it lasts."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

from bench.buckets import BUCKET, credentials, s3_server
from bench.chaos.network import network
from bench.faulty_store import Proxy, faulty
from contract.store.client import store_of
from embedmill.processes import free_port

WORKERS = 3

_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device")


class Missing(Exception):
    """This machine lacks what a place needs."""


@dataclass(frozen=True)
class Host:
    """Where a process runs: on this machine, or on one that a network namespace stands for."""

    prefix: tuple[str, ...] = ()
    """What a command is put behind, such as ``ip netns exec NAME``."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this host alone."""


@dataclass(frozen=True)
class Place:
    """Where the processes run and what they find there."""

    folder: Path
    """For logs, and for shards where ``output`` does not say otherwise."""
    engines: Path
    output: str = ""
    """Location of the jobs; empty for the folder's ``output``."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of all processes."""
    hosts: Mapping[str, Host] = field(default_factory=dict)
    """By the names of processes: ``redis``, ``producer0``, ``worker0``, …"""
    address: str = "127.0.0.1"
    """Redis's."""
    bucket: Proxy | None = None
    """In front of the bucket."""
    disk: str = ""
    """Numbers of the device that the output lies on, such as ``7:0``."""

    @staticmethod
    def fresh(folder: Path, engines: Path, env: Mapping[str, str]) -> "Place":
        """This machine, and an empty folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Place(folder, engines, env=env)

    def with_env(self, name: str, env: Mapping[str, str]) -> "Place":
        """The same place, with more variables for one process."""
        host = self.hosts.get(name, Host())
        return replace(self, hosts={**self.hosts, name: replace(host, env={**host.env, **env})})

    def clock(self, name: str) -> Path:
        """The file that says by how many seconds this host's clock is ahead."""
        return self.folder / f"clock-{name}"

    def small(self, name: str) -> Path:
        """A small file system."""
        return self.folder / name


Change = Callable[[Place, ExitStack], Place]
"""Makes a place another one; the stack undoes it."""

NAMES = ("redis", "producer0", "producer1", *(f"worker{number}" for number in range(WORKERS)))


def on_hosts(place: Place, stack: ExitStack) -> Place:
    """Each process on a host of its own."""
    hosts, address = stack.enter_context(network(NAMES))
    return replace(place, hosts={name: Host(prefix) for name, prefix in hosts.items()}, address=address)


def with_clocks(place: Place, stack: ExitStack) -> Place:
    """Each host with a clock that can be set."""
    if not (compiler := shutil.which("cc")):
        raise Missing("no C compiler (cc)")
    library = place.folder / "clock.so"
    _run(compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(Path(__file__).with_name("clock.c")), "-ldl")
    for name in NAMES:
        set_ahead(place, name, 0)
        place = place.with_env(name, {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(place.clock(name))})
    return place


def set_ahead(place: Place, name: str, seconds: int) -> None:
    """Set a host's clock so far ahead of this machine's."""
    file = place.clock(name)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY), "w") as clock:  # in place: it is mapped
        clock.write(f"{seconds:<4096}")


def on_small_disk(place: Place, stack: ExitStack) -> Place:
    """Shards on a file system of 16 MB."""
    _tmpfs(place.small("output"), "16m", stack)
    return place


def with_small_tmp(place: Place, stack: ExitStack) -> Place:
    """Temporary files, and workers' counts for Prometheus, on a file system of 4 MB."""
    _tmpfs(place.small("tmp"), "4m", stack)
    for number in range(WORKERS):
        place = place.with_env(f"worker{number}", {"EMBEDMILL_METRICS_PORT": str(free_port())})
    return replace(place, env={**place.env, "TMPDIR": str(place.small("tmp"))})


def on_slow_disk(place: Place, stack: ExitStack) -> Place:
    """Shards on a disk of which the kernel can be told how many writes a second it makes."""
    if not _THROTTLE.exists() or not shutil.which("mkfs.ext4"):
        raise Missing("no blkio.throttle of cgroup v1, or no mkfs.ext4")
    image, output = place.folder / "disk", place.small("output")
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    output.mkdir()
    _run("mkfs.ext4", "-q", str(image))
    device = _run("losetup", "--show", "-f", str(image)).strip()
    stack.callback(subprocess.run, ["losetup", "-d", device], check=False)
    _run("mount", device, str(output))
    stack.callback(subprocess.run, ["umount", "-l", str(output)], check=False)
    number = os.stat(device).st_rdev
    disk = f"{os.major(number)}:{os.minor(number)}"
    stack.callback(limit_writes, disk, 0)
    return replace(place, disk=disk)


def limit_writes(disk: str, a_second: int) -> None:
    """Have the kernel write to a disk so many times a second; 0 for as often as it can."""
    _THROTTLE.write_text(f"{disk} {a_second}\n")


def in_bucket(place: Place, stack: ExitStack) -> Place:
    """Shards in a bucket, behind a proxy that answers in its place at times. This process asks past it."""
    server = stack.enter_context(s3_server(place.folder))
    proxy = stack.enter_context(faulty(server))
    stack.enter_context(patch.dict(os.environ, credentials(server)))
    store_of.cache_clear()
    env = {**place.env, **credentials(proxy.url)}
    return replace(place, env=env, output=f"s3://{BUCKET}/jobs", bucket=proxy)


def with_own_engine(place: Place, stack: ExitStack) -> Place:
    """An engines folder that is this run's alone."""
    return replace(place, engines=shutil.copytree(place.engines, place.folder / "engines"))


def _tmpfs(folder: Path, size: str, stack: ExitStack) -> None:
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
