"""``embedmill embed``. Its options are those of the producer, of ``engine_build`` and of ``verify``, as they are there:
none is defined here a second time."""

import copy
import os
import shlex
import signal
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console

import engine_build.command
import producer.command
import verify.command
from contract.errors import UserError
from contract.job import Job
from contract.settings import engines_in_cache, is_set, put, settings
from contract.store import Location
from contract.verdict import load_verdict
from embedmill.display import Display, Piped, display_on
from embedmill.early import Early, listen
from embedmill.embedding import EmbedRequest, embed
from embedmill.engines import EngineRequest
from embedmill.events import Sender
from producer.console import STDERR, print_line, print_note
from producer.estimate import Plan, show_estimate
from producer.request import JobRequest
from verify.terminal import show
from worker.runtime.gpus import missing

_EPILOG = """\b
Examples:
  embedmill embed reviews.csv --model all-MiniLM-L6-v2
  embedmill embed reviews.csv --model BAAI/bge-small-en-v1.5 --text '{title}\\n{body}'
  embedmill embed 'data/*.parquet' --model ./my-model --text-column body --output vectors
  embedmill embed reviews.csv --model all-MiniLM-L6-v2 --dry-run --dollars-per-hour 1.20
  embedmill embed imdb --model intfloat/e5-small-v2 --prefix "passage: " --dtype float16

The same command goes on where it was. Engines are kept in ~/.cache/embedmill (EMBEDMILL_ENGINES).
"""

_PRODUCER = producer.command.main
_NOT_TAKEN = {"dataset": None, "engine": None, "detach": False, "priority": 0}
"""The producer's options that have no meaning here, and what they are instead: the dataset is the argument, the engine
follows from the model, and on a Redis of its own there is one job."""

_NEEDED = ("torch", "transformers", "sentence_transformers", "onnx", "onnxruntime", "duckdb", "matplotlib")
"""Packages that the processes import which it starts, beside those that are imported here."""

_ENGINE = ("model", "pooling", "normalize", "max_length")
_VERIFY = ("sample", "seed")


def _of(command: click.Command, names: Iterable[str]) -> list[click.Parameter]:
    by_name = {parameter.name: parameter for parameter in command.params}
    return [copy.copy(by_name[name]) for name in names]


def _params() -> list[click.Parameter]:
    model, *engine = _of(engine_build.command.main, _ENGINE)
    model.required = True
    (revision,) = _of(engine_build.command.main, ["revision"])
    # The producer's --revision is the dataset's.
    revision.name, revision.opts = "model_revision", ["--model-revision"]
    if isinstance(revision, click.Option):
        revision.help = "The model's branch, tag or commit on the Hub.  [default: the latest when its engine is built]"
    job = [parameter for parameter in _PRODUCER.params if parameter.name not in _NOT_TAKEN]
    return [
        click.Argument(["dataset"], callback=_callback_of("dataset")),
        model,
        *job,
        revision,
        *engine,
        *_of(verify.command.main, _VERIFY),
        click.Option(["--events"], type=int, hidden=True, help="The number of a pipe that takes the events."),
    ]


def _callback_of(name: str) -> Any:
    return next(parameter.callback for parameter in _PRODUCER.params if parameter.name == name)


@click.command("embed", params=_params(), epilog=_EPILOG)
@click.pass_context
def main(
    context: click.Context,
    /,
    dataset: str,
    model: str,
    model_revision: str | None,
    sample: int,
    seed: int,
    events: int | None,
    **options: Any,
) -> None:
    """Embed DATASET and verify the vectors, with nothing that was started before.

    DATASET is csv, tsv, json, jsonl, parquet, arrow or text: a file, a folder, a pattern or an address; or a dataset of
    the Hub. The model's engine is built unless an earlier run has built it. A Redis and a worker run as long as the
    command does; embedmill status, list and cancel do not see them, and Ctrl-C stops them. The exit status is 0 if
    every check of the verifier passes.
    """
    if lacks := missing(*_NEEDED):
        raise UserError(lacks, "it builds the engine, embeds and verifies", "pip install 'embedmill[local]'")
    # The worker runs in another folder.
    put(engines=str(settings().engines.absolute() if is_set("engines") else engines_in_cache()))
    early: Early | None = context.obj
    wanted = EngineRequest(model, model_revision, *(options.pop(name) for name in _ENGINE[1:]))
    sender = Sender(events) if events is not None else None
    came = early.came if early else listen()
    rows = sample if sample != verify.command.ALL else None

    def begin(request: JobRequest, ranges: str | None, *, detach: bool, plan: Plan | None) -> None:
        display: Display = Piped(sender) if sender else display_on(STDERR)
        asked = EmbedRequest(wanted, request, ranges, rows, seed)
        if plan:
            from embedmill.dry_run import dry_run  # here: it has a worker's libraries

            found = dry_run(asked, plan, display)
            if sender:
                sender.send(estimate=found.estimate.model_dump(mode="json"))
            else:
                show_estimate(*found)
            return
        job, passed = embed(asked, display, lambda: came[0] if came else signal.SIGINT, early or Early(came))
        if sender:
            sender.send(job=str(job.folder))
        else:
            _print(job)
        if not passed:
            raise SystemExit(1)

    for name, why in {"redis_url": "it has a Redis of its own", "engine": "--model decides"}.items():
        if is_set(name):
            print_note(f"EMBEDMILL_{name.upper()} is not used: {why}")
    context.obj, produce = begin, _PRODUCER.callback
    assert produce is not None
    try:
        context.invoke(produce, **(_NOT_TAKEN | options | {"dataset": dataset, "engine": wanted.name}))
    except UserError as error:
        if sender:
            sender.error(error.found, error.expected, error.hint)
        raise


def _print(job: Job) -> None:
    """The verdict, and what to do next."""
    if verdict := load_verdict(job):
        show(verdict, job.folder, Console(markup=False))
        if verdict.at_fault:
            print_line("Or run the same command again: it sets them aside, and makes them again")
        if verdict.passed:
            folder = _short(job.folder)
            print_line(f'Search it:   embedmill search --job {shlex.quote(folder)} "a few words"')
            print_line(f'Read it:     datasets.load_dataset("{folder}"), or any reader of Parquet')
            print_line(f"Look at it:  {folder}/report.html")


def _short(folder: Location) -> str:
    """A path as one types it here."""
    return str(folder).removeprefix(f"{os.getcwd()}/")
