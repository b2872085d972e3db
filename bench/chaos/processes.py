"""Faults of processes: workers, their children, producers."""

import contextlib
import functools
import random
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil

from bench.chaos.fault import Once
from bench.chaos.rig import Rig
from bench.chaos.servers import kill


def to_worker(hurt: Callable[[Rig, int, int], None]) -> Once:
    """Hurts one of the workers, if it computes.

    Args:
        hurt: takes the rig, the worker's number, and the batch that it has in hand.
    """

    @functools.wraps(hurt)
    def once(rig: Rig, dice: random.Random) -> bool:
        number = dice.randrange(len(rig.workers))
        batch = rig.in_hand(number)
        if batch is None:
            return False
        hurt(rig, number, batch)
        return True

    return once


def to_child(hurt: Callable[[Rig, psutil.Process], None]) -> Once:
    """Hurts the child of one of the workers, if it computes.

    Args:
        hurt: takes the rig and the child.
    """

    @functools.wraps(hurt)
    def once(rig: Rig, dice: random.Random) -> bool:
        number = dice.randrange(len(rig.workers))
        child = rig.child_of(number)
        if child is None or rig.in_hand(number) is None:
            return False
        hurt(rig, child)
        return True

    return once


@to_child
def kill_child(rig: Rig, child: psutil.Process) -> None:
    """SIGKILL, to a child that computes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        child.kill()
    rig.fault()


@to_worker
def kill_worker(rig: Rig, number: int, batch: int) -> None:
    """SIGKILL, to a worker that computes, and thereby its child."""
    kill(rig.workers[number])
    rig.note_cut(batch)
    rig.fault()


@to_worker
def give_notice(rig: Rig, number: int, batch: int) -> None:
    """SIGTERM, to a worker that computes."""
    rig.workers[number].terminate()
    rig.fault()


def stop_child(seconds: float) -> Once:
    """A child that computes stands still for so many seconds: SIGSTOP, then SIGCONT."""

    @to_child
    def stop(rig: Rig, child: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
            rig.fault()
            time.sleep(seconds)
            child.resume()

    return stop


def kill_producer(rig: Rig, dice: random.Random) -> bool:
    """One of them, and it starts again."""
    return _restart_producer(rig, dice.randrange(len(rig.producers)))


def kill_producers_in_turn(rig: Rig, dice: random.Random) -> bool:
    """The one that was not killed the last time, and it starts again."""
    return _restart_producer(rig, len(rig.faults) % len(rig.producers))


def _restart_producer(rig: Rig, number: int) -> bool:
    rig.kill_producer(number)
    rig.fault()
    rig.start_producer(number)
    return True


def lose_host(seconds: float) -> Once:
    """A worker's host loses its link and then its power, and is back after so many seconds: Redis hears of nothing."""

    @to_worker
    def lose(rig: Rig, number: int, batch: int) -> None:
        with _without_link(rig, number, seconds):
            rig.workers[number].kill()
            rig.note_cut(batch)

    return lose


def cut_off(seconds: float) -> Once:
    """A worker's host loses its link for so many seconds."""

    def once(rig: Rig, dice: random.Random) -> bool:
        with _without_link(rig, dice.randrange(len(rig.workers)), seconds):
            return True

    return once


@contextlib.contextmanager
def _without_link(rig: Rig, number: int, seconds: float) -> Iterator[None]:
    """A worker's host has no link in the ``with`` block, and for so many seconds after it: the fault."""
    _set_link(rig, number, "down")
    yield
    rig.fault()
    time.sleep(seconds)
    _set_link(rig, number, "up")


def _set_link(rig: Rig, number: int, state: str) -> None:
    subprocess.run([*rig.place.hosts[f"worker{number}"].prefix, "ip", "link", "set", "eth0", state], check=True)
