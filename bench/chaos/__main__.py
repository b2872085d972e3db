"""``python -m bench.chaos``: the command."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.chaos.faults import FAULTS, Fault, Scale, mount_tmpfs, nothing
from bench.chaos.network import network
from bench.chaos.rig import Host, Rig, compare, open_rig
from bench.tiny_model import JARGON, save_tiny_model
from contract.job import Job
from contract.settings import settings
from engine_build.build import build
from engine_build.prepare import EngineOptions

_BATCH_ROWS = 10
_WORKERS = 3
_ENV = {
    "EMBEDMILL_VISIBILITY_TIMEOUT": "6",  # the longest batch takes 0.3 s here
    "EMBEDMILL_REDIS_PATIENCE": "60",
    "EMBEDMILL_THREADS": "1",
}
_EPILOG = """\b
Examples:
  python -m bench.chaos
  python -m bench.chaos --only producer --only garbage --seed 7

Runs the job of 231 batches once undisturbed and then under each fault, and compares the outputs row by row. Exits 1
if a row was lost, is there twice or differs. Network namespaces and a full disk need root and iproute2.
"""


@click.command(epilog=_EPILOG)
@click.option("--seed", default=0, show_default=True, help="Decides when each fault comes.")
@click.option("--only", multiple=True, help="Only faults whose names hold this; may be given several times.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where the records go.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep every run's logs and shards in this folder.")
def main(seed: int, only: tuple[str, ...], file: Path | None, keep: Path | None) -> None:
    """Prove that the job survives what real machines do."""
    chosen = [fault for fault in FAULTS if not only or any(part in fault.name for part in only)]
    with tempfile.TemporaryDirectory() as scratch:
        records = run(chosen, keep or Path(scratch), Scale(), seed=seed, rows=None, console=_console())
    if file:
        file.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    if not all(record["passed"] for record in records):
        sys.exit(1)


def _console() -> Console:
    """As wide as the table where there is no terminal to say how wide."""
    return Console() if Console().is_terminal else Console(width=130)


def run(
    faults: list[Fault], folder: Path, scale: Scale, *, seed: int, rows: int | None, console: Console
) -> list[dict[str, Any]]:
    """Run the job undisturbed and under each fault.

    Args:
        faults: which.
        folder: for logs and shards.
        scale: how much of each.
        seed: decides when each fault comes.
        rows: of the dataset, from its start; None for all.
        console: takes the figures.

    Returns:
        A record for each run, the undisturbed one first.
    """
    folder = folder.resolve()
    engines = _engine(folder)
    lines = JARGON.read_text(encoding="utf-8").splitlines()[:rows]
    dataset = folder / "jargon.jsonl"
    dataset.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"{len(lines):,} rows in {-(-len(lines) // _BATCH_ROWS)} batches, {_WORKERS} workers, seed {seed}")
    records: list[dict[str, Any]] = []
    undisturbed: Job | None = None
    for number, fault in enumerate([Fault("undisturbed", nothing), *faults]):
        with console.status(fault.name), _rig(fault, folder / f"run{number}", engines, dataset) as rig:
            began = time.monotonic()
            rig.start(_WORKERS)
            fault.inject(rig, scale, random.Random(f"{seed} {fault.name}"))
            status, seconds = rig.finish(), time.monotonic() - began
            if (undisturbed := undisturbed or rig.job()) is None:
                raise RuntimeError((rig.folder / "producer.log").read_text())
            records.append(_record(fault, rig, undisturbed, status, seconds))
        if not console.is_terminal:
            console.print(f"{fault.name}: {'pass' if records[-1]['passed'] else records[-1]}", highlight=False)
    console.print(_table(records))
    return records


@contextlib.contextmanager
def _rig(fault: Fault, folder: Path, engines: Path, dataset: Path) -> Iterator[Rig]:
    env = _ENV | {"CHAOS_SECONDS": str(fault.seconds)} | fault.env
    with contextlib.ExitStack() as stack:
        hosts: dict[str, Host] = {}
        address = "127.0.0.1"
        if fault.network:
            hosts, address = stack.enter_context(
                network("redis", [f"worker{n}" for n in range(_WORKERS)] + ["producer"])
            )
        rig = stack.enter_context(
            open_rig(
                folder,
                engines=engines,
                dataset=dataset,
                batch_rows=_BATCH_ROWS,
                env=env,
                redis_host=address,
                redis_options=fault.redis_options,
                hosts=hosts,
            )
        )
        if fault.tmpfs:
            (folder / "output").mkdir()
            mount_tmpfs(folder / "output", "4m")
            stack.callback(subprocess.run, ["umount", "-l", str(folder / "output")], check=False)
        yield rig


def _engine(folder: Path) -> Path:
    """An engines folder with the tiny model's engine."""
    os.environ["EMBEDMILL_ENGINES"] = str(folder / "engines")
    settings.cache_clear()
    for earlier in ("engines", "tiny"):
        shutil.rmtree(folder / earlier, ignore_errors=True)
    model = str(save_tiny_model(folder / "tiny"))
    build(model, EngineOptions("tiny"), say=lambda line: None, step=lambda text: None)
    return folder / "engines"


def _record(fault: Fault, rig: Rig, undisturbed: Job, status: int, seconds: float) -> dict[str, Any]:
    outcome = compare(rig.job(), undisturbed)
    injected = len(rig.faults) or len(fault.failed)
    left = rig.left_on_redis()
    return {
        "fault": fault.name,
        "injected": injected,
        "rows": outcome.rows,
        "rows_lost": outcome.lost,
        "rows_twice": outcome.twice,
        "rows_different": outcome.different,
        "rows_with_error": list(outcome.failed),
        "work_repeated": round(100 * (rig.work() / outcome.rows - 1), 1),
        "recovery_s": round(rig.recovery, 1),
        "seconds": round(seconds, 1),
        "exit_status": status,
        "left_on_redis": left,
        "passed": status == 0
        and not left
        and not (outcome.lost or outcome.twice or outcome.different)
        and outcome.failed == fault.failed
        and (injected > 0 or fault.inject is nothing),
    }


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table("fault", title="The job under faults, against the undisturbed one", title_justify="left")
    for name in ("injected", "rows lost", "twice", "different", "work repeated", "recovery", "seconds", ""):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            record["fault"],
            str(record["injected"]),
            *(str(record[key]) for key in ("rows_lost", "rows_twice", "rows_different")),
            f"{record['work_repeated']:.1f} %",
            f"{record['recovery_s']:.1f} s",
            f"{record['seconds']:.0f}",
            "pass" if record["passed"] else "FAIL",
        )
    return table


if __name__ == "__main__":
    main(prog_name="python -m bench.chaos")
