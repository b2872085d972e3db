"""A plan on a GPU: TensorRT and CUDA's driver, and nothing of batches.

Only named tensors are used, which every TensorRT has from 8.6 on.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.graph import OUTPUT
from worker.runtime.driver import Context, CudaDriver, Device, Memory, cuda_driver
from worker.runtime.interface import EngineDead
from worker.runtime.layout import TensorShape, layout_of
from worker.runtime.trt import LOG, VERSION, trt


class Gpu(NamedTuple):
    """A GPU whose primary context is this thread's current one."""

    number: int
    cuda: CudaDriver
    device: Device
    sm: int
    """Compute capability, 90 for 9.0."""

    @property
    def multiprocessors(self) -> int:
        return int(self.device.get_attribute(self.cuda.device_attribute.MULTIPROCESSOR_COUNT))

    def too_little_memory(self, spec: EngineSpec, reason: object) -> UserError:
        """The error for an engine that does not fit into what is free now."""
        free, total = self.cuda.mem_get_info()
        return UserError(
            f"GPU {self.number} has too little free memory for engine {spec.name}: {free / 2**20:,.0f} of "
            f"{total / 2**20:,.0f} MiB ({reason})",
            hint="end what else uses it (nvidia-smi), or start the worker with fewer children: -c 1",
        )


@functools.cache
def _primary_context(cuda: CudaDriver, number: int) -> tuple[Device, Context]:
    """A GPU's primary context, kept until the process ends: TensorRT has things in it that no call of ours frees, and
    TensorRT 8.6 crashes when it is used again after the context was released."""
    cuda.init()
    device = cuda.Device(number)
    return device, device.retain_primary_context()


@contextmanager
def gpu_context(number: int) -> Iterator[Gpu]:
    """Make a GPU's primary context this thread's while the ``with`` block lasts.

    The primary context, because TensorRT uses the CUDA runtime, which uses that one.

    Args:
        number: the GPU's, from 0.

    Raises:
        UserError: there is no such GPU, it has no memory left for a context, or CUDA does not work.
    """
    cuda = cuda_driver()
    try:
        device, context = _primary_context(cuda, number)
        context.push()
    except cuda.Error as error:
        raise UserError(
            f"GPU {number} cannot be used ({error})", "expected a GPU that nvidia-smi lists", "see nvidia-smi"
        ) from None
    try:
        major, minor = device.compute_capability()
        yield Gpu(number, cuda, device, 10 * int(major) + int(minor))
    finally:
        context.pop()


class LoadedPlan:
    """An engine's plan for this machine, deserialized on a GPU: one execution context for each profile.

    The contexts share one block of memory for what is computed between the layers, so only one of them may compute at a
    time: all do on ``stream``, one after another.

    Args:
        spec: the engine.
        gpu: whose context is current.

    Raises:
        UserError: there is no plan for this machine, it is not the recorded one, this TensorRT does not take it, or the
            GPU has too little free memory.
        EngineDead: TensorRT makes no execution context for another reason.
    """

    def __init__(self, spec: EngineSpec, gpu: Gpu) -> None:
        plan = spec.plan_for(VERSION, gpu.sm)
        self.layout = layout_of(spec, plan)
        path = spec.check_plan(plan)
        serialized = _read(path, spec, gpu)
        if plan.packed:
            trt.init_libnvinfer_plugins(LOG, "")
        # After an error, too, all goes while the CUDA context is current, in the order in which TensorRT's objects
        # depend on one another. So only ``self`` refers to them: a local variable would live on in the traceback.
        with ExitStack() as taken:
            self.stream = gpu.cuda.Stream()
            taken.callback(delattr, self, "stream")
            self._runtime = trt.Runtime(LOG)
            taken.callback(delattr, self, "_runtime")
            self.engine = self._runtime.deserialize_cuda_engine(serialized)
            taken.callback(delattr, self, "engine")
            self._check_engine(path, spec, gpu)
            self._size = memory_size(self.engine)
            try:
                self._memory = gpu.cuda.mem_alloc(self._size)
            except gpu.cuda.MemoryError as error:
                raise gpu.too_little_memory(spec, error) from None
            taken.callback(self._memory.free)
            self._contexts: list[trt.IExecutionContext] = []
            taken.callback(self._contexts.clear)
            # One for each profile: a change of profile has the next run set up everything again.
            for profile in range(len(plan.profiles)):
                self._contexts.append(_context_without_memory(self.engine))
                self._set_up(profile, path, spec, gpu)
            self.stream.synchronize()
            self._taken = taken.pop_all()

    def _check_engine(self, path: Path, spec: EngineSpec, gpu: Gpu) -> None:
        if self.engine is None:
            reason = LOG.last()
            if _is_out_of_memory(reason):
                raise gpu.too_little_memory(spec, reason)
            raise UserError(f"TensorRT {VERSION} refuses {path} ({reason})", hint=spec.rebuild_plan)
        names = {self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)}
        if names != {*self.layout.inputs, OUTPUT}:
            raise UserError(f"{path} has the tensors {', '.join(sorted(names))}", hint=spec.rebuild_plan)

    def _set_up(self, profile: int, path: Path, spec: EngineSpec, gpu: Gpu) -> None:
        """Give the profile's context the memory that all share, and its profile."""
        if self._contexts[profile] is not None:
            if hasattr(self._contexts[profile], "set_device_memory"):
                self._contexts[profile].set_device_memory(int(self._memory), self._size)
            else:  # 8.6
                self._contexts[profile].device_memory = int(self._memory)
            if self._contexts[profile].set_optimization_profile_async(profile, self.stream.handle):
                return
        reason = LOG.last()
        if _is_out_of_memory(reason):
            raise gpu.too_little_memory(spec, reason)
        raise EngineDead(f"no execution context for {path}: {reason}")

    def enqueue(self, profile: int, shapes: Mapping[str, TensorShape], addresses: Mapping[str, Memory]) -> None:
        """Start a micro-batch on ``stream``.

        Args:
            profile: the profile's index.
            shapes: each input's.
            addresses: on the device, of each input, int32, and of ``OUTPUT``, float32.

        Raises:
            EngineDead: TensorRT did not take it.
        """
        context = self._contexts[profile]
        accepted = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        accepted = accepted and all(
            context.set_tensor_address(name, int(address)) for name, address in addresses.items()
        )
        if not (accepted and context.execute_async_v3(self.stream.handle)):
            raise EngineDead(f"TensorRT did not compute a micro-batch of the shapes {shapes}: {LOG.last()}")

    def watch(self, profiler: "trt.IProfiler") -> None:
        """Report each layer's time to a profiler from now on."""
        for context in self._contexts:
            context.profiler = profiler

    def close(self) -> None:
        """Free it."""
        self._taken.close()


def memory_size(engine: "trt.ICudaEngine") -> int:
    """Bytes that an execution context needs for what is computed between the layers, with any of the profiles."""
    size = engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
    return max(int(size), 256)  # CUDA allocates no empty block


def _context_without_memory(engine: "trt.ICudaEngine") -> "trt.IExecutionContext | None":
    if hasattr(trt, "ExecutionContextAllocationStrategy"):
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()  # 8.6


def _read(path: Path, spec: EngineSpec, gpu: Gpu) -> bytes:
    """A plan that may fit into the GPU's memory. Asked first: what TensorRT does without memory differs."""
    serialized = path.read_bytes()
    if len(serialized) > gpu.cuda.mem_get_info()[0]:
        raise gpu.too_little_memory(spec, f"its plan alone takes {len(serialized) / 2**20:,.0f} MiB")
    return serialized


def _is_out_of_memory(reason: str) -> bool:
    """Whether TensorRT's errors name it: ``Cuda Runtime (out of memory)``, ``Error Code 2: OutOfMemory``. It has no
    other way to tell."""
    return re.search(r"out ?of ?memory", reason, re.IGNORECASE) is not None
