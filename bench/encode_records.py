"""The records of ``bench.encode``, as lines of its JSON file and as a table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from bench.encode_runs import Run
from contract.compare import TOLERANCES

MIN_COSINE = TOLERANCES["fp32"].min_cosine
"""Of a row with the same row of sentence-transformers."""


@dataclass(frozen=True)
class EncodeRecord:
    """One line of the JSON file."""

    dataset: str
    model: str
    machine: str
    cores: int
    date: str
    python: str
    versions: dict[str, str]
    rows: int
    tokens: int
    """After truncation, padding not counted."""
    max_length: int
    batch: str = ""
    computed_tokens: int | None = None
    """Padding counted; None where the system does not say."""
    min_cosine: float | None = None
    """The lowest cosine of a row with the same row of sentence-transformers."""
    rows_below: int | None = None
    """Rows whose cosine is below 0.99999."""
    system: str = ""
    what: str = ""
    """What was timed."""
    seconds: tuple[float, ...] = ()
    """Of each run; the rates are of their median."""
    cores_taken: tuple[float, ...] = ()
    """How many cores other processes kept busy on average during each run: well below 0.1, or it says little."""
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0

    def timed(self, system: str, what: str, runs: Sequence[Run], seconds: Sequence[float]) -> "EncodeRecord":
        """This record for one system; ``seconds`` are what counts of each of the runs."""
        middle = statistics.median(seconds)
        return replace(
            self,
            system=system,
            what=what,
            seconds=tuple(round(value, 3) for value in seconds),
            cores_taken=tuple(round(run.cores_taken, 2) for run in runs),
            rows_per_s=round(self.rows / middle, 2),
            tokens_per_s=round(self.tokens / middle, 1),
        )


def show(records: Sequence[EncodeRecord]) -> None:
    """Print the records of one dataset, sentence-transformers' first and the whole job's last."""
    first = records[0]
    table = Table(
        title=f"{first.rows:,} rows, {first.tokens:,} tokens of {first.dataset}, {first.model}, FP32, at most "
        f"{first.max_length} tokens a row\n{first.cores} cores: {first.machine}",
        title_justify="left",
    )
    table.add_column("system")
    for name in ("rows/s", "tokens/s", "seconds", "ratio"):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            record.system,
            f"{record.rows_per_s:,.1f}",
            f"{record.tokens_per_s:,.0f}",
            f"{statistics.median(record.seconds):,.1f}",
            f"{record.rows_per_s / first.rows_per_s:.2f}",
        )
    console = Console(highlight=False)
    console.print(table)
    if (busiest := max(taken for record in records for taken in record.cores_taken)) > 0.1:
        console.print(f"Other processes kept up to {busiest:.1f} cores busy: measure again on a quiet machine")
    ours = records[-1]
    console.print(f"Same vectors: lowest cosine {ours.min_cosine:.7f}; rows below {MIN_COSINE}: {ours.rows_below}")
    console.print(", ".join(f"{name} {number}" for name, number in first.versions.items()), style="dim")
