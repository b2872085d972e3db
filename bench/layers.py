"""``python -m bench.layers``: which of a plan's layers hold it, as TensorRT's own profiler times them."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contract.engines import load_engine
from contract.plan import BatchShape
from engine_build.bench.tensorrt import tensorrt_bench
from engine_build.options import ShapeType

_EPILOG = """\b
Example:
  python -m bench.layers --engine bert-base --shape 32x512

Layers that differ in a number alone, as those of the model's own layers do, are one line. A profiler keeps layers from
overlapping: shares are to be trusted, the sum is a little more than a run takes.
"""


@click.command(epilog=_EPILOG)
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option("--shape", type=ShapeType(), default="32x512", show_default=True, help="What to compute.")
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Means of so many.")
@click.option("--gpu", default=0, show_default=True, help="The GPU's number.")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Where the figures go.")
def main(engine: str | None, shape: BatchShape, runs: int, gpu: int, target: Path | None) -> None:
    """Time the layers of an engine's plan."""
    spec = load_engine(engine)
    with tensorrt_bench(spec, gpu) as bench:
        ms = bench.layers(shape, runs)
    whole = sum(ms.values())
    table = Table("ms", "share", "layers", title=f"{spec.name}, {shape}: {whole:.2f} ms")
    for name, took in sorted(ms.items(), key=lambda item: -item[1])[:20]:
        short = escape(name if len(name) < 150 else f"{name[:147]}…")
        table.add_row(f"{took:.3f}", f"{100 * took / whole:.1f} %", short)
    Console(width=200).print(table)
    if target:
        target.write_text(json.dumps(ms, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m bench.layers")
