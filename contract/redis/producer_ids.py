"""The ids of a job's producers: when each began, and which process of which machine it is."""

import os
import socket
from pathlib import Path


def own_id(now: float) -> str:
    """The id of this process. Ids sort in the order in which producers began.

    Args:
        now: Redis's clock, seconds since the epoch.
    """
    return f"{now:.6f} {socket.gethostname()} {_MACHINE} {os.getpid()} {_started(os.getpid())}"


def is_here(producer: str) -> bool:
    """Whether a producer runs, or ran, on this machine."""
    return _machine_of(producer) == _MACHINE


def has_ended_here(producer: str) -> bool:
    """Whether a producer was a process of this machine that has ended. Its key need not expire first."""
    if not is_here(producer):
        return False
    process, began = producer.split(" ")[3:]
    return not process.isdigit() or _started(int(process)) != began


def _machine_of(producer: str) -> str:
    words = producer.split(" ")
    return words[2] if len(words) == 5 else ""


def _started(process: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None for one that has ended."""
    try:
        state, *fields = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _machine() -> str:
    """This machine's boot, and the PID namespace: a process number means a process only within these."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


_MACHINE = _machine()
