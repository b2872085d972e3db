"""A plan on a GPU: TensorRT and pycuda, and nothing of batches.

Whatever differs between TensorRT 8.6, 10 and 11 is asked of the library, never decided by its version number. Only
named tensors are used, which all of them have.
"""

import functools
import logging
from collections.abc import Mapping
from contextlib import ExitStack

import pycuda.driver as cuda
import tensorrt as trt

from contract.engine import OUTPUT, EngineSpec
from contract.errors import UserError
from contract.plan import PlanSpec
from worker.engine import EngineDead
from worker.layout import Shape, layout_of

log = logging.getLogger("embedmill.worker")


class TensorRTLog(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
    """TensorRT's own messages: warnings go to the log, errors are also kept for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)
            log.error("TensorRT: %s", message)
        elif severity == trt.ILogger.Severity.WARNING:
            log.debug("TensorRT: %s", message)

    def last(self) -> str:
        """What TensorRT complained of last; to be used in an exception."""
        said = "; ".join(self.errors[-3:]) or "TensorRT gave no reason"
        self.errors.clear()
        return said


LOG = TensorRTLog()
"""TensorRT takes one logger a process: the first that it is given."""


@functools.cache
def _primary_context(number: int) -> "tuple[cuda.Device, cuda.Context]":
    """A GPU's primary context, kept until the process ends: TensorRT has things in it that no call of ours frees, and
    TensorRT 8.6 crashes when it is used again after the context was released."""
    cuda.init()
    device = cuda.Device(number)
    return device, device.retain_primary_context()


def open_gpu(number: int, stack: ExitStack) -> int:
    """Make a GPU's primary context this thread's, until the stack closes.

    The primary context, because TensorRT uses the CUDA runtime, which uses that one.

    Args:
        number: the GPU's, from 0.
        stack: closed by the same thread.

    Returns:
        The GPU's compute capability, 90 for 9.0.

    Raises:
        UserError: there is no such GPU, or CUDA does not work.
    """
    try:
        device, context = _primary_context(number)
        context.push()
    except cuda.Error as error:
        raise UserError(
            f"GPU {number} cannot be used ({error})", "expected a GPU that nvidia-smi lists", "see nvidia-smi"
        ) from None
    stack.callback(context.pop)
    major, minor = device.compute_capability()
    return 10 * int(major) + int(minor)


class LoadedPlan:
    """A deserialized plan on the current CUDA context: one execution context for each profile.

    Args:
        spec: the engine.
        plan: the plan to load.

    Raises:
        UserError: the plan is not the recorded one, or this TensorRT does not take it.
    """

    def __init__(self, spec: EngineSpec, plan: PlanSpec) -> None:
        self.layout = layout_of(spec, plan)
        path = spec.check_plan(plan)
        if plan.packed:
            trt.init_libnvinfer_plugins(LOG, "")
        self._runtime = trt.Runtime(LOG)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UserError(f"TensorRT {trt.__version__} refuses {path} ({LOG.last()})", mend=spec.rebuild_plan)
        names = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}
        if names != {*self.layout.inputs, OUTPUT}:
            raise UserError(f"{path} has the tensors {', '.join(sorted(names))}", mend=spec.rebuild_plan)
        stream = cuda.Stream()
        # One for each profile: a change of profile has the next run set up everything again.
        self._contexts = []
        for profile in range(len(plan.profiles)):
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(profile, stream.handle):
                raise EngineDead(f"no execution context for {path}: {LOG.last()}")
            self._contexts.append(context)
        stream.synchronize()

    def enqueue(
        self,
        profile: int,
        shapes: Mapping[str, Shape],
        addresses: Mapping[str, "cuda.DeviceAllocation"],
        stream: "cuda.Stream",
    ) -> None:
        """Start a micro-batch.

        Args:
            profile: the profile's place.
            shapes: each input's.
            addresses: on the device, of each input, int32, and of ``OUTPUT``, float32.
            stream: to compute on.

        Raises:
            EngineDead: TensorRT did not take it.
        """
        context = self._contexts[profile]
        taken = all(context.set_input_shape(name, shape) for name, shape in shapes.items())
        taken = taken and all(context.set_tensor_address(name, int(address)) for name, address in addresses.items())
        if not (taken and context.execute_async_v3(stream.handle)):
            raise EngineDead(f"TensorRT did not compute a micro-batch of the shapes {shapes}: {LOG.last()}")

    def watch(self, profiler: "trt.IProfiler") -> None:
        """Have a profiler told of each layer's time from now on."""
        for context in self._contexts:
            context.profiler = profiler

    def close(self) -> None:
        """Free it, in the order in which TensorRT's objects depend on one another."""
        self._contexts.clear()
        self._engine = None
        self._runtime = None
