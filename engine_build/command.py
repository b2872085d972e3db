"""``python -m engine_build``: the commands."""

import time
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contract.engine import EngineSpec, Pooling, load_engine
from contract.entry import importing
from contract.errors import UserError
from contract.plan import PlanSpec, Profile
from contract.words import count
from engine_build.bench import SYSTEMS, Shape, add_to, available, measure
from engine_build.bench_table import tables
from worker.gpus import lacking

_EPILOG = """\b
Examples:
  python -m engine_build --model bert-base-cased
  python -m engine_build --model ./my-model --pooling cls --normalize
  python -m engine_build --model BAAI/bge-small-en-v1.5 --name bge-small --no-plan
  python -m engine_build plan --engine bge-small
  python -m engine_build bench --engine bge-small

The engine lands in engines/<name>/ (EMBEDMILL_ENGINES). Next: python -m producer --dataset imdb
"""

_GIB = 2**30


class ProfileType(click.ParamType[Profile]):
    """``ROWSxLENGTH``, either of them a number or a range."""

    name = "ROWSxLENGTH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Profile:
        try:
            return Profile.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ShapeType(ProfileType):
    """``ROWSxLENGTH``, both numbers."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Shape:  # type: ignore[override]
        profile = super().convert(value, param, ctx)
        if (profile.least_rows, profile.shortest) != (profile.rows, profile.length):
            self.fail(f"{value} is a range: expected one shape, such as 32x512", param, ctx)
        return Shape(profile.rows, profile.length)


class LengthType(click.ParamType["int | Literal['model']"]):
    """A number of tokens, or ``model``."""

    name = "TOKENS|model"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["model"]:
        if value == "model":
            return "model"
        try:
            return int(str(value))
        except ValueError:
            self.fail(f"{value!r}: expected a number of tokens, or model", param, ctx)


@click.group(epilog=_EPILOG, invoke_without_command=True)
@click.option("--model", help="Hub id, or a local folder that sentence-transformers or transformers wrote.")
@click.option("--name", help="The engine's name.  [default: the model's]")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "tokens"]),
    help="One vector a row (mean, cls), or the last hidden state of each of its tokens (tokens).  "
    "[default: the model's own, which for a plain transformers folder is mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale vectors to norm 1.  [default: the model's own]",
)
@click.option(
    "--max-length",
    type=LengthType(),
    help="Tokens after which a row is truncated; model: where sentence-transformers truncates.  [default: 512]",
)
@click.option(
    "--plan/--no-plan",
    "plan_too",
    default=None,
    help="Build a TensorRT plan as well.  [default: if there is a GPU with TensorRT and pycuda]",
)
@click.pass_context
def main(
    context: click.Context,
    model: str | None,
    name: str | None,
    revision: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    max_length: int | Literal["model"] | None,
    plan_too: bool | None,
) -> None:
    """Turn a BERT-family encoder into an engine: PyTorch to ONNX, pooling and normalization in the graph.

    The model is opened by sentence-transformers: its own pooling, further modules, prompts and truncate_dim are kept,
    so its vectors stay the ones its users know. Right after the export the engine is compared with encode().
    """
    if context.invoked_subcommand:
        return
    if model is None:
        raise click.UsageError("Missing option '--model'.", context)
    if plan_too and lacking():
        raise _no_plan(f"add it where there is one: python -m engine_build plan --engine {name or 'NAME'}")
    with importing():
        from engine_build.build import build  # here: PyTorch takes seconds to import, and --help needs none of it

    began = time.monotonic()
    with _STDERR.status("starting") as status:
        spec, comparisons = build(
            model,
            name=name,
            revision=revision,
            pooling=pooling,
            normalize=normalize,
            max_length=max_length,
            say=lambda line: _STDERR.print(line, highlight=False),
            step=lambda text: status.update(f"{text} …"),
        )
    if comparisons:
        table = Table("engine", spec.name, title="Engine built", title_justify="left")
        table.add_row("folder", str(spec.folder))
        table.add_row("model", f"{spec.model} ({spec.architecture}, {spec.encoder_width} wide)")
        table.add_row("vectors", _vectors(spec))
        table.add_row("truncation", spec.truncation)
        table.add_row("prefix", repr(spec.prefix) if spec.prefix else "none")
        table.add_row("fingerprint", spec.fingerprint)
        for precision, comparison in comparisons.items():
            table.add_row(f"ONNX {precision.upper()} vs encode()", str(comparison))
        table.add_row("seconds", f"{time.monotonic() - began:.1f}")
        _STDOUT.print(table)
    else:
        _STDOUT.print(f"{spec.folder} is this engine already (fingerprint {spec.fingerprint}).", highlight=False)
    if plan_too or (plan_too is None and not lacking() and not spec.plans):
        _build_plan(spec, (), packed=None, level=3, workspace=4, gpu=0)
    _STDOUT.print("Next: python -m producer --dataset imdb", highlight=False)


_ENGINE = click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
_GPU = click.option("--gpu", type=click.IntRange(min=0), default=0, show_default=True, help="The GPU's number.")


@main.command()
@_ENGINE
@click.option(
    "--profile",
    "profiles",
    type=ProfileType(),
    multiple=True,
    help="Shapes that the plan takes, such as 32x512, or ranges, such as 1-32x257-512; may be given several times. "
    "With --packed the rows at most and the tokens of all rows together, such as 1056x33792. Each takes about as "
    "long to build as the last.  [default: packed five sizes, up to 256 tokens for each of the GPU's "
    "multiprocessors; padded up to 16,384 tokens, for each doubling of the length]",
)
@click.option(
    "--packed/--padded",
    default=None,
    help="Rows end to end, or each padded to the longest one's length.  [default: packed on TensorRT 8.6, if no "
    "--profile is given and the model's attention heads are 64 wide]",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="The builder's optimization level: higher ones try more and take longer.",
)
@click.option(
    "--workspace",
    type=click.FloatRange(min=0, min_open=True),
    default=4,
    show_default=True,
    help="GiB of GPU memory that a kernel may use for itself.",
)
@_GPU
def plan(
    engine: str | None, profiles: tuple[Profile, ...], packed: bool | None, level: int, workspace: float, gpu: int
) -> None:
    """Build the engine's TensorRT plan for this machine's TensorRT and GPU; PyTorch is not needed.

    A plan runs on the TensorRT version and the compute capability that it was built with, nowhere else. One that is
    there for both is replaced. What the builder timed is kept beside the plan and makes the next build faster.
    """
    if lacking():
        raise _no_plan("run this on a machine that has one, with embedmill[gpu] installed")
    _build_plan(load_engine(engine), profiles, packed=packed, level=level, workspace=workspace, gpu=gpu)


@main.command()
@_ENGINE
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
@_GPU
def bench(
    engine: str | None,
    shapes: tuple[Shape, ...],
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
    defaults = [Shape(rows, min(length, spec.max_length)) for rows, length in ((1, 512), (32, 512), (128, 128))]
    with _STDERR.status("starting") as status:
        records = measure(
            spec,
            chosen,
            shapes or defaults,
            runs=runs,
            gpu=gpu,
            reference=reference,
            step=lambda text: status.update(f"{text} …"),
        )
    every = add_to(json_file, records) if json_file else records
    for table in tables(every):
        _STDOUT.print(table)
    if chart:
        from engine_build.chart import draw  # here: matplotlib takes a second to import

        draw(every, chart)
        _STDOUT.print(f"Chart: {chart}", highlight=False, soft_wrap=True)


def _build_plan(
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    *,
    packed: bool | None,
    level: int,
    workspace: float,
    gpu: int,
) -> None:
    from engine_build.plan import add_plan  # here: only a GPU machine has TensorRT and pycuda

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_STDERR, transient=True) as bar:
        # TensorRT 8.6 does not say how far it is: the bar then only shows that time passes.
        task = bar.add_task(f"building the plan of {spec.name}", total=None)
        now = add_plan(
            spec,
            profiles=profiles or None,
            packed=packed,
            level=level,
            workspace=int(workspace * _GIB),
            gpu=gpu,
            step=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    _STDOUT.print(_plan_table(now, now.plans[-1]))


def _plan_table(spec: EngineSpec, built: PlanSpec) -> Table:
    table = Table("plan", built.file, title=f"Plan of engine {spec.name} built", title_justify="left")
    table.add_row("runs on", f"TensorRT {built.tensorrt}, SM {built.sm}")
    table.add_row("built on", f"{built.gpu}, optimization level {built.optimization_level}")
    table.add_row("profiles", ", ".join(map(str, built.profiles)))
    table.add_row("rows", "end to end" if built.packed else "padded to the longest one's length")
    table.add_row("precision", built.precision)
    table.add_row("size", f"{(spec.folder / built.file).stat().st_size / 1e6:,.0f} MB")
    table.add_row("seconds", f"{built.build_seconds:.1f}")
    return table


def _vectors(spec: EngineSpec) -> str:
    cut = f", the first {count(spec.truncate_dim, 'element')}" if spec.truncate_dim else ""
    return f"{spec.hidden} wide, pooling {spec.pooling}, {'norm 1' if spec.normalize else 'not normalized'}{cut}"


def _no_plan(mend: str) -> UserError:
    return UserError(f"this machine has {lacking()}", "a plan is built on the GPU that will run it", mend)


_STDOUT, _STDERR = Console(markup=False), Console(stderr=True, markup=False)
