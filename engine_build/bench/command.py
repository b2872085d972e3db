"""``python -m engine_build bench``."""

from pathlib import Path

import click

from contract.engines import load_engine
from contract.errors import UserError
from contract.plan import BatchShape
from engine_build.bench.measure import Cases, available, measure
from engine_build.bench.records import SYSTEMS, add_to
from engine_build.bench.table import tables
from engine_build.options import ENGINE, GPU, STDERR, STDOUT, ShapeType
from worker.runtime.gpus import lacking

_SHAPES = (BatchShape(1, 512), BatchShape(32, 512), BatchShape(128, 128))


@click.command()
@ENGINE
@click.option(
    "--shape",
    "shapes",
    type=ShapeType(),
    multiple=True,
    help="Rows and length of a batch; may be given several times.  [default: 1x512, 32x512 and 128x128, or as long as "
    "the engine takes]",
)
@click.option(
    "--system",
    "systems",
    type=click.Choice(SYSTEMS),
    multiple=True,
    help="What to time; may be given several times.  [default: all that can run here]",
)
@click.option("--runs", type=click.IntRange(min=1), help="Of each shape.  [default: 1,000 for one row, else 100]")
@click.option(
    "--reference",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for PyTorch FP32's vectors: written where PyTorch is timed, read where only TensorRT is.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File to add the records to."
)
@click.option(
    "--chart",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Picture to draw of the file's records, or of these: .svg, .png or .pdf.",
)
@GPU
def bench(
    engine: str | None,
    shapes: tuple[BatchShape, ...],
    systems: tuple[str, ...],
    runs: int | None,
    reference: Path | None,
    json_file: Path | None,
    chart: Path | None,
    gpu: int,
) -> None:
    """Time TensorRT beside PyTorch on random batches, and compare their vectors with PyTorch FP32's.

    \b
    Where PyTorch and TensorRT are in different Pythons, each runs its half:
      python -m engine_build bench --system torch-fp32 --system torch-fp16 --reference ref.npz --json bench.json
      python -m engine_build bench --system tensorrt --reference ref.npz --json bench.json
    """
    spec = load_engine(engine)
    chosen = systems or tuple(available())
    if not chosen:
        raise UserError(f"this machine has {lacking()}, and no PyTorch for a GPU", "expected a GPU to time")
    if "tensorrt" in chosen and lacking():
        raise UserError(f"this machine has {lacking()}", "expected to time TensorRT", "leave out --system tensorrt")
    defaults = [BatchShape(shape.rows, min(shape.length, spec.max_length)) for shape in _SHAPES]
    cases = Cases(chosen, shapes or defaults, runs, gpu)
    with STDERR.status("starting") as status:
        records = measure(spec, cases, reference_file=reference, step=lambda text: status.update(f"{text} …"))
    every = add_to(json_file, records) if json_file else records
    for table in tables(every):
        STDOUT.print(table)
    if chart:
        from engine_build.bench.chart import draw  # here: matplotlib takes a second to import

        draw(every, chart)
        STDOUT.print(f"Chart: {chart}", highlight=False, soft_wrap=True)
