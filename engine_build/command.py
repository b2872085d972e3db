"""``python -m engine_build``: builds an engine; its subcommands are in ``plan_command`` and ``bench.command``."""

import time
from collections.abc import Mapping
from typing import Literal

import click
from rich.table import Table

from contract.compare import Comparison
from contract.engine import EngineSpec, Tier
from contract.entry import importing
from contract.graph import MODES, Pooling
from contract.words import count
from engine_build.bench.command import bench
from engine_build.compile_command import compile_
from engine_build.options import STDERR, STDOUT, LengthType
from engine_build.plan_command import build_plan, no_gpu, plan
from engine_build.profiles import PlanOptions
from engine_build.tune_command import tune
from worker.runtime.gpus import lacking

_EPILOG = """\b
Examples:
  python -m engine_build --model bert-base-cased
  python -m engine_build --model ./my-model --pooling cls --normalize
  python -m engine_build --model BAAI/bge-small-en-v1.5 --name bge-small --no-plan
  python -m engine_build plan --engine bge-small
  python -m engine_build bench --engine bge-small

The engine lands in engines/<name>/ (EMBEDMILL_ENGINES). Next, in two terminals:
  celery -A worker worker
  python -m producer --dataset imdb
"""


_NEXT = "Next: celery -A worker worker, and in another terminal: python -m producer --dataset imdb"


@click.group(epilog=_EPILOG, invoke_without_command=True)
@click.option("--model", help="Hub id, or a local folder that sentence-transformers or transformers wrote.")
@click.option("--name", help="The engine's name.  [default: the model's]")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option(
    "--pooling",
    type=click.Choice([*MODES, "tokens"]),
    help="How a row's vector is made of its tokens' last hidden states, or tokens for those themselves.  "
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
    help="Build a TensorRT plan as well.  [default: if there is a GPU and what embedmill[gpu] installs]",
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
    """Turn a model that sentence-transformers opens into an engine.

    Its own pooling, further modules, prompts and truncate_dim are kept. Texts are truncated at 512 tokens instead of
    at the model's own length; with --max-length model, vectors are those of encode().
    BERT-family encoders are exported to ONNX, for ONNX Runtime and TensorRT. What cannot be exported is computed by
    PyTorch: by transformers' own code on packed rows, or else by the model's own modules. Each of these is compared
    with encode() before it is taken.
    """
    if context.invoked_subcommand:
        return
    if model is None:
        raise click.UsageError("Missing option '--model'.", context)
    if plan_too and lacking():
        raise no_gpu(f"add it where there is one: python -m engine_build plan --engine {name or 'NAME'}")
    with importing():
        from engine_build.source import local_folder  # here: a machine that only builds plans has no huggingface_hub
    local_folder(model)  # what is no model is said before PyTorch is imported
    with importing():
        from engine_build.build import build  # here: PyTorch takes seconds to import, and --help needs none of it
        from engine_build.prepare import EngineOptions

    began = time.monotonic()
    with STDERR.status("starting") as status:
        spec, comparisons = build(
            model,
            EngineOptions(name, revision, pooling, normalize, max_length),
            say=lambda line: STDERR.print(line, highlight=False),
            step=lambda text: status.update(f"{text} …"),
        )
    if comparisons:
        STDOUT.print(_table(spec, comparisons, time.monotonic() - began))
    else:
        STDOUT.print(f"{spec.folder} is this engine already (fingerprint {spec.fingerprint}).", highlight=False)
        for line in spec.unusable:
            STDERR.print(line, highlight=False, soft_wrap=True)
    if plan_too or (plan_too is None and not lacking() and not spec.plans and spec.onnx_sha256):
        build_plan(spec, PlanOptions(), gpu=0)
    STDOUT.print(_NEXT, highlight=False, soft_wrap=True)


def _table(spec: EngineSpec, comparisons: Mapping[str, Comparison], seconds: float) -> Table:
    table = Table("engine", spec.name, title="Engine built", title_justify="left")
    table.add_row("folder", str(spec.folder))
    table.add_row("model", f"{spec.model} ({spec.architecture}, {spec.encoder_width} wide)")
    table.add_row("vectors", _vectors(spec))
    table.add_row("longest row", spec.longest_row)
    table.add_row("computed by", _RUNTIMES[spec.tiers[0]])
    if spec.tiers != ("onnx",):
        table.add_row("PyTorch on a GPU", spec.precision_on_gpu)
    table.add_row("prefix", repr(spec.prefix) if spec.prefix else "none")
    table.add_row("fingerprint", spec.fingerprint)
    for name, comparison in comparisons.items():
        table.add_row(f"{name} vs encode()", str(comparison))
    table.add_row("seconds", f"{seconds:.1f}")
    return table


_RUNTIMES: dict[Tier, str] = {
    "onnx": "ONNX Runtime, TensorRT, PyTorch",
    "torch": "PyTorch (runtime torch)",
    "modules": "PyTorch, by the model's own modules (runtime modules)",
}


def _vectors(spec: EngineSpec) -> str:
    cut = f", the first {count(spec.truncate_dim, 'element')}" if spec.truncate_dim else ""
    return f"{spec.hidden} wide, pooling {spec.pooling}, {'norm 1' if spec.normalize else 'not normalized'}{cut}"


main.add_command(plan)
main.add_command(compile_)
main.add_command(tune)
main.add_command(bench)
