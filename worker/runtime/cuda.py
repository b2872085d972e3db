"""What the runtimes that use PyTorch on a GPU share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from contract.engine import EngineSpec
from contract.errors import UserError, reason
from worker.runtime.interface import EngineDead


def cuda_device(gpu: int) -> torch.device:
    """The GPU of this number.

    Raises:
        UserError: PyTorch finds no such GPU.
    """
    if not torch.cuda.is_available() or gpu >= torch.cuda.device_count():
        raise UserError(
            f"PyTorch {torch.__version__} finds {torch.cuda.device_count()} GPUs",
            f"expected to use number {gpu}",
            "see nvidia-smi, and install a PyTorch that was built for CUDA",
        )
    return torch.device("cuda", gpu)


def bus_id(device: torch.device) -> str:
    """Such as ``0000:1b:00.0``."""
    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"


def compute_capability(device: torch.device) -> int:
    """90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def enough_memory(spec: EngineSpec, device: torch.device) -> Iterator[None]:
    """In the ``with`` block, that memory of the GPU is lacking is a ``UserError``."""
    try:
        yield
    except RuntimeError as error:
        # An allocation of CUDA's own, such as a stream's, is not an OutOfMemoryError.
        if "out of memory" not in str(error):
            raise
        free, total = torch.cuda.mem_get_info(device)
        raise UserError(
            f"GPU {device.index} has too little free memory for engine {spec.name}: {free / 2**20:,.0f} of "
            f"{total / 2**20:,.0f} MiB ({reason(error)})",
            hint="end what else uses it (nvidia-smi), or start the worker with fewer children: -c 1",
        ) from None


@contextmanager
def dead_after_errors(device: torch.device) -> Iterator[None]:
    """In the ``with`` block, an error after which the GPU does nothing more is an ``EngineDead``."""
    try:
        yield
    except RuntimeError as error:
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            raise EngineDead(f"GPU {device.index} failed: {reason(error)}") from error
        raise
