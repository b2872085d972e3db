"""The two systems that ``bench.encode`` measures, each with the machine to itself."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import transformers
from rich.console import Console
from sentence_transformers import SentenceTransformer

from contract.errors import UserError
from contract.job import load_job
from contract.shard import read_info
from contract.store import location
from embedmill.processes import celery_worker, die_with_parent, redis_server

BATCH = 32
"""Rows that ``encode()`` takes at once."""


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


def measure(
    folder: Path, model: str, texts: list[str], repeat: int, batch_rows: int, console: Console
) -> tuple[list[EmbedmillRun], list[Run]]:
    """Both systems in turn, ``repeat`` times.

    Args:
        folder: for all that is made.
        model: what ``python -m engine_build`` takes.
        texts: the rows.
        repeat: runs of each system.
        batch_rows: rows of a batch of the job.
        console: takes lines on what goes on.

    Returns:
        embedmill's runs, and those of sentence-transformers.
    """
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
            transformer = _warm(model, ours[0].max_length, texts[:BATCH])
        console.print(f"Run {number} of {repeat}: sentence-transformers …")
        theirs.append(_encode(transformer, texts))
    return ours, theirs


def _warm(model: str, max_length: int, texts: list[str]) -> SentenceTransformer:
    """The model as it is opened by sentence-transformers, with the engine's longest input, after its first batch."""
    transformers.utils.logging.disable_progress_bar()
    transformer = SentenceTransformer(model, device="cpu")
    transformer.max_seq_length = max_length
    transformer.encode(texts, batch_size=BATCH, show_progress_bar=False)
    return transformer


def _encode(transformer: SentenceTransformer, texts: list[str]) -> Run:
    others = _Others()
    began = time.perf_counter()
    vectors = transformer.encode(texts, batch_size=BATCH, show_progress_bar=False)
    seconds = time.perf_counter() - began
    return Run(seconds, vectors, others.cores_taken())


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
