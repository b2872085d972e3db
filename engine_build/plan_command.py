"""``python -m engine_build plan``."""

import re
from typing import TypeVar

import click
from click.core import ParameterSource
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.plan import PackedProfile, PaddedProfile, PlanSpec
from engine_build.options import ENGINE, GPU, STDERR, STDOUT, engine_to_add_to
from engine_build.profiles import PlanOptions
from worker.runtime.gpus import lacking, tensorrt_package

_GIB = 2**30

_Profile = TypeVar("_Profile", PaddedProfile, PackedProfile)


class _CapabilityType(click.ParamType[int]):
    """A compute capability such as ``8.6``, as the number 86."""

    name = "MAJOR.MINOR"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not re.fullmatch(r"[1-9]\d?\.\d", str(value)):
            self.fail(f"{value!r}: expected a compute capability, such as 8.6", param, ctx)
        return int(str(value).replace(".", ""))


@click.command()
@ENGINE
@click.option(
    "--profile",
    "profiles",
    metavar="ROWSxLENGTH",
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
@GPU
@click.option(
    "--compute-capability",
    "sm",
    type=_CapabilityType(),
    help="Build ahead for GPUs of this compute capability, such as 8.6, on a machine that needs no GPU. It takes "
    "TensorRT-RTX.  [default: that of this machine's GPU]",
)
@click.pass_context
def plan(
    context: click.Context,
    engine: str | None,
    profiles: tuple[str, ...],
    packed: bool | None,
    level: int,
    workspace: float,
    gpu: int,
    sm: int | None,
) -> None:
    """Build the engine's TensorRT plan for this machine's TensorRT and GPU; PyTorch is not needed.

    A plan runs on the TensorRT version and the compute capability that it was built with, nowhere else. One that is
    there for both is replaced. What the builder timed is kept beside the plan and makes the next build faster.
    TensorRT-RTX, which is used where TensorRT is not installed, times nothing and can build ahead.
    """
    if sm is not None and context.get_parameter_source("gpu") is not ParameterSource.DEFAULT:
        raise click.UsageError("--gpu builds on a GPU, and --compute-capability without one: give one of them", context)
    options = PlanOptions(
        packed=packed,
        padded_profiles=() if packed else _parsed(PaddedProfile, profiles),
        packed_profiles=_parsed(PackedProfile, profiles) if packed else (),
        level=level,
        workspace=int(workspace * _GIB),
    )
    if sm is not None and not tensorrt_package():
        raise UserError(
            "this machine has no Python package tensorrt_rtx",
            "--compute-capability builds with TensorRT-RTX",
            "install it: pip install 'embedmill[rtx]'",
        )
    if sm is None and lacking():
        raise no_gpu(
            "run this on a machine that has one, with embedmill[gpu] installed; or build ahead with embedmill[rtx]: "
            "--compute-capability 8.6"
        )
    build_plan(engine_to_add_to(engine), options, gpu, sm)


def _parsed(kind: type[_Profile], texts: tuple[str, ...]) -> tuple[_Profile, ...]:
    try:
        return tuple(kind.parse(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--profile'") from None


def build_plan(spec: EngineSpec, options: PlanOptions, gpu: int, sm: int | None = None) -> None:
    """Build a plan on a GPU, or ahead for a compute capability, and show how far it is and what it is."""
    from engine_build.build_plan import add_plan, add_plan_ahead  # here: few machines have TensorRT

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=STDERR, transient=True) as bar:
        # TensorRT 8.6 does not say how far it is: the bar then only shows that time passes.
        task = bar.add_task(f"building the plan of {spec.name}", total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        if sm is None:
            now = add_plan(spec, options, gpu=gpu, step=step)
        else:
            now = add_plan_ahead(spec, options, sm=sm, step=step)
    STDOUT.print(_table(now, now.plans[-1]))


def no_gpu(hint: str) -> UserError:
    """The error for a machine that cannot build a plan."""
    return UserError(f"this machine has {lacking()}", "a plan is built on the GPU that will run it", hint)


def _table(spec: EngineSpec, built: PlanSpec) -> Table:
    table = Table("plan", built.file, title=f"Plan of engine {spec.name} built", title_justify="left")
    table.add_row("runs on", f"TensorRT {built.tensorrt}, SM {built.sm}")
    table.add_row("built on", f"{built.gpu or 'no GPU'}, optimization level {built.optimization_level}")
    table.add_row("profiles", ", ".join(map(str, built.profiles)))
    table.add_row("rows", "end to end" if built.packed else "padded to the longest one's length")
    table.add_row("precision", built.precision)
    table.add_row("size", f"{(spec.folder / built.file).stat().st_size / 1e6:,.0f} MB")
    table.add_row("seconds", f"{built.build_seconds:.1f}")
    return table
