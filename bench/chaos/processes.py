"""Faults of processes: workers, their children, producers."""

import contextlib
import random
import subprocess
import time

import psutil

from bench.chaos.fault import Once
from bench.chaos.rig import Rig
from bench.chaos.servers import kill


def kill_child(rig: Rig, dice: random.Random) -> bool:
    """SIGKILL, to a child that computes."""
    number = dice.randrange(len(rig.workers))
    child = rig.child_of(number)
    if child is None or rig.in_hand(number) is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()
    rig.fault()
    return True


def kill_worker(rig: Rig, dice: random.Random) -> bool:
    """SIGKILL, to a worker that computes, and thereby its child."""
    number = dice.randrange(len(rig.workers))
    batch = rig.in_hand(number)
    if batch is None:
        return False
    kill(rig.workers[number])
    rig.note_cut(batch)
    rig.fault()
    return True


def give_notice(rig: Rig, dice: random.Random) -> bool:
    """SIGTERM, to a worker that computes."""
    number = dice.randrange(len(rig.workers))
    if rig.in_hand(number) is None:
        return False
    rig.workers[number].terminate()
    rig.fault()
    return True


def stop_child(seconds: float) -> Once:
    """A child that computes stands still for so many seconds: SIGSTOP, then SIGCONT."""

    def once(rig: Rig, dice: random.Random) -> bool:
        number = dice.randrange(len(rig.workers))
        child = rig.child_of(number)
        if child is None or rig.in_hand(number) is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
            rig.fault()
            time.sleep(seconds)
            child.resume()
        return True

    return once


def kill_producer(rig: Rig, dice: random.Random) -> bool:
    """One of them, and it starts again."""
    number = dice.randrange(len(rig.producers))
    rig.kill_producer(number)
    rig.fault()
    rig.start_producer(number)
    return True


def kill_producers_in_turn(rig: Rig, dice: random.Random) -> bool:
    """The one that was not killed the last time, and it starts again."""
    number = len(rig.faults) % len(rig.producers)
    rig.kill_producer(number)
    rig.fault()
    rig.start_producer(number)
    return True


def lose_host(seconds: float) -> Once:
    """A worker's host loses its link and then its power, and is back after so many seconds: Redis hears of nothing."""

    def once(rig: Rig, dice: random.Random) -> bool:
        number = dice.randrange(len(rig.workers))
        batch = rig.in_hand(number)
        if batch is None:
            return False
        _link(rig, number, "down")
        rig.workers[number].kill()
        rig.note_cut(batch)
        rig.fault()
        time.sleep(seconds)
        _link(rig, number, "up")
        return True

    return once


def cut_off(seconds: float) -> Once:
    """A worker's host loses its link for so many seconds."""

    def once(rig: Rig, dice: random.Random) -> bool:
        number = dice.randrange(len(rig.workers))
        _link(rig, number, "down")
        rig.fault()
        time.sleep(seconds)
        _link(rig, number, "up")
        return True

    return once


def _link(rig: Rig, number: int, state: str) -> None:
    subprocess.run([*rig.place.hosts[f"worker{number}"].prefix, "ip", "link", "set", "eth0", state], check=True)
