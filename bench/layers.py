"""``python -m bench.layers``: which of a plan's layers hold it, as TensorRT's own profiler times them."""

import json
import math
import re
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import pycuda.driver as cuda
import tensorrt as trt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contract.engine import OUTPUT, EngineSpec, load_engine
from contract.errors import UserError
from engine_build.bench import Shape, as_batch, inputs
from worker.plan import LoadedPlan, open_gpu

_EPILOG = """\b
Example:
  python -m bench.layers --engine bert-base --shape 32x512

Layers that differ in a number alone, as those of the model's own layers do, are one line. A profiler keeps layers from
overlapping: shares are to be trusted, the sum is a little more than a run takes.
"""


class _Profiler(trt.IProfiler):  # type: ignore[misc]  # TensorRT has no types
    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.ms: dict[str, float] = defaultdict(float)

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT."""
        self.ms[re.sub(r"\d+", "n", layer_name)] += ms


@click.command(epilog=_EPILOG)
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option("--shape", default="32x512", show_default=True, help="ROWSxLENGTH.")
@click.option("--runs", default=20, show_default=True)
@click.option("--gpu", default=0, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Where the figures go.")
def main(engine: str | None, shape: str, runs: int, gpu: int, target: Path | None) -> None:
    """Time the layers of an engine's plan."""
    spec, (rows, length) = load_engine(engine), map(int, shape.split("x"))
    ms = _timed(spec, Shape(rows, length), runs, gpu)
    whole = sum(ms.values())
    table = Table("ms", "share", "layers", title=f"{spec.name}, {shape}: {whole:.2f} ms")
    for name, took in sorted(ms.items(), key=lambda item: -item[1])[:20]:
        table.add_row(
            f"{took:.3f}", f"{100 * took / whole:.1f} %", escape(name if len(name) < 150 else f"{name[:147]}…")
        )
    Console(width=200).print(table)
    if target:
        target.write_text(json.dumps(ms, indent=2) + "\n", encoding="utf-8")


def _timed(spec: EngineSpec, shape: Shape, runs: int, gpu: int) -> dict[str, float]:
    """Milliseconds of a run, by layer."""
    with ExitStack() as stack:
        sm = open_gpu(gpu, stack)
        plan = LoadedPlan(spec, spec.plan_for(trt.__version__, sm))
        stack.callback(plan.close)
        batch = as_batch(spec, inputs(spec, shape)[0])
        first, *more = plan.layout.cut(batch.lengths)
        if more:
            raise UserError(f"no profile of engine {spec.name}'s plan takes {shape} at once")
        buffers = {name: np.zeros(plan.layout.sizes()[0], np.int32) for name in plan.layout.inputs}
        shapes = plan.layout.fill(batch, first, buffers)
        addresses = {name: cuda.to_device(buffers[name][: math.prod(size)]) for name, size in shapes.items()}
        addresses[OUTPUT] = cuda.mem_alloc(plan.layout.sizes()[1] * spec.hidden * 4)
        stream, profiler = cuda.Stream(), _Profiler()

        def run() -> None:
            plan.enqueue(first.profile, shapes, addresses, stream)
            stream.synchronize()

        run()
        plan.watch(profiler)
        run()
        profiler.ms.clear()
        for _ in range(runs):
            run()
        return {name: ms / runs for name, ms in profiler.ms.items()}


if __name__ == "__main__":
    main(prog_name="python -m bench.layers")
