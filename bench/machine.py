"""What a benchmark ran on."""

import contextlib
import os
import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """The processor's name, the memory, and the GPUs."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    found = gpus()
    on_it = f"{len(found)} × {found[0]}, " if found else ""
    return f"{on_it}{name}, {cores} cores, {memory:.0f} GiB"


def nvidia_smi(*options: str) -> list[str]:
    """The command that asks about the NVIDIA GPUs that programs here may use: CUDA heeds this variable, it does not."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return ["nvidia-smi", *(["-i", visible] if visible else []), *options]


def gpus() -> list[str]:
    """The names of the NVIDIA GPUs that programs here may use."""
    try:
        command = nvidia_smi("--query-gpu=name", "--format=csv,noheader")
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in told.stdout.splitlines()] if told.returncode == 0 else []
