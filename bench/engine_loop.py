"""``python -m bench.engine_loop``: the engine's own speed, ``infer`` in a loop over the batches of a folder."""

import json
import os
import time
from pathlib import Path

import click

from contract.batch import Batch
from contract.engines import load_engine
from contract.errors import UserError
from contract.settings import settings
from contract.words import count
from worker.runtime.choose import open_engine

_EPILOG = """\b
Example:
  python -m bench.engine_loop build/batches --engine bert-base-cased --seconds 20

Prints one line of JSON: rows, tokens (after truncation, padding not counted), seconds, runtime, precision. The engine
is loaded and each batch was computed once before the clock runs.
"""


@click.command(epilog=_EPILOG)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option("--seconds", type=click.FloatRange(min=0), default=20.0, show_default=True, help="At least this long.")
def main(folder: Path, engine: str | None, seconds: float) -> None:
    """Compute the batches in FOLDER, the bytes of each in a file, over and over."""
    batches = [Batch.from_bytes(file.read_bytes()) for file in sorted(folder.iterdir())]
    if not any(len(batch) for batch in batches):
        raise UserError(
            f"{folder} has {count(len(batches), 'batch', 'batches')} and no row", "expected batches with rows"
        )
    threads = settings().threads or len(os.sched_getaffinity(0))
    rows = tokens = 0
    with open_engine(load_engine(engine), threads) as opened:
        for batch in batches:
            opened.infer(batch)
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds or not rows:
            for batch in batches:
                opened.infer(batch)
                rows += len(batch)
                tokens += int(batch.lengths.sum())
        engine_used = {"runtime": opened.runtime, "precision": opened.precision}
    click.echo(json.dumps({"rows": rows, "tokens": tokens, "seconds": spent} | engine_used))


if __name__ == "__main__":
    main(prog_name="python -m bench.engine_loop")
