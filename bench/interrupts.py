"""Ctrl-C at random instants of all commands: ``python -m bench.interrupts``.

Each run starts a command as a terminal does, in a process group of its own, sends SIGINT to the group after 0 to 8 s,
and looks at what the command printed, how it ended, how long that took, and what it left behind: processes, files in
the engines' folder, shards that are not whole."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil

from bench.tiny_model import save_tiny_model
from embedmill.processes import celery_worker, redis_server

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("contract", "producer", "worker", "verify", "engine_build")
_JARGON = _ROOT / "examples" / "jargon.jsonl"
_PYTHON = [sys.executable, "-m"]
_ROWS = ["--dataset", str(_JARGON), "--text-column", "text", "--batch-rows", "20"]
_PATIENCE = 20.0
"""Seconds after which a command that was interrupted counts as hanging."""


@dataclass(frozen=True)
class Run:
    """What became of one Ctrl-C."""

    command: str
    after: float
    """Seconds from the command's start to the signal."""
    status: int | None
    """Exit status; None if it had to be killed."""
    took: float
    """Seconds from the signal to the end."""
    lines: int
    """Lines that it printed after the signal."""
    traceback: bool
    """Whether it showed a traceback of code that is embedmill's, or that embedmill imports."""
    too_early: bool
    """Whether it showed one from before embedmill's first line: Python's start, or Celery's own imports."""
    left: list[str]
    """Processes and files that were there after its end."""
    finished: bool
    """Whether it had ended by itself, or was about to: its last line was there before the signal."""

    @property
    def good(self) -> bool:
        return self.finished or self.too_early or (self.status == 130 and not self.traceback and not self.left)


def interrupted(name: str, command: list[str], env: dict[str, str], folder: Path, after: float) -> Run:
    """Start a command, send Ctrl-C, and see."""
    told = folder / "told.txt"
    with told.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=folder, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    time.sleep(after)
    finished = started.poll() is not None
    before = len(told.read_text(errors="replace").splitlines())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGINT)
    sent = time.monotonic()
    status: int | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = started.wait(_PATIENCE)
    took = time.monotonic() - sent
    time.sleep(1.5)  # for children that end with their parent
    left = [f"process {one.pid}: {' '.join(one.cmdline()[:6])}" for one in _session(started.pid)]
    left += [str(file.relative_to(folder)) for file in folder.rglob("*") if "engines/." in str(file)]
    for one in _session(started.pid):
        one.kill()
    text = told.read_text(errors="replace")
    traceback = "Traceback" in text
    ours = any(f'File "{_ROOT}/{package}/' in text for package in _PACKAGES)
    finished = finished or status == 0
    run = Run(
        command=name,
        after=round(after, 3),
        status=status,
        took=round(took, 3),
        lines=len([line for line in text.splitlines()[before:] if line.strip()]),
        traceback=traceback and ours,
        too_early=traceback and not ours,
        left=left,
        finished=finished,
    )
    if not run.good or run.too_early:
        print(f"--- {name} after {after:.2f} s: status {status}\n{text[-1500:]}", file=sys.stderr, flush=True)
    return run


def _session(pid: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(one.pid) == pid and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@dataclass(frozen=True)
class Rig:
    """A Redis, an engine and a finished job, on which commands are run."""

    top: Path
    env: dict[str, str]
    model: Path
    job: Path

    def commands(self, folder: Path, number: int) -> dict[str, tuple[list[str], dict[str, str]]]:
        """Each command with its environment; what it writes lies in ``folder``."""
        own = self.env | {"EMBEDMILL_OUTPUT": str(folder / "output")}
        name = f"{number}@%h"
        return {
            "producer": ([*_PYTHON, "producer", *_ROWS], own),
            "worker": ([*_PYTHON, "worker", "-n", name], own),
            "celery": ([*_PYTHON, "celery", "-A", "worker", "worker", "-n", name], own),
            "verify": ([*_PYTHON, "verify", str(self.job), "--sample", "all"], self.env),
            "engine_build": (
                [*_PYTHON, "engine_build", "--model", str(self.model), "--name", "tiny"],
                own | {"EMBEDMILL_ENGINES": str(folder / "engines")},
            ),
        }

    def run(self, number: int, after: float) -> Run:
        """Run one of the commands and interrupt it."""
        folder = self.top / f"run-{number}"
        folder.mkdir()
        commands = self.commands(folder, number)
        name = list(commands)[number % len(commands)]
        command, env = commands[name]
        return interrupted(name, command, env, folder, after)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as place, redis_server() as url:
        top = Path(place)
        model, output = save_tiny_model(top / "tiny-bert"), top / "output"
        env = {
            "EMBEDMILL_REDIS_URL": url,
            "EMBEDMILL_ENGINES": str(top / "engines"),
            "EMBEDMILL_OUTPUT": str(output),
            "EMBEDMILL_TOKENIZERS": "2",
        }
        build = [*_PYTHON, "engine_build", "--model", str(model), "--name", "tiny"]
        subprocess.run(build, env=os.environ | env, check=True)
        with celery_worker(top / "worker.log", env=env):
            subprocess.run([*_PYTHON, "producer", *_ROWS, "--limit", "200"], env=os.environ | env, check=True)
            yield Rig(top, env, model, next(output.iterdir()))


def counts_of(runs: list[Run]) -> dict[str, int]:
    """How many runs went wrong, and how."""
    return {
        "interrupted": sum(not run.finished for run in runs),
        "tracebacks": sum(run.traceback for run in runs),
        "tracebacks before embedmill's first line": sum(run.too_early for run in runs),
        "hangs": sum(run.status is None for run in runs),
        "left something": sum(bool(run.left) for run in runs),
        "another status": sum(not (run.finished or run.too_early) and run.status not in (130, None) for run in runs),
    }


@click.command()
@click.option("--runs", default=250, show_default=True, help="Ctrl-Cs in all.")
@click.option("--at-once", default=1, show_default=True, help="Commands at the same time; more than cores load them.")
@click.option("--seconds", default=8.0, show_default=True, help="The latest instant.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="File for the records.")
def main(runs: int, at_once: int, seconds: float, seed: int, file: Path | None) -> None:
    """Interrupt the producer, a worker, verify and engine_build at random instants, and count what went wrong."""
    dice = random.Random(seed)
    instants = [dice.uniform(0, seconds) for _ in range(runs)]
    with rig() as place, ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(place.run, range(runs), instants))
    counts, took = counts_of(found), sorted(run.took for run in found if not run.finished)
    print({**counts, "median seconds": took[len(took) // 2], "longest": took[-1], "load": os.getloadavg()[0]})
    if file:
        record = {"runs": runs, "at_once": at_once, "seed": seed, "counts": counts, "each": list(map(asdict, found))}
        file.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(run.good for run in found))


if __name__ == "__main__":
    main()
