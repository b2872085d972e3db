"""``embedmill export``."""

import sys
import time
from collections.abc import Callable

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.entry import importing
from contract.errors import Interrupted, UserError
from contract.jobs import find_job
from contract.words import count
from embedmill.display import display_on
from embedmill.events import EXPORT_STEPS, Event
from embedmill.export.check import LEAST, NEIGHBOURS, Checked, check, wrong_batches
from embedmill.export.opener import opener
from embedmill.export.source import Source, source_of
from embedmill.export.target import Target

_EPILOG = """\b
Examples:
  embedmill export --to lance:reviews.lance
  embedmill export reviews-train-0123456789 --to faiss:reviews-index
  embedmill export --to postgresql://me@db.example.org/shop --table reviews

Lance takes the extra lance, FAISS the extra faiss, PostgreSQL the extra pgvector: pip install 'embedmill[lance]'.
PGPASSWORD or ~/.pgpass has the password. Running the same command again goes on where it was. The exit status is 0 if
every row and every vector looked at is there and the index finds 95 % of the nearest rows, else 1.
"""


@click.command("export", epilog=_EPILOG)
@click.argument("job", required=False)
@click.option(
    "--to", required=True, metavar="TARGET", help="lance:FOLDER, faiss:FOLDER or postgresql://USER@HOST/DATABASE."
)
@click.option("--table", metavar="NAME", help="PostgreSQL's table; made if need be.  [default: the job's id, with _]")
@click.option("--columns", metavar="NAMES", help="Which kept columns go along, such as title,stars.  [default: all]")
@click.option("--unverified", is_flag=True, help="Export a job that is not verified.")
def main(job: str | None, to: str, table: str | None, columns: str | None, unverified: bool) -> None:
    """Put the vectors of JOB where they are searched, with an index, row ids and kept columns, and check the result.

    JOB is a job's folder, id or name; without it, the latest job. Rows without a vector are left out, and counted.
    Afterwards the target's rows are counted, a sample of vectors is read back, and the neighbours that the index finds
    are compared with an exact search.
    """
    with importing():
        opened = opener(to, table)
    names = None if columns is None else [name for part in columns.split(",") if (name := part.strip())]
    source = source_of(find_job(job), names, unverified=unverified)
    _say_form(source)
    began = time.monotonic()
    try:
        with opened(source) as target:
            index, checked = _export(source, target)
            _show(source, target, index, checked, time.monotonic() - began)
    except KeyboardInterrupt:
        raise Interrupted("interrupted", hint="run the same command again to go on") from None
    if not checked.passed:
        sys.exit(1)


def _say_form(source: Source) -> None:
    dtype = source.job.form.dtype
    if dtype != "float32":
        means = {"float16": "", "int8": ": of each element the middle of its step", "binary": ": 1 and -1"}[dtype]
        click.echo(f"The job's {dtype} vectors are exported as float32{means}.", err=True)


def _export(source: Source, target: Target) -> tuple[str, Checked]:
    with display_on(Console(stderr=True, markup=False), EXPORT_STEPS) as display:
        missing = _missing(source, target)
        _copy(source, target, missing, display.show)
        display.show(Event("index", "building"))
        index = target.build_index(lambda text: display.show(Event("index", text)))
        display.show(Event("index", index, ended=True))
        display.show(Event("check", "searching exactly, and by the index"))
        checked = check(target, source)
        display.show(Event("check", "passed" if checked.passed else "failed", ended=True))
    return index, checked


def _missing(source: Source, target: Target) -> list[int]:
    """The batches that have rows which the target does not have.

    Raises:
        UserError: it has others than the job.
    """
    there = target.present()
    missing = wrong_batches(there, source)
    if strange := [batch for batch in missing if batch in there]:
        raise UserError(
            f"{target} has {count(there[strange[0]], 'row')} of batch {strange[0]}",
            f"job {source.job.id} has another number: it was changed since, or something else writes there",
            "remove the target and run the same command again",
        )
    return list(missing)


def _copy(source: Source, target: Target, missing: list[int], show: Callable[[Event], None]) -> None:
    done = source.total - sum(source.expected[batch] for batch in missing)
    before = f"{done:,} were there" if done else ""
    if missing:
        show(Event("copy", before, done, source.total))
    for batch in missing:
        target.add(source.read(batch))
        done += source.expected[batch]
        show(Event("copy", "", done, source.total))
    show(Event("copy", before, done, source.total, ended=True))


def _show(source: Source, target: Target, index: str, checked: Checked, seconds: float) -> None:
    table = Table("job", source.job.id, title="Exported", title_justify="left")
    for name, value in _facts(source, target, index, checked).items():
        table.add_row(name, Text(value))
    table.add_row("seconds", f"{seconds:,.1f}")
    console = Console(markup=False)
    console.print(table)
    verdict = "Checked" if checked.passed else "Failed"
    console.print(f"{verdict}: {_line(checked)}", style="green" if checked.passed else "red", soft_wrap=True)
    console.print(f"Open it: {target.usage}", highlight=False, soft_wrap=True)


def _facts(source: Source, target: Target, index: str, checked: Checked) -> dict[str, str]:
    without = source.job.rows - source.total
    recall = "-" if checked.recall is None else f"{checked.recall:.3f} with {target.setting} {checked.setting}"
    return {
        "to": str(target),
        "rows": f"{checked.rows:,} of {checked.expected:,}",
        "without a vector": f"{without:,}, left out",
        "columns": ", ".join(["row_id", "embedding", *source.columns.names]),
        "index": index,
        "read back": f"{count(checked.compared, 'vector')}, {len(checked.differing):,} different",
        f"recall@{NEIGHBOURS}": recall,
    }


def _line(checked: Checked) -> str:
    """What was found, or everything that is wrong."""
    wrong = []
    if checked.wrong_batches:
        batches = count(len(checked.wrong_batches), "batch", "batches")
        wrong.append(f"{count(checked.rows, 'row')} there, {checked.expected:,} in the job, {batches} wrong")
    if checked.differing:
        wrong.append(f"{count(len(checked.differing), 'vector')} different, the first is row {checked.differing[0]}")
    if checked.recall is not None and checked.recall < LEAST:
        wrong.append(f"the index finds {checked.recall:.1%} of the nearest rows, expected {LEAST:.0%}")
    return "; ".join(wrong) or f"{count(checked.rows, 'row')} there, none twice, and the index finds them"
