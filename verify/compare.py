"""``python -m verify.compare`` and ``embedmill compare``: how far one job is from another one of the same rows."""

import sys

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contract.errors import UserError
from contract.jobs import find_job
from contract.store import Location
from verify.command import ALL, SampleSize
from verify.compare_jobs import compare_jobs
from verify.comparison import excerpt
from verify.difference import Difference
from verify.two_jobs import Side

_EPILOG = """\b
Examples:
  embedmill compare reviews-float32 reviews-int8
  embedmill compare output/reviews-train-0123456789 output/reviews-train-9876543210 --least 0.99
  embedmill compare reviews-v1 reviews-v2 --sample 2000 --json

The page and the figures are also written into the second job's folder, as compare-<first job>.html and .json. The exit
status is 0 if at least --least of the neighbours are kept, else 1.
"""

_TEXT = 60
"""Characters of a row's text that are shown."""
_ROWS = 5
"""Rows that differ most that are shown."""


@click.command("compare", epilog=_EPILOG)
@click.argument("first")
@click.argument("second")
@click.option("--sample", type=SampleSize(), default=512, show_default=True, help="Rows whose neighbours are compared.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, another sample.")
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="The share of neighbours that must be kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(first: str, second: str, sample: int, seed: int, least: float, as_json: bool) -> None:
    """Compare two jobs of the same rows: with other forms, engines or models.

    FIRST and SECOND are jobs' folders, ids or names. For a sample of the rows the 10 nearest ones are found in each
    job, by comparing with every row; what counts is how many are the same. Where the vectors have equally many
    elements, the cosine of each row's two vectors is told too.
    """
    left, right = find_job(first), find_job(second)
    if left.folder == right.folder:
        raise UserError(f"{first} and {second} are the same job", hint="give two")
    console = Console(stderr=True, markup=False)
    with console.status("reading every vector, and searching …"):
        found = compare_jobs(
            Side(left), Side(right), sample=left.rows if sample == ALL else sample, seed=seed, least=least
        )
    report = _write(found, right.folder)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        _show(found, Console(markup=False))
        click.echo(f"Report: {report}")
    if not found.passed:
        sys.exit(1)


def _write(found: Difference, folder: Location) -> Location:
    from verify.compare_page import compare_page  # here, because matplotlib takes a second to import

    name = f"compare-{found.left.job}"
    report = folder / f"{name}.html"
    try:
        (folder / f"{name}.json").put(f"{found.model_dump_json(indent=2)}\n".encode())
        report.put(compare_page(found).encode())
    except OSError as error:
        raise UserError(f"{report} cannot be written ({error.strerror})", hint="make the folder writable") from None
    return report


def _show(found: Difference, console: Console) -> None:
    from verify.compare_page import facts

    table = Table("", found.left.job, found.right.job, title="Compared", title_justify="left")
    for name, left, right in (
        ("engine", found.left.engine, found.right.engine),
        ("kept as", found.left.form, found.right.form),
        ("elements", f"{found.left.elements:,}", f"{found.right.elements:,}"),
    ):
        table.add_row(name, Text(left), Text(right))
    console.print(table)
    figures = Table("figure", "", title="Figures", title_justify="left")
    for name, value in facts(found).items():
        figures.add_row(name, value)
    console.print(figures)
    for row in found.worst[:_ROWS]:
        text = excerpt(row.text, _TEXT)
        console.print(Text(f"row {row.row} keeps {row.kept} of {found.neighbours}: {text}"), soft_wrap=True)
    console.print(Text(found.answer, style="green" if found.passed else "red"), soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="python -m verify.compare")
