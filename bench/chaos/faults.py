"""The faults. Each takes a running rig, hurts it, and returns when it has; the job must end all the same."""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
from celery import Celery

from bench.chaos.rig import Rig
from contract.redis.keys import queue_of
from contract.redis.messages import TASK, direct_queue


@dataclass(frozen=True)
class Scale:
    """How much is injected."""

    kills: int = 30
    """Of children, and of whole workers."""
    restarts: int = 5
    """Of Redis."""
    producers: int = 10
    """Kills of the producer."""
    seconds: float = 8.0
    """How long a fault that lasts lasts."""


@dataclass(frozen=True)
class Fault:
    """A fault and what it needs."""

    name: str
    inject: Callable[[Rig, Scale, random.Random], None]
    redis_options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    failed: tuple[int, ...] = ()
    """Rows that must end with an error, and no others."""
    network: bool = False
    """Whether the processes run on hosts of their own."""
    tmpfs: bool = False
    """Whether the output is a small file system in memory."""
    seconds: float = 0.15
    """How long the engine takes for a batch."""


_AOF = ("--appendonly", "yes", "--appendfsync", "always")
RAISES, KILLS, NAN = 411, 1033, 1777


def nothing(rig: Rig, scale: Scale, dice: random.Random) -> None:
    """The undisturbed run."""


def kill_children(rig: Rig, scale: Scale, dice: random.Random) -> None:
    done = 0
    while done < scale.kills and rig.running:
        time.sleep(dice.uniform(0.1, 0.9))
        child = rig.child_of(dice.randrange(len(rig.workers)))
        if child:
            child.kill()
            rig.fault()
            done += 1


def kill_workers(rig: Rig, scale: Scale, dice: random.Random) -> None:
    for _ in range(scale.kills):
        time.sleep(dice.uniform(0.2, 1.8))
        if not rig.running:
            return
        rig.kill_worker(dice.randrange(len(rig.workers)))
        rig.fault()


def restart_redis(rig: Rig, scale: Scale, dice: random.Random) -> None:
    for _ in range(scale.restarts):
        time.sleep(dice.uniform(1, 3))
        rig.kill_redis()
        rig.fault()
        time.sleep(dice.uniform(0.2, 2))
        rig.start_redis()


def lose_redis(rig: Rig, scale: Scale, dice: random.Random) -> None:
    """Once, with all that was in it."""
    rig.wait_for(lambda: len(rig.commits) > 20)
    rig.kill_redis()
    rig.fault()
    time.sleep(1)
    rig.start_redis()


def reset_connections(rig: Rig, scale: Scale, dice: random.Random) -> None:
    while rig.running:
        time.sleep(1)
        try:
            with rig.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            rig.fault()
        except redis.RedisError:
            pass


def kill_producer(rig: Rig, scale: Scale, dice: random.Random) -> None:
    for _ in range(scale.producers):
        time.sleep(dice.uniform(0.5, 4))  # at times before it has published anything
        if not rig.running:
            return
        rig.kill_producer()
        rig.fault()
        rig.start_producer()


def fill_redis(rig: Rig, scale: Scale, dice: random.Random) -> None:
    for _ in range(3):
        rig.wait_for(lambda: len(rig.commits) > 10 * (len(rig.faults) + 1))
        with rig.client() as client:
            client.config_set("maxmemory", "100kb")
            rig.fault()
            time.sleep(scale.seconds / 2)
            client.config_set("maxmemory", "0")


def fill_disk(rig: Rig, scale: Scale, dice: random.Random) -> None:
    rig.wait_for(lambda: len(rig.commits) > 10)
    filler = rig.folder / "output" / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    rig.fault()
    time.sleep(scale.seconds)
    filler.unlink()


def confuse(rig: Rig, scale: Scale, dice: random.Random) -> None:
    """Every message twice; messages that name nothing; garbage in place of a batch."""
    rig.wait_for(rig.job)
    job = rig.job()
    assert job is not None
    queue = direct_queue(queue_of(job.key))
    sender = Celery(broker=f"redis://{rig.redis_host}:{rig.port}/0", set_as_current=False)
    sent: set[int] = set()
    spoilt = 0
    with rig.client() as client:
        while rig.running:
            out = sorted({int(batch) for batch in client.hkeys(f"embedmill:{job.key}:out")} - sent)
            for batch in out:
                sender.send_task(TASK, args=(job.key, batch), queue=queue)
                sent.add(batch)
                rig.fault()
                if dice.random() < 0.05 and client.set(f"embedmill:{job.key}:batch:{batch}", b"garbage", xx=True):
                    spoilt += 1
                    rig.fault()
            if len(sent) % 50 == 1:
                for stranger in (("no-such-job", 0), (job.key, 10**6), (job.key, -1), ("../../etc", 0)):
                    sender.send_task(TASK, args=stranger, queue=queue)
                    rig.fault()
            time.sleep(0.1)


def cut_off(rig: Rig, scale: Scale, dice: random.Random) -> None:
    """One worker's host loses its link for a while."""
    rig.wait_for(lambda: len(rig.commits) > 20)
    link = [*rig.hosts["worker0"].prefix, "ip", "link", "set", "eth0"]
    subprocess.run([*link, "down"], check=True)
    rig.fault()
    time.sleep(2 * scale.seconds)
    subprocess.run([*link, "up"], check=True)


def mount_tmpfs(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)


FAULTS = (
    Fault("30 SIGKILLs of children", kill_children, seconds=0.3),
    Fault("30 SIGKILLs of whole workers", kill_workers, seconds=0.3),
    Fault("Redis killed and restarted 5 times, AOF on", restart_redis, redis_options=_AOF),
    Fault("Redis killed, all in it lost", lose_redis),
    Fault("connections reset every second", reset_connections),
    Fault("producer killed 10 times", kill_producer, seconds=0.3),
    Fault("Redis at maxmemory, 3 times", fill_redis),
    Fault("disk full, then freed", fill_disk, tmpfs=True),
    Fault("a row that raises", nothing, env={"CHAOS_RAISE": str(RAISES)}, failed=(RAISES,), seconds=0.02),
    Fault("a row that kills the process", nothing, env={"CHAOS_KILL": str(KILLS)}, failed=(KILLS,), seconds=0.02),
    Fault("a row that yields NaN", nothing, env={"CHAOS_NAN": str(NAN)}, failed=(NAN,), seconds=0.02),
    Fault("every message twice, strangers, garbage", confuse, seconds=0.05),
    Fault("a host cut off, then back", cut_off, network=True, seconds=0.4),
)
