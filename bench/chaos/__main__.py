"""``python -m bench.chaos``: the command."""

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.chaos.faults import FAULTS
from bench.chaos.run import run
from bench.chaos.soak import soak

_EPILOG = """\b
Examples:
  python -m bench.chaos
  python -m bench.chaos --only producer --only garbage --seed 7
  python -m bench.chaos --soak 30

Runs the job of 289 batches once undisturbed and then under each fault, and compares the outputs row by row. Exits 1
if a row was lost, is there twice or differs. Network namespaces, file systems that are full or slow, and clocks need
root, iproute2, e2fsprogs and a C compiler; what this machine cannot have is left out, and said.
"""


@click.command(epilog=_EPILOG)
@click.option("--seed", default=0, show_default=True, help="Decides when each fault comes.")
@click.option("--only", multiple=True, help="Only faults whose names hold this; may be given several times.")
@click.option(
    "--soak", "minutes", type=float, help="Instead: the job over and over for so many minutes, random faults."
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where the records go.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep every run's logs and shards in this folder.")
def main(seed: int, only: tuple[str, ...], minutes: float | None, file: Path | None, keep: Path | None) -> None:
    """Prove that the job survives what real machines do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts and file systems go, however this ends
    chosen = [fault for fault in FAULTS if not only or any(part in fault.name for part in only)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found: Any
        if minutes:
            found = soak(folder, minutes=minutes, seed=seed, console=_console())
        else:
            found = run(chosen, folder, seed=seed, console=_console())
    if file:
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if not all(one["passed"] for one in (found["rounds"] if minutes else found)):
        sys.exit(1)


def _console() -> Console:
    """As wide as the table where there is no terminal to say how wide."""
    return Console() if Console().is_terminal else Console(width=150)


if __name__ == "__main__":
    main(prog_name="python -m bench.chaos")
