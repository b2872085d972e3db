"""The command ``embedmill``: one help for all programs, each of which is imported when it is called."""

import copy
import importlib
import importlib.metadata
import os
from typing import Any, NamedTuple

import click

from contract.errors import UserError
from embedmill.environment import PACKAGES, check_packages, python, python_path


class Part(NamedTuple):
    """A command that is another program's."""

    summary: str
    module: str
    attribute: str
    example: str


_UNSEEN = "\n\nA running embedmill embed is not seen here: it has a Redis of its own. Ctrl-C stops it."

PARTS = {
    "embed": Part("Embed a dataset and verify the vectors.", "embedmill.embed_command", "main", ""),
    "search": Part(
        "Show the rows that are nearest to a query.",
        "embedmill.search",
        "main",
        'embedmill search "junk mail sent to everyone"',
    ),
    "verify": Part(
        "Account for every row of a job, and recompute a sample.",
        "verify.command",
        "main",
        "embedmill verify --sample 2000",
    ),
    "compare": Part("Say how far one job is from another of the same rows.", "verify.compare", "main", ""),
    "push": Part(
        "Push a verified job to the Hub.",
        "producer.push_command",
        "push",
        "embedmill push --to user/name",
    ),
    "export": Part(
        "Export a job to Lance, FAISS or PostgreSQL, with an index.", "embedmill.export.command", "main", ""
    ),
    "build": Part(
        "Build an engine of a model.",
        "engine_build.command",
        "main",
        "embedmill build --model bert-base-cased",
    ),
    "worker": Part("Run a worker on the Redis of EMBEDMILL_REDIS_URL.", "embedmill.command", "worker", ""),
    "status": Part(
        "Show how far a job is, on that Redis.",
        "producer.status_command",
        "status",
        f"embedmill status --watch{_UNSEEN}",
    ),
    "list": Part("List every job, on that Redis.", "producer.jobs_commands", "list_jobs", f"embedmill list{_UNSEEN}"),
    "cancel": Part("Stop a job, on that Redis.", "producer.jobs_commands", "cancel", f"embedmill cancel JOB{_UNSEEN}"),
}


class Programs(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PARTS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "embed" and not ctx.resilient_parsing:  # as where a shell completes words
            _start_early(ctx, args[1:])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        part = PARTS.get(cmd_name)
        if part is None:
            return None
        check_packages()  # before the first is imported
        found: click.Command = getattr(importlib.import_module(part.module), part.attribute)
        if not part.example:
            return found
        named = copy.copy(found)  # the program's own help names it as it is called there
        named.name, named.epilog = cmd_name, f"\b\nExample:\n  {part.example}"
        return named

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, part.summary) for name, part in PARTS.items()])


def _start_early(context: click.Context, words: list[str]) -> None:
    """Start what the command that these words ask for will need, before its module is imported."""
    check_packages()
    from embedmill.early import Early, is_run, listen

    if is_run(words):
        context.obj = early = Early(listen())
        context.call_on_close(early.close)


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """The version, once it is known that no other distribution has put files among embedmill's."""
    if not value or context.resilient_parsing:
        return
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        if others := sorted(set(owners.get(name, [])) - {"embedmill"}):
            raise UserError(
                f"{', '.join(others)} is installed with a package {name} too",
                "embedmill's was overwritten, or is going to be",
                "install embedmill in a virtual environment of its own",
            )
    click.echo(f"embedmill {importlib.metadata.version('embedmill')}")
    context.exit()


@click.group(cls=Programs, epilog="\b\nExample:\n  embedmill embed reviews.csv --model all-MiniLM-L6-v2")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Verified embeddings of a text dataset.

    embed needs nothing else. The other commands are for engines and jobs that you look after yourself, with a Redis
    (EMBEDMILL_REDIS_URL) and as many workers as you like.
    """


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExample:\n  EMBEDMILL_REDIS_URL=redis://redis.example.org:6379/0 embedmill worker",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF CELERY'S WORKER]")
def worker(options: tuple[Any, ...]) -> None:
    """Compute the batches of every job on the Redis of EMBEDMILL_REDIS_URL, until it is stopped.

    It is Celery's worker, and takes its options.
    """
    command = python("-m", "worker", *map(str, options))
    os.execve(command[0], command, os.environ | python_path())
