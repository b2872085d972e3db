"""``python -m engine_build compile``."""

import click
from rich.table import Table

from contract.errors import UserError
from contract.tuned import CompiledSpec
from engine_build.options import ENGINE, GPU, STDERR, STDOUT, engine_to_add_to
from worker.runtime.gpus import torch_lacking

_EPILOG = """\b
Example:
  python -m engine_build compile --engine bge-small

What was compiled lies in engines/<name>/compiled/ and serves every machine with the same PyTorch and kind of GPU.
"""


@click.command("compile", epilog=_EPILOG)
@ENGINE
@GPU
def compile_(engine: str | None, gpu: int) -> None:
    """Compile the engine for this machine's PyTorch and GPU, so that a worker need not.

    A worker on another machine with the same version of PyTorch and compute capability loads it in seconds. Without it
    each worker compiles for itself when it starts, which takes about a minute.
    """
    if lacks := torch_lacking():
        raise UserError(
            f"this machine has {lacks}",
            "PyTorch compiles on a GPU of the kind that will run it",
            "run this on a machine that has one, with embedmill[torch] installed",
        )
    with STDERR.status("compiling …"):
        from engine_build.compiling import add_compiled  # here: PyTorch takes seconds to import, and --help needs none

        spec = add_compiled(engine_to_add_to(engine), gpu)
    made = spec.compiled[-1]
    table = Table("compiled", made.file, title=f"Engine {spec.name} compiled", title_justify="left")
    table.add_row("runs on", f"PyTorch {made.torch}, SM {made.sm}")
    table.add_row("compiled on", made.gpu)
    table.add_row("FlashAttention", _flash_attention(made))
    table.add_row("size", f"{(spec.folder / made.file).stat().st_size / 1e6:,.1f} MB")
    table.add_row("seconds", f"{made.seconds:.1f}")
    STDOUT.print(table)


def _flash_attention(made: CompiledSpec) -> str:
    used = ", ".join(f"{profile} by {kernel}" for profile, kernel in made.attention_kernels.items())
    return f"{used or 'not used'} ({made.attention})"
