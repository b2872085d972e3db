"""The job undisturbed and under each fault."""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.chaos.fault import Fault
from bench.chaos.place import WORKERS, Missing, Place
from bench.chaos.record import UNDISTURBED, record_of, table_of
from bench.chaos.rig import Rig, open_rig
from bench.tiny_model import JARGON, save_tiny_model
from contract.job import Job
from contract.settings import settings
from engine_build.build import build
from engine_build.prepare import EngineOptions

BATCH_ROWS = 8
ENV = {
    "EMBEDMILL_VISIBILITY_TIMEOUT": "6",  # the longest batch takes 0.3 s here
    "EMBEDMILL_REDIS_PATIENCE": "60",
    "EMBEDMILL_THREADS": "1",
}


def run(
    faults: Sequence[Fault], folder: Path, *, seed: int, rows: int | None = None, console: Console
) -> list[dict[str, Any]]:
    """Run the job undisturbed and under each fault.

    Args:
        faults: which. One that this machine cannot have is left out, which is said.
        folder: for logs and shards.
        seed: decides when each fault comes.
        rows: of the dataset, from its start; None for all.
        console: takes the figures.

    Returns:
        A record for each run, the undisturbed one first.
    """
    engines, dataset = prepare(folder := folder.resolve(), rows)
    console.print(f"{batches(dataset)} batches of {BATCH_ROWS} rows, {WORKERS} workers, seed {seed}")
    records: list[dict[str, Any]] = []
    undisturbed: Job | None = None
    for number, fault in enumerate([UNDISTURBED, *faults]):
        place = Place.fresh(folder / f"run{number}", engines, environment(fault))
        try:
            with console.status(fault.name), opened(fault, place, dataset) as rig:
                began = time.monotonic()
                rig.start(WORKERS, fault.producers)
                fault.inject(rig, random.Random(f"{seed} {fault.name}"))
                status, seconds = rig.finish(), time.monotonic() - began
                if (undisturbed := undisturbed or rig.job()) is None:
                    raise RuntimeError((rig.folder / "producer0.log").read_text())
                records.append(record_of(fault, rig, undisturbed, status, seconds))
        except Missing as missing:
            console.print(f"{fault.name}: left out, {missing}", highlight=False)
            continue
        if not console.is_terminal:
            console.print(f"{fault.name}: {'pass' if records[-1]['passed'] else records[-1]}", highlight=False)
    console.print(table_of(records))
    return records


def environment(fault: Fault) -> dict[str, str]:
    """Of all processes under a fault."""
    return ENV | {"CHAOS_SECONDS": str(fault.seconds)} | fault.env


@contextlib.contextmanager
def opened(fault: Fault, place: Place, dataset: Path) -> Iterator[Rig]:
    """A rig where a fault takes place.

    Raises:
        Missing: this machine cannot have it.
    """
    with contextlib.ExitStack() as stack:
        for change in fault.changes:
            place = change(place, stack)
        yield stack.enter_context(open_rig(place, dataset, batch_rows=BATCH_ROWS, servers=fault.servers))


def prepare(folder: Path, rows: int | None = None) -> tuple[Path, Path]:
    """The tiny model's engine, and the job's dataset, in this folder.

    Returns:
        The engines folder, and the file.
    """
    os.environ["EMBEDMILL_ENGINES"] = str(folder / "engines")
    settings.cache_clear()
    for earlier in ("engines", "tiny"):
        shutil.rmtree(folder / earlier, ignore_errors=True)
    model = str(save_tiny_model(folder / "tiny"))
    build(model, EngineOptions("tiny"), say=lambda line: None, step=lambda text: None)
    dataset = folder / "jargon.jsonl"
    dataset.write_text("\n".join(JARGON.read_text(encoding="utf-8").splitlines()[:rows]) + "\n", encoding="utf-8")
    return folder / "engines", dataset


def batches(dataset: Path) -> int:
    """Of the job."""
    return -(-len(dataset.read_text(encoding="utf-8").splitlines()) // BATCH_ROWS)
