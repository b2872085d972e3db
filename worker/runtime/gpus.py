"""Which GPUs there are, without touching CUDA: a process that forks after it has used CUDA breaks its children."""

import importlib.util
import os
from pathlib import Path


def gpu_count(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use: the device files, fewer where ``CUDA_VISIBLE_DEVICES`` names fewer."""
    files = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return files
    # CUDA takes the names up to the first that it does not know, such as -1.
    names = [name.strip() for name in visible.split(",")]
    known = next((index for index, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return min(files, known)


def lacking() -> str:
    """What this machine lacks for TensorRT; empty if nothing."""
    if not gpu_count():
        return "no NVIDIA GPU"
    packages = [name for name in ("tensorrt", "pycuda") if importlib.util.find_spec(name) is None]
    return f"no Python package {' and '.join(packages)}" if packages else ""
