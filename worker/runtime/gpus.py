"""Which GPUs there are, without touching CUDA: a process that forks after it has used CUDA breaks its children."""

import ctypes
import importlib.util
import os
import re
from pathlib import Path

CHILDREN = 4
"""Worker processes for each GPU: while one computes, the others read and write, which takes longer where texts are
short (the figures are in docs/lab-notes.md)."""


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


def gpu_model(driver: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The kind of this machine's GPUs as the driver names it, such as ``NVIDIA H100 80GB HBM3``; empty where there are
    several kinds, or the driver does not say."""
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in driver.glob("*/information")]
    models = {match[1].strip() for text in texts if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))}
    return models.pop() if len(models) == 1 else ""


_NOT_INITIALIZED = 3
"""CUDA_ERROR_NOT_INITIALIZED: what the driver answers in a process that has not used it."""


def cuda_untouched() -> bool:
    """Whether this process has not used CUDA, so that processes that are forked from it can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is none to touch
        return True
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == _NOT_INITIALIZED)


PYCUDA, CUDA_BINDINGS = "pycuda", "cuda-bindings"
_MODULES = {CUDA_BINDINGS: "cuda.bindings"}
"""Of packages whose modules have another name."""


def missing(*packages: str) -> str:
    """Which of these packages cannot be imported; empty if none."""
    absent = [name for name in packages if not _is_installed(name)]
    return f"no Python package {' and '.join(absent)}" if absent else ""


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(_MODULES.get(package, package)) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def tensorrt_package() -> str:
    """The package that TensorRT is taken from: ``tensorrt``, or ``tensorrt_rtx`` where only that is installed; empty
    where neither is."""
    return next((name for name in ("tensorrt", "tensorrt_rtx") if _is_installed(name)), "")


def cuda_package() -> str:
    """The package by which plans reach the driver: PyCUDA, or cuda-bindings where only that is installed; empty where
    neither is."""
    return next((name for name in (PYCUDA, CUDA_BINDINGS) if _is_installed(name)), "")


def lacking(*packages: str) -> str:
    """What this machine lacks for a GPU and these packages, by default TensorRT's; empty if nothing."""
    wanted = packages or (tensorrt_package() or "tensorrt", cuda_package() or CUDA_BINDINGS)
    return missing(*wanted) if gpu_count() else "no NVIDIA GPU"


TORCH = ("torch", "transformers", "safetensors")
"""What computing with PyTorch takes."""

MODULES = (*TORCH, "sentence_transformers")
"""What computing with a model's own modules takes."""


def torch_lacking() -> str:
    """What this machine lacks for PyTorch on a GPU; empty if nothing."""
    return lacking(*TORCH) or _torch_without_cuda()


def modules_lacking() -> str:
    """What this machine lacks for a model's own modules on a GPU; empty if nothing."""
    return lacking(*MODULES) or _torch_without_cuda()


def _torch_without_cuda() -> str:
    """Read from PyTorch's files: a process that has imported PyTorch may have touched CUDA, and its children could not
    use it."""
    spec = importlib.util.find_spec("torch")
    folders = (spec.submodule_search_locations if spec else None) or []
    texts = [(Path(folder) / "version.py").read_text(encoding="utf-8") for folder in folders]
    built = any(re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) for text in texts)
    return "" if built else "a PyTorch without CUDA"
