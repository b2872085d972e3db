"""Faults of what processes depend on: Redis, disks, bucket, clocks, engine."""

import contextlib
import json
import random
import shutil
import time
from pathlib import Path

import redis
from celery import Celery

from bench.chaos.fault import Once
from bench.chaos.place import limit_writes, set_ahead
from bench.chaos.processes import kill_child
from bench.chaos.rig import Rig
from bench.faulty_store import Fault as Answer, delay, error, lose_answer, lose_request
from contract.redis.keys import batch_key, key_of, queue_of
from contract.redis.messages import TASK, direct_queue

# Redis


def restart_redis(rig: Rig, dice: random.Random) -> bool:
    rig.servers.kill()
    rig.fault()
    time.sleep(dice.uniform(0.2, 2))
    rig.servers.start()
    return True


def reset_connections(rig: Rig, dice: random.Random) -> bool:
    try:
        with rig.servers.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    except redis.RedisError:
        return False
    rig.fault()
    return True


def fill_redis(seconds: float) -> Once:
    """Redis is over its ``maxmemory`` for so many seconds."""

    def once(rig: Rig, dice: random.Random) -> bool:
        with rig.servers.client() as client:
            client.config_set("maxmemory", "100kb")
            rig.fault()
            time.sleep(seconds)
            with contextlib.suppress(redis.RedisError):  # killed meanwhile, it has forgotten that
                client.config_set("maxmemory", "0")
        return True

    return once


def confuse() -> Once:
    """Every message that is new twice; at times messages that name nothing; at times garbage in place of a batch."""
    sent: set[int] = set()

    def once(rig: Rig, dice: random.Random) -> bool:
        if (job := rig.job()) is None:
            return False
        queue = direct_queue(queue_of(job.key))
        sender = Celery(broker=rig.servers.url, set_as_current=False)
        with rig.servers.client() as client:
            for batch in sorted({int(batch) for batch in client.hkeys(key_of(job.key, "out"))} - sent):
                sender.send_task(TASK, args=(job.key, batch), queue=queue)
                sent.add(batch)
                rig.fault()
                if dice.random() < 0.05 and client.set(batch_key(job.key, batch), b"garbage", xx=True):
                    rig.fault()
        if len(sent) % 50 == 1:
            for stranger in (("no-such-job", 0), (job.key, 10**6), (job.key, -1), ("../../etc", 0)):
                sender.send_task(TASK, args=stranger, queue=queue)
                rig.fault()
        return True

    return once


# Disks


def fill(name: str, seconds: float) -> Once:
    """One of the small file systems is full for so many seconds, and a child dies meanwhile."""

    def once(rig: Rig, dice: random.Random) -> bool:
        filler = rig.place.small(name) / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        rig.fault()
        kill_child(rig, dice)
        time.sleep(seconds)
        filler.unlink()
        return True

    return once


def slow_disk(writes_a_second: int, seconds: float) -> Once:
    """The shards' disk makes no more than so many writes a second for so long."""

    def once(rig: Rig, dice: random.Random) -> bool:
        limit_writes(rig.place.disk, writes_a_second)
        rig.fault()
        time.sleep(seconds)
        limit_writes(rig.place.disk, 0)
        return True

    return once


# The bucket

_ANSWERS: tuple[tuple[str, Answer], ...] = (
    ("PUT", error(503, "SlowDown")),
    ("PUT", lose_answer),
    ("PUT", lose_request),
    ("PUT", delay(3)),
    ("HEAD", error(503, "SlowDown")),
    ("HEAD", delay(3)),
    ("GET", error(503, "SlowDown")),
    ("GET", lose_request),
    ("GET", delay(3)),
)


def answer_wrongly(rig: Rig, dice: random.Random) -> bool:
    """The bucket answers one request with 503, late or not at all."""
    assert rig.place.bucket is not None
    waiting = rig.place.bucket.faults
    waiting.append(dice.choice(_ANSWERS))
    rig.wait_for(lambda: not waiting or not rig.running, 10)
    if waiting:
        waiting.clear()
        return False
    rig.fault()
    return True


# Clocks and engines


def set_clock(host: str | None = None) -> Once:
    """A host's clock is an hour further; a worker's, unless a host is named."""

    def once(rig: Rig, dice: random.Random) -> bool:
        name = host or f"worker{dice.randrange(len(rig.workers))}"
        set_ahead(rig.place, name, int(rig.place.clock(name).read_text()) + 3600)
        rig.fault()
        return True

    return once


def swap_engine(seconds: float, *, another: bool = True) -> Once:
    """The engine's folder is gone, half copied or (``another``) another's for so many seconds, and a child dies
    meanwhile."""

    def once(rig: Rig, dice: random.Random) -> bool:
        (engine,) = [folder for folder in rig.place.engines.iterdir() if (folder / "engine.json").exists()]
        aside = rig.folder / "aside"
        engine.rename(aside)
        dice.choice((_gone, _half_copied, _another) if another else (_gone, _half_copied))(aside, engine)
        rig.fault()
        kill_child(rig, dice)
        time.sleep(seconds)
        shutil.rmtree(engine, ignore_errors=True)
        aside.rename(engine)
        return True

    return once


def _gone(before: Path, now: Path) -> None:
    """Nothing is there."""


def _half_copied(before: Path, now: Path) -> None:
    shutil.copytree(before, now)
    model = max(now.glob("*.onnx"), key=lambda file: file.stat().st_size)
    with model.open("r+b") as file:
        file.truncate(model.stat().st_size // 2)


def _another(before: Path, now: Path) -> None:
    """One of another model."""
    shutil.copytree(before, now)
    spec = now / "engine.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"weights_sha256": "0" * 64}))
