"""What the job is compared with, each in a process of its own: sentence-transformers, and packed rows in PyTorch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from bench.records import Record
from contract.engine import EngineSpec
from contract.errors import UserError
from embedmill.processes import die_with_parent
from producer.tokenizer import open_tokenizer, tokenize

Base = Callable[..., Record]
"""Makes a record of this dataset, machine and model."""


@dataclass(frozen=True)
class Loop:
    """A program that computes the first batches over and over, and how it is told which and for how long."""

    python: str
    module: str
    options: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def measure(self, base: Base, system: str, folder: Path, *, rows: int, batch_rows: int, seconds: float) -> Record:
        """A record of the system; ``rows`` and ``batch_rows`` are those of the job that it is compared with."""
        command = ["-m", self.module, str(folder), *self.options, "--seconds", str(seconds)]
        told = told_by(self.python, *command, environment=dict(self.environment))
        return base(
            system=system.format(told["runtime"].split()[0]),
            date=now(),
            rows=rows,
            seconds=round(told["seconds"], 3),
            rows_per_s=round(told["rows"] / told["seconds"], 2),
            tokens_per_s=round(told["tokens"] / told["seconds"], 1),
            batch=str(batch_rows),
            runtime=told["runtime"],
        )


class PeerSettings(NamedTuple):
    """How sentence-transformers is run."""

    modes: str
    """Of ``bench.peer``, with commas."""
    batch_sizes: str
    """With commas; the best counts."""


def sentence_transformers(
    base: Base, spec: EngineSpec, some: list[str], file: Path, settings: PeerSettings, console: Console
) -> Iterator[Record]:
    """sentence-transformers on some texts, in each mode at its best batch size. A mode that cannot run here is said.

    Args:
        base: makes the records.
        spec: the engine that it is compared with.
        some: the texts.
        file: where they are written for it.
        settings: how it is run.
        console: is told what is done.
    """
    tokenizer, rows = open_tokenizer(spec), len(some)
    file.write_text("".join(json.dumps(text) + "\n" for text in some), encoding="utf-8")
    tokens = sum(
        int(np.minimum(tokenize(some[i : i + 256], tokenizer)[1], spec.max_length).sum()) for i in range(0, rows, 256)
    )
    python = os.environ.get("PYTHON_TORCH", sys.executable)
    command = [str(file), "--model", spec.model, "--max-length", str(spec.max_length)]
    command += ["--batch-sizes", settings.batch_sizes]
    for mode in settings.modes.split(","):
        console.print(f"{rows:,} rows: sentence-transformers {mode} …")
        try:
            found = told_by(python, "-m", "bench.peer", *command, "--mode", mode)
        except UserError as error:
            console.print(f"Not measured: sentence-transformers {mode}: {error}", soft_wrap=True)
            continue
        size, seconds = min(found.items(), key=lambda item: item[1])
        yield base(
            system=f"sentence-transformers {mode}",
            date=now(),
            rows=rows,
            seconds=seconds,
            rows_per_s=round(rows / seconds, 2),
            tokens_per_s=round(tokens / seconds, 1),
            batch=size,
        )


def told_by(python: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What a Python command prints as its last line, which is JSON.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise UserError(f"python {' '.join(arguments)} ended with status {done.returncode}: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
