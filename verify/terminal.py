"""What a run of the verifier shows: what it does, and the verdict."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from contract.store import Location
from contract.verdict import FILE, Figures, Verdict, repairs, summary
from contract.words import count
from verify.comparison import excerpt

_NAMED = 20
"""Failing rows that are listed."""
_TEXT = 60
"""Characters of a row's text that are shown."""


class Shown(Protocol):
    """Takes what the verifier does, as it does it."""

    def doing(self, what: str) -> AbstractContextManager[object]:
        """Something is done in the ``with`` block, such as ``counting rows``."""

    def comparing(self, rows: int) -> AbstractContextManager[Callable[[], None]]:
        """So many rows are compared in the ``with`` block; yields what is called for each of them."""

    def judged(self, verdict: Verdict, folder: Location) -> None:
        """There is a verdict on the job in this folder."""

    def reported(self, report: Location) -> None:
        """The report is written."""


class Terminal:
    """Shows what is done on stderr if that is a terminal, and the verdict on stdout."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False)

    def doing(self, what: str) -> AbstractContextManager[object]:
        return self._console.status(f"{what} …")

    @contextmanager
    def comparing(self, rows: int) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            yield functools.partial(bar.advance, bar.add_task("encode() in FP32", total=rows))

    def judged(self, verdict: Verdict, folder: Location) -> None:
        show(verdict, folder, Console(markup=False))

    def reported(self, report: Location) -> None:
        Console().print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)


def show(verdict: Verdict, folder: Location, console: Console) -> None:
    """Print figures by length, checks, failing rows, the verdict in one line, and how to repair what is at fault."""
    if verdict.compared:
        console.print(_strata_table(verdict))
    console.print(_check_table(verdict))
    for row in verdict.failing_rows[:_NAMED]:
        console.print(Text(f"row {row.row_id}: {row.problem}: {excerpt(row.text, _TEXT)}"), soft_wrap=True)
    if (more := verdict.failing - _NAMED) > 0:
        named = f"{FILE} has {len(verdict.failing_rows):,} of the {verdict.failing:,}"
        console.print(f"and {count(more, 'more row')}; {named}", highlight=False)
    lines = [summary(verdict, folder), *repairs(verdict, folder)]
    console.print(Text("\n".join(lines), style="green" if verdict.passed else "red"), soft_wrap=True)


def _strata_table(verdict: Verdict) -> Table:
    title = f"{count(verdict.compared, 'row')} of {verdict.job} against PyTorch FP32"
    table = Table(title=title, title_justify="left")
    # Broken by hand: rich breaks words in a terminal of 80 columns.
    for name in ("tokens", "rows", "MSE", "relative\nMSE", "lowest\ncosine", "largest\ndifference", "non-\nfinite"):
        table.add_column(name, justify="right")
    for figures in verdict.strata:
        table.add_row(*_cells(figures))
    table.add_section()
    table.add_row(*_cells(verdict.total))
    return table


def _cells(figures: Figures) -> list[str]:
    return [
        figures.tokens,
        f"{figures.rows:,}",
        small(figures.mse),
        small(figures.relative_mse),
        cosine(figures.min_cosine),
        small(figures.max_difference),
        f"{figures.non_finite:,}",
    ]


def small(number: float | None) -> str:
    """Such as ``2.5e-13``; a dash for a figure that is no number."""
    return "–" if number is None else f"{number:.1e}"


def cosine(number: float | None) -> str:
    """Such as ``0.9999998``; a dash for a figure that is no number."""
    return "–" if number is None else f"{number:.7f}"


def _check_table(verdict: Verdict) -> Table:
    table = Table("check", "result", "", title="Checks", title_justify="left")
    for check in verdict.checks:
        result = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(check.name, result, Text(check.detail))
    return table
