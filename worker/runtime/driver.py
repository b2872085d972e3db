"""CUDA's driver as a plan uses it: by PyCUDA where that is installed, else by cuda-bindings, which has wheels.

Both have the calls of ``CudaDriver``: PyCUDA of its own, cuda-bindings by ``cuda_bindings`` beside this module.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt

from contract.errors import UserError
from worker.runtime.gpus import CUDA_BINDINGS, PYCUDA, cuda_package


class Memory(Protocol):
    """Bytes on the GPU, freed with the last reference at the latest. ``int()`` gives their address."""

    def __int__(self) -> int: ...

    def free(self) -> None:
        """Give them back."""
        ...


class Stream(Protocol):
    """What the GPU does in order; freed with the last reference."""

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        ...

    def synchronize(self) -> object:
        """Wait until all of it is done."""
        ...

    def wait_for_event(self, event: Any) -> object:
        """Have what comes next wait for an event."""
        ...


class Event(Protocol):
    """A point in a stream; freed with the last reference."""

    def record(self, stream: Any) -> object:
        """Let it be the end of what the stream has to do now."""
        ...

    def synchronize(self) -> object:
        """Wait until the GPU has come to it."""
        ...

    def time_since(self, earlier: Any) -> float:
        """Milliseconds between two events."""
        ...


class Context(Protocol):
    """A GPU's context."""

    def push(self) -> object:
        """Make it this thread's current one."""
        ...

    def pop(self) -> object:
        """Make the one before it the current one again."""
        ...


class Device(Protocol):
    """A GPU."""

    def name(self) -> str:
        """Such as ``NVIDIA H100 80GB HBM3``."""
        ...

    def pci_bus_id(self) -> str:
        """Such as ``0000:1B:00.0``."""
        ...

    def compute_capability(self) -> tuple[int, int]:
        """``(9, 0)`` for 9.0."""
        ...

    def get_attribute(self, attribute: Any) -> int:
        """One of ``CudaDriver.device_attribute``."""
        ...

    def retain_primary_context(self) -> Context:
        """The context that the CUDA runtime uses too, and so TensorRT."""
        ...


class CudaDriver(Protocol):
    """The calls. A context is current in all but the first two. Each may raise ``Error``."""

    def __hash__(self) -> int: ...

    def init(self) -> object:
        """Comes before all others."""
        ...

    @property
    def Device(self) -> Callable[[int], Device]:
        """The GPU of a number, from 0."""
        ...

    @property
    def Stream(self) -> Callable[[], Stream]: ...

    @property
    def Event(self) -> Callable[[], Event]: ...

    def mem_alloc(self, size: int) -> Memory:
        """So many bytes on the GPU.

        Raises:
            MemoryError: the class of that name of this protocol: so many are not free.
        """
        ...

    def mem_get_info(self) -> tuple[int, int]:
        """Bytes of the GPU's memory that are free, and in all."""
        ...

    def pagelocked_empty(self, shape: Any, dtype: Any) -> npt.NDArray[Any]:
        """Host memory that the GPU copies from and to by itself. ``.base.free()`` gives it back."""
        ...

    def memcpy_htod_async(self, dest: Any, src: npt.NDArray[Any], stream: Any) -> object:
        """Copy a contiguous array to the GPU, in a stream."""
        ...

    def memcpy_dtoh_async(self, dest: npt.NDArray[Any], src: Any, stream: Any) -> object:
        """Copy from the GPU into a contiguous array, in a stream."""
        ...

    @property
    def device_attribute(self) -> Any:
        """Has ``MULTIPROCESSOR_COUNT``."""
        ...

    @property
    def Error(self) -> type[Exception]:
        """The driver failed. Of an error on the GPU every call after it fails too."""
        ...

    @property
    def MemoryError(self) -> type[Exception]:
        """An ``Error``: the GPU's memory does not suffice."""
        ...


def cuda_driver() -> CudaDriver:
    """The driver, by what this machine has.

    Raises:
        UserError: neither package is installed, or one that cannot be imported.
    """
    try:
        if cuda_package() == PYCUDA:
            import pycuda.driver

            return pycuda.driver
        from worker.runtime import cuda_bindings
    except ImportError as error:  # PyCUDA is linked to the driver's library
        raise UserError(
            f"CUDA cannot be used ({error})",
            f"expected NVIDIA's driver, and {PYCUDA} or {CUDA_BINDINGS}",
            "see nvidia-smi; pip install 'embedmill[gpu]' brings cuda-bindings",
        ) from None
    return cuda_bindings
