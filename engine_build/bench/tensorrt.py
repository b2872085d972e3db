"""TensorRT's half of the benchmark."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.graph import OUTPUT
from contract.plan import BatchShape
from engine_build.bench.cases import Inputs, Timed, as_batch, inputs
from engine_build.bench.records import System
from worker.runtime.driver import Memory
from worker.runtime.gpu_plan import Gpu, LoadedPlan, gpu_context
from worker.runtime.interface import Gathered
from worker.runtime.layout import TensorShape
from worker.runtime.microbatch import MicroBatch
from worker.runtime.trt import VERSION, trt


class _OnGpu(NamedTuple):
    """A batch on the GPU."""

    shapes: Mapping[str, TensorShape]
    addresses: Mapping[str, Memory]


class _Profiler(trt.IProfiler):  # type: ignore[misc]  # TensorRT has no types
    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.ms: dict[str, float] = defaultdict(float)

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT."""
        self.ms[re.sub(r"\d+", "n", layer_name)] += ms


@contextmanager
def tensorrt_bench(spec: EngineSpec, gpu: int) -> Iterator["TensorRTBench"]:
    """The engine's plan for this machine, loaded while the ``with`` block lasts.

    Args:
        spec: the engine.
        gpu: the GPU's number.

    Raises:
        UserError: there is no such GPU, or no plan that it can load.
    """
    with gpu_context(gpu) as current:
        plan = LoadedPlan(spec, current)
        try:
            yield TensorRTBench(spec, current, plan)
        finally:
            plan.close()


class TensorRTBench:
    """Times a loaded plan; ``tensorrt_bench`` makes it."""

    def __init__(self, spec: EngineSpec, gpu: Gpu, plan: LoadedPlan) -> None:
        self._spec, self._gpu, self._plan = spec, gpu, plan
        self.system = System("tensorrt", gpu.device.name(), f"tensorrt {VERSION}")

    def time(self, shape: BatchShape, runs: int) -> Timed:
        """Time one shape.

        Raises:
            UserError: no profile of the plan takes it at once.
        """
        layout, batches, cuda = self._plan.layout, inputs(self._spec, shape), self._gpu.cuda
        micro, on_gpu = self._upload(batches, shape)
        vectors = np.empty((layout.vectors(micro), self._spec.hidden), np.float32)
        output, stream = self._output(), self._plan.stream
        run = self._runner(micro, on_gpu, output)
        run(0)
        cuda.memcpy_dtoh_async(vectors, output, stream)
        stream.synchronize()
        for number in range(max(10, runs // 10)):
            run(number)
        events = [cuda.Event() for _ in range(runs + 1)]
        events[0].record(stream)
        for number in range(runs):
            run(number)
            events[number + 1].record(stream)
        stream.synchronize()
        milliseconds = [after.time_since(before) for before, after in itertools.pairwise(events)]
        lengths = as_batch(self._spec, batches[0]).lengths
        gathered = Gathered(self._spec, lengths)
        layout.gather(micro, vectors, lengths, gathered)
        return Timed(milliseconds, gathered.vectors)

    def layers(self, shape: BatchShape, runs: int) -> dict[str, float]:
        """Milliseconds of one run by layer, by TensorRT's profiler, which keeps layers from overlapping.

        Layers whose names differ in numbers alone, as those of the model's own layers do, are added up.

        Raises:
            UserError: no profile of the plan takes the shape at once.
        """
        micro, on_gpu = self._upload(inputs(self._spec, shape), shape)
        stream, profiler = self._plan.stream, _Profiler()
        run = self._runner(micro, on_gpu, self._output())
        run(0)
        stream.synchronize()
        self._plan.watch(profiler)
        run(0)
        stream.synchronize()
        profiler.ms.clear()
        for number in range(runs):
            run(number)
            stream.synchronize()
        return {name: ms / runs for name, ms in profiler.ms.items()}

    def _output(self) -> Memory:
        return self._gpu.cuda.mem_alloc(
            self._plan.layout.sizes()[1] * self._spec.hidden * np.dtype(np.float32).itemsize
        )

    def _runner(self, micro: MicroBatch, on_gpu: list[_OnGpu], output: Memory) -> Callable[[int], None]:
        """Enqueues run 0, 1, 2, …, each with the next of the batches."""

        def run(number: int) -> None:
            batch = on_gpu[number % len(on_gpu)]
            self._plan.enqueue(micro.profile, batch.shapes, {**batch.addresses, OUTPUT: output})

        return run

    def _upload(self, batches: list[Inputs], shape: BatchShape) -> tuple[MicroBatch, list[_OnGpu]]:
        """Batches on the GPU, each one micro-batch."""
        layout, uploaded = self._plan.layout, []
        for batch in (as_batch(self._spec, one) for one in batches):
            micros = layout.cut(batch.lengths)
            if len(micros) > 1:
                raise self._no_profile(shape)
            buffers = {name: np.zeros(layout.sizes()[0], np.int32) for name in layout.inputs}
            shapes = layout.fill(batch, micros[0], buffers)
            addresses = {name: self._copied(buffers[name][: math.prod(one)]) for name, one in shapes.items()}
            uploaded.append(_OnGpu(shapes, addresses))
        return micros[0], uploaded

    def _copied(self, array: npt.NDArray[np.int32]) -> Memory:
        """The array on the GPU."""
        memory = self._gpu.cuda.mem_alloc(array.nbytes)
        self._gpu.cuda.memcpy_htod_async(memory, array, self._plan.stream)
        self._plan.stream.synchronize()
        return memory

    def _no_profile(self, shape: BatchShape) -> UserError:
        plan = self._spec.plan_for(VERSION, self._gpu.sm)
        packed = f"--packed --profile {shape.rows}x{shape.tokens}"
        return UserError(
            f"no profile of engine {self._spec.name}'s plan takes {shape} at once",
            f"they take {', '.join(map(str, plan.profiles))}{' tokens in all' if plan.packed else ''}",
            f"time one of those, or build a plan with it: python -m engine_build plan --engine "
            f"{self._spec.name} {packed if plan.packed else f'--profile {shape}'}",
        )
