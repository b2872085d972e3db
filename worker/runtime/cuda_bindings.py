"""PyCUDA's calls, as many as ``driver.CudaDriver`` has, by NVIDIA's cuda-bindings 12.9 and 13.

cuda-bindings gives a function's result code as a value. Here each is checked, by ``_checked`` alone.
"""

import logging
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

log = logging.getLogger("embedmill.worker")


class Error(Exception):
    """A function of the driver failed."""


class MemoryError(Error):  # PyCUDA's name
    """The GPU's memory does not suffice, or the host's for page-locked memory."""


class device_attribute:  # PyCUDA's name
    """What can be asked of a device."""

    MULTIPROCESSOR_COUNT = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


def _checked(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of the driver gives, without its result code: nothing, one value, or several.

    Raises:
        Error: it failed, whichever way cuda-bindings tells of it.
    """
    name = getattr(function, "__name__", "CUDA")
    try:
        code, *values = function(*arguments)
        failed = int(code)
    except (RuntimeError, ValueError, KeyError) as error:
        # There is no libcuda, it lacks the function, or its result code is newer than cuda-bindings.
        raise Error(f"{name} failed: {error}") from None
    if failed:
        _, text = driver.cuGetErrorString(code)
        kind = MemoryError if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else Error
        raise kind(f"{name} failed: {text.decode() if text else code}")
    return values[0] if len(values) == 1 else values


class _Owned:
    """Something of the driver's that is given back once, with the last reference at the latest.

    Args:
        give_back: the function that takes it.
        handle: its argument.
    """

    def __init__(self, give_back: Callable[..., Any], handle: object) -> None:
        self._given_back = weakref.finalize(self, _clean_up, give_back, handle)
        self._given_back.atexit = False  # the process's end gives all back

    def free(self) -> None:
        """Give it back."""
        self._given_back()


def _clean_up(function: Callable[..., Any], *arguments: object) -> None:
    """As ``_checked``, but never raises: on a GPU that failed this fails too, and what failed first is to be told."""
    try:
        _checked(function, *arguments)
    except Error as error:
        log.warning("a clean-up on the GPU failed: %s", error)


def init() -> None:
    """Comes before all others."""
    _checked(driver.cuInit, 0)


class Device:
    """See ``driver.Device``."""

    def __init__(self, number: int) -> None:
        self._device = _checked(driver.cuDeviceGet, number)

    def name(self) -> str:
        return _text(_checked(driver.cuDeviceGetName, 256, self._device))

    def pci_bus_id(self) -> str:
        return _text(_checked(driver.cuDeviceGetPCIBusId, 64, self._device))

    def compute_capability(self) -> tuple[int, int]:
        kinds = driver.CUdevice_attribute
        major = self.get_attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        return major, self.get_attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)

    def get_attribute(self, attribute: Any) -> int:
        return int(_checked(driver.cuDeviceGetAttribute, attribute, self._device))

    def retain_primary_context(self) -> "Context":
        return Context(_checked(driver.cuDevicePrimaryCtxRetain, self._device))


def _text(content: bytes) -> str:
    return content.split(b"\0")[0].decode(errors="replace")


class Context:
    """See ``driver.Context``. It is kept until the process ends."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def push(self) -> None:
        _checked(driver.cuCtxPushCurrent, self._handle)

    def pop(self) -> None:
        _clean_up(driver.cuCtxPopCurrent)


class Stream(_Owned):
    """See ``driver.Stream``."""

    def __init__(self) -> None:
        self._stream = _checked(driver.cuStreamCreate, 0)
        super().__init__(driver.cuStreamDestroy, self._stream)

    @property
    def handle(self) -> int:
        return int(self._stream)

    def synchronize(self) -> None:
        _checked(driver.cuStreamSynchronize, self._stream)

    def wait_for_event(self, event: "Event") -> None:
        _checked(driver.cuStreamWaitEvent, self._stream, event.handle, 0)


class Event(_Owned):
    """See ``driver.Event``."""

    def __init__(self) -> None:
        self.handle = _checked(driver.cuEventCreate, 0)
        super().__init__(driver.cuEventDestroy, self.handle)

    def record(self, stream: Stream) -> None:
        _checked(driver.cuEventRecord, self.handle, stream.handle)

    def synchronize(self) -> None:
        _checked(driver.cuEventSynchronize, self.handle)

    def time_since(self, earlier: "Event") -> float:
        return float(_checked(driver.cuEventElapsedTime, earlier.handle, self.handle))


class DeviceAllocation(_Owned):
    """See ``driver.Memory``."""

    def __init__(self, size: int) -> None:
        self._address = int(_checked(driver.cuMemAlloc, size))
        super().__init__(driver.cuMemFree, self._address)

    def __int__(self) -> int:
        return self._address


class _PageLocked(_Owned):
    """What a page-locked array is a view of."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        address = int(_checked(driver.cuMemHostAlloc, math.prod(shape) * dtype.itemsize, 0))
        super().__init__(driver.cuMemFreeHost, address)
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (address, False), "version": 3}


def mem_alloc(size: int) -> DeviceAllocation:
    """So many bytes on the GPU."""
    return DeviceAllocation(size)


def mem_get_info() -> tuple[int, int]:
    """Bytes of the GPU's memory that are free, and in all."""
    free, total = _checked(driver.cuMemGetInfo)
    return int(free), int(total)


def pagelocked_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Host memory that the GPU copies from and to by itself. ``.base.free()`` gives it back."""
    return np.asarray(_PageLocked(shape, np.dtype(dtype)))


def memcpy_htod_async(dest: Any, src: npt.NDArray[Any], stream: Stream) -> None:
    """Copy a contiguous array to the GPU, in a stream."""
    _checked(driver.cuMemcpyHtoDAsync, int(dest), _address(src), src.nbytes, stream.handle)


def memcpy_dtoh_async(dest: npt.NDArray[Any], src: Any, stream: Stream) -> None:
    """Copy from the GPU into a contiguous array, in a stream."""
    _checked(driver.cuMemcpyDtoHAsync, _address(dest), int(src), dest.nbytes, stream.handle)


def _address(array: npt.NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} and strides {array.strides} is not contiguous")
    return array.ctypes.data
