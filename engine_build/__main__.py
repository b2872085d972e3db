"""``python -m engine_build``: the command."""

import time

import click
from rich.console import Console
from rich.table import Table

from contract.engine import Pooling

_EPILOG = """\b
Examples:
  python -m engine_build --model bert-base-cased
  python -m engine_build --model ./my-model --pooling cls --normalize
  python -m engine_build --model BAAI/bge-small-en-v1.5 --name bge-small

The engine lands in engines/<name>/ (EMBEDMILL_ENGINES). Next: python -m producer --dataset imdb
"""


@click.command(epilog=_EPILOG)
@click.option("--model", required=True, help="Hub id, or a local folder that holds config.json and weights.")
@click.option("--name", help="The engine's name.  [default: the model's]")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "tokens"]),
    help="One vector a row (mean, cls), or the last hidden state of each of its tokens (tokens).  "
    "[default: the model folder's own, else mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Scale vectors to norm 1.  [default: the model folder's own, else no]",
)
@click.option("--max-length", type=int, help="Tokens after which a row is truncated.  [default: 512]")
def main(
    model: str,
    name: str | None,
    revision: str | None,
    pooling: Pooling | None,
    normalize: bool | None,
    max_length: int | None,
) -> None:
    """Turn a BERT-family encoder into an engine: PyTorch to ONNX, pooling and normalization in the graph.

    A sentence-transformers folder's own pooling, normalization and default prompt are kept, so its vectors stay the
    ones its users know. Right after the export the engine is compared with PyTorch.
    """
    from engine_build.build import build  # here: PyTorch takes seconds to import, and --help needs none of it

    console = Console(stderr=True)
    began = time.monotonic()
    with console.status("starting") as status:
        spec, comparison = build(
            model,
            name=name,
            revision=revision,
            pooling=pooling,
            normalize=normalize,
            max_length=max_length,
            say=lambda line: console.print(line, highlight=False),
            step=lambda text: status.update(f"{text} …"),
        )
    out = Console()
    if comparison is None:
        out.print(f"{spec.folder} is this engine already (fingerprint {spec.fingerprint}).", highlight=False)
        return
    table = Table("engine", spec.name, title="Engine built", title_justify="left")
    table.add_row("folder", str(spec.folder))
    table.add_row("model", f"{spec.model} ({spec.architecture}, {spec.hidden} wide)")
    table.add_row("vectors", f"pooling {spec.pooling}, {'norm 1' if spec.normalize else 'not normalized'}")
    table.add_row("truncation", f"{spec.max_length} tokens")
    table.add_row("prefix", repr(spec.prefix) if spec.prefix else "none")
    table.add_row("fingerprint", spec.fingerprint)
    table.add_row(
        "ONNX vs PyTorch",
        f"lowest cosine {comparison.min_cosine:.7f}, MSE {comparison.mse:.1e}, "
        f"relative MSE {comparison.relative_mse:.1e}",
    )
    table.add_row("seconds", f"{time.monotonic() - began:.1f}")
    out.print(table)
    out.print("Next: python -m producer --dataset imdb", highlight=False)


if __name__ == "__main__":
    main(prog_name="python -m engine_build")
