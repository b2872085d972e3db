"""``python -m engine_build tune``."""

import click
from rich.table import Table

from contract.engine import EngineSpec
from contract.engines import record_measurement
from contract.errors import UserError
from contract.tuned import Measurement
from engine_build.options import ENGINE, GPU, STDERR, STDOUT, engine_to_add_to

_EPILOG = """\b
Examples:
  python -m engine_build tune --engine bge-small
  python -m engine_build tune --engine bge-small --seconds 10
"""


@click.command(epilog=_EPILOG)
@ENGINE
@GPU
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Time each kind of rows for so long, at least.",
)
def tune(engine: str | None, gpu: int, seconds: float) -> None:
    """Measure every runtime that can compute the engine on this machine, and have workers take the fastest.

    Rows are short (mean 36 tokens), mixed (280) and long (512). What is measured on a GPU is kept in engine.json:
    workers on that kind of GPU then take the runtime that was fastest on mixed rows, if its vectors are those of FP32
    within the tolerance of its precision. Runtimes that live in different Pythons are measured one after the other.
    """
    from engine_build.tuning import measure, runtimes  # here: NumPy and the runtimes, of which --help needs none

    spec, chosen = engine_to_add_to(engine), []
    for runtime, why_not in runtimes(spec):
        if why_not:
            STDERR.print(f"{runtime.name} is left out: {why_not}", highlight=False)
        else:
            chosen.append(runtime)
    if not chosen:
        raise UserError("no runtime can compute the engine here", hint="see the lines above")
    found = []
    with STDERR.status("starting") as status:
        for one in measure(spec, chosen, gpu=gpu, seconds=seconds, step=lambda text: status.update(f"{text} …")):
            found.append(one)
            if one.gpu:
                spec = record_measurement(spec, one)
    STDOUT.print(_table(spec, found))
    STDOUT.print(_kept(found), highlight=False)


def _kept(found: list[Measurement]) -> str:
    if found[0].gpu:
        return "Kept in engine.json: workers on this kind of GPU take the fastest of those within tolerance."
    return "Not kept: workers choose by measurement only between runtimes on a GPU whose name the driver gives."


def _table(spec: EngineSpec, found: list[Measurement]) -> Table:
    title = f"Engine {spec.name}{f' on {found[0].gpu}' if found[0].gpu else ''}: tokens/s"
    table = Table("runtime", "short", "mixed", "long", "lowest cosine", "within tolerance", title=title)
    for one in found:
        speeds = [f"{one.tokens_per_second[kind]:,.0f}" for kind in ("short", "mixed", "long")]
        table.add_row(one.version, *speeds, f"{one.min_cosine:.7f}", "yes" if one.within_tolerance else "no")
    return table
