"""TensorRT's half of the benchmark."""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
import pycuda.driver as cuda
import tensorrt as trt

from contract.engine import OUTPUT, EngineSpec
from contract.errors import UserError
from engine_build.bench import Inputs, Shape, Timed, as_batch, inputs
from worker.engine import Gathered
from worker.layout import Shape as TensorShape
from worker.microbatch import MicroBatch
from worker.plan import LoadedPlan, open_gpu

Fed = tuple[Mapping[str, TensorShape], dict[str, "cuda.DeviceAllocation"]]
"""Shapes and device addresses of a plan's inputs."""


class _Profiler(trt.IProfiler):  # type: ignore[misc]  # TensorRT has no types
    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.ms: dict[str, float] = defaultdict(float)

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT."""
        self.ms[re.sub(r"\d+", "n", layer_name)] += ms


class TensorRTBench:
    """The engine's plan for this machine, loaded while the ``with`` block lasts.

    Args:
        spec: the engine.
        gpu: the GPU's number.
    """

    def __init__(self, spec: EngineSpec, gpu: int) -> None:
        self._spec, self._number, self._stack = spec, gpu, ExitStack()
        self.version = f"tensorrt {trt.__version__}"
        self.gpu = ""
        """The GPU's name."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._sm = open_gpu(self._number, stack)
            self.gpu = cuda.Device(self._number).name()
            self._plan = LoadedPlan(self._spec, self._spec.plan_for(trt.__version__, self._sm))
            stack.callback(self._plan.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def time(self, shape: Shape, runs: int) -> Timed:
        """Time one shape.

        Raises:
            UserError: no profile of the plan takes it at once.
        """
        spec, layout = self._spec, self._plan.layout
        batches = inputs(spec, shape)
        micro, fed = self._fed(batches, shape)
        vectors = np.empty((layout.vectors(micro), spec.hidden), np.float32)
        output = cuda.mem_alloc(max(layout.sizes()[1] * spec.hidden * 4, vectors.nbytes))
        stream = cuda.Stream()

        def run(turn: int) -> None:
            shapes, addresses = fed[turn % len(fed)]
            self._plan.enqueue(micro.profile, shapes, addresses | {OUTPUT: output}, stream)

        run(0)
        stream.synchronize()
        cuda.memcpy_dtoh(vectors, output)
        for turn in range(max(10, runs // 10)):
            run(turn)
        events = [cuda.Event() for _ in range(runs + 1)]
        events[0].record(stream)
        for turn in range(runs):
            run(turn)
            events[turn + 1].record(stream)
        stream.synchronize()
        milliseconds = [after.time_since(before) for before, after in itertools.pairwise(events)]
        gathered = Gathered(spec, as_batch(spec, batches[0]).lengths)
        layout.gather(micro, vectors, as_batch(spec, batches[0]).lengths, gathered)
        return Timed(milliseconds, gathered.vectors)

    def layers(self, shape: Shape, runs: int) -> dict[str, float]:
        """Milliseconds of one run by layer, as TensorRT's profiler tells them, which keeps layers from overlapping.

        Layers whose names differ in numbers alone, as those of the model's own layers do, are added up.

        Raises:
            UserError: no profile of the plan takes the shape at once.
        """
        micro, fed = self._fed(inputs(self._spec, shape), shape)
        output = cuda.mem_alloc(self._plan.layout.sizes()[1] * self._spec.hidden * 4)
        stream, profiler = cuda.Stream(), _Profiler()

        def run(turn: int) -> None:
            shapes, addresses = fed[turn % len(fed)]
            self._plan.enqueue(micro.profile, shapes, addresses | {OUTPUT: output}, stream)
            stream.synchronize()

        run(0)
        self._plan.watch(profiler)
        run(0)
        profiler.ms.clear()
        for turn in range(runs):
            run(turn)
        return {name: ms / runs for name, ms in profiler.ms.items()}

    def _fed(self, batches: list[Inputs], shape: Shape) -> tuple[MicroBatch, list[Fed]]:
        """Batches on the GPU, each one micro-batch."""
        layout, fed = self._plan.layout, []
        for batch in batches:
            micros = layout.cut(as_batch(self._spec, batch).lengths)
            if len(micros) > 1:
                plan = self._spec.plan_for(trt.__version__, self._sm)
                packed = f"--packed --profile {shape.rows}x{shape.rows * shape.length}"
                raise UserError(
                    f"no profile of engine {self._spec.name}'s plan takes {shape} at once",
                    f"they take {', '.join(map(str, plan.profiles))}{' tokens in all' if plan.packed else ''}",
                    f"time one of those, or build a plan with it: python -m engine_build plan --engine "
                    f"{self._spec.name} {packed if plan.packed else f'--profile {shape}'}",
                )
            buffers = {name: np.zeros(layout.sizes()[0], np.int32) for name in layout.inputs}
            shapes = layout.fill(as_batch(self._spec, batch), micros[0], buffers)
            addresses = {name: cuda.to_device(buffers[name][: math.prod(shape)]) for name, shape in shapes.items()}
            fed.append((shapes, addresses))
        return micros[0], fed
