"""The job over and over on the same Redis and workers' places, under faults drawn at random."""

import random
import shutil
import time
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import redis
from rich.console import Console

from bench.chaos.fault import Fault
from bench.chaos.faults import AOF, SOAKED
from bench.chaos.place import WORKERS, Place, on_hosts, on_small_disk, with_clocks, with_own_engine, with_small_tmp
from bench.chaos.record import figures
from bench.chaos.rig import Rig
from bench.chaos.run import environment, opened, prepare
from contract.job import Job

_EVERY = (1.0, 8.0)
"""Seconds between two faults, at least and at most."""

_PLACE = Fault(
    "soak",
    changes=(on_hosts, with_clocks, on_small_disk, with_small_tmp, with_own_engine),
    servers=AOF,
    env={"EMBEDMILL_VISIBILITY_TIMEOUT": "600"},
    seconds=0.3,
)


def soak(folder: Path, *, minutes: float, seed: int, console: Console) -> dict[str, Any]:
    """Do the job again and again for so many minutes, under faults that are drawn at random.

    Args:
        folder: for logs and shards.
        minutes: after which no round begins any more.
        seed: decides which faults come, and when.
        console: takes the figures.

    Returns:
        What ``soak.json`` holds: the faults by kind, and a record for each round.
    """
    engines, dataset = prepare(folder := folder.resolve())
    undisturbed = _undisturbed(folder, engines, dataset)
    injected: Counter[str] = Counter()
    rounds: list[dict[str, Any]] = []
    until = time.monotonic() + 60 * minutes
    place = Place.fresh(folder / "soak", engines, environment(_PLACE))
    # A process ends with the thread that has started it, so the threads are there until all is over.
    with ThreadPoolExecutor(len(SOAKED)) as hands, opened(_PLACE, place, dataset) as rig:
        dice = random.Random(seed)
        while time.monotonic() < until:
            output = rig.folder / "output" / f"round{len(rounds)}"
            rig.begin_round(str(output))
            began = time.monotonic()
            rig.start_producer() if rounds else rig.start(WORKERS)
            _disturb(rig, dice, hands, injected)
            status, seconds = rig.finish(), time.monotonic() - began
            rounds.append({"faults": len(rig.faults), **figures(rig, undisturbed, status, seconds)})
            console.print(rounds[-1], highlight=False)
            shutil.rmtree(output)
    return {"minutes": minutes, "faults": sum(injected.values()), "injected": dict(injected), "rounds": rounds}


def _undisturbed(folder: Path, engines: Path, dataset: Path) -> Job:
    calm = Fault("undisturbed", seconds=0.02)
    with opened(calm, Place.fresh(folder / "undisturbed", engines, environment(calm)), dataset) as rig:
        rig.start(WORKERS)
        rig.finish()
        if (job := rig.job()) is None:
            raise RuntimeError((rig.folder / "producer0.log").read_text())
        return job


def _disturb(rig: Rig, dice: random.Random, hands: Executor, injected: Counter[str]) -> None:
    """Faults until the job is at its end. One that lasts does not keep the next from coming.

    A producer that began while there was no engine, or no space for the job, has said so and ended: it is run again, as
    its user would.
    """
    under_way: dict[str, Future[bool]] = {}
    while rig.running or rig.failed:
        time.sleep(dice.uniform(*_EVERY))
        if rig.failed:
            rig.start_producer()
        name, own = dice.choice(list(SOAKED)), random.Random(dice.random())
        if rig.running and (name not in under_way or under_way[name].done()):
            injected[name] += _came(under_way.pop(name, None))
            under_way[name] = hands.submit(SOAKED[name], rig, own)
        if not rig.running:  # it may just be that a fault restarts its producer
            wait(under_way.values())
    for name, future in under_way.items():
        injected[name] += _came(future)


def _came(future: "Future[bool] | None") -> bool:
    """Whether a fault was injected; Redis may have been away just then, by another one."""
    try:
        return future is not None and future.result()
    except redis.RedisError:
        return False
