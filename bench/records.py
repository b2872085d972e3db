"""``docs/benchmarks/job.json``: one record for each system that was measured on a dataset on a machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Record:
    """One line of the JSON file."""

    system: str
    dataset: str
    machine: str
    model: str
    date: str
    rows: int
    seconds: float
    rows_per_s: float
    tokens_per_s: float
    """After truncation, padding not counted."""
    batch: str
    runtime: str = ""
    job_to_engine: float | None = None
    """Rows/s between the first batch's arrival and the last commit, against the engine's own."""
    whole_to_engine: float | None = None
    """``rows_per_s``, which has the producer's start and end in it, against the engine's own."""
    before: float | None = None
    """Seconds from the producer's start to the first batch's arrival at a worker: the dataset is opened in them."""
    first_shard: float | None = None
    """Seconds from the producer's start to the first shard's commit."""
    after: float | None = None
    """Seconds from the last commit to the producer's end."""
    gpus: int = 0
    """That were busy in the job."""
    gpu_busy: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of a batch."""
    memory: dict[str, float] = field(default_factory=dict)
    """MB; see ``bench.watched.Watched.memory``."""
    producer_cpu: float | None = None
    """Seconds of processor time that the producers took, tokenizing included."""
    worker_cpu: float | None = None
    """Seconds of processor time that the workers took, their start included."""
    batches: int | None = None
    """Of the job."""
    made: int | None = None
    """Batches that several producers tokenized, all together, without what one that was killed had made."""
    recovery: float | None = None
    """Seconds from a worker's kill to the next shard's commit, its start again included."""
    wire_bytes: float | None = None
    """Of a row, on its way through Redis."""
    shard_bytes: float | None = None
    """Of a row, in its shard."""
    hidden: int = 0
    """Width of a vector."""
    workers: int = 0
    children: int = 0
    """Of all workers together."""
    verified: bool | None = None
    """None where it was not asked."""
    verification: dict[str, float] = field(default_factory=dict)
    """Of ``python -m verify``: rows that were computed again, their lowest cosine, its seconds, its memory in MB."""

    @property
    def key(self) -> tuple[object, ...]:
        """What a later measurement of the same thing has too."""
        what = (self.dataset, self.model, self.rows, self.batches, self.system)
        return (self.machine, *what, self.workers, self.children, self.gpus)


def store(records: Sequence[Record], target: Path) -> None:
    """Put records into the file, each in the place of an earlier one of the same thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    earlier = load(target) if target.exists() else []
    kept = {record.key: record for record in (*earlier, *records)}
    target.write_text(json.dumps([asdict(record) for record in kept.values()], indent=2) + "\n", encoding="utf-8")


def load(file: Path) -> list[Record]:
    """The file's records."""
    return [Record(**record) for record in json.loads(file.read_text(encoding="utf-8"))]


def show(records: Sequence[Record]) -> None:
    """Tables, one for each dataset and size; the ratio is to sentence-transformers at its best."""
    console = Console(highlight=False, width=120)
    for dataset, model, rows in dict.fromkeys((record.dataset, record.model, record.rows) for record in records):
        these = [record for record in records if (record.dataset, record.model, record.rows) == (dataset, model, rows)]
        base = max((record.rows_per_s for record in these if record.system.startswith("sentence-")), default=None)
        table = Table(title=f"{dataset}, {rows:,} rows, {model}: {these[0].machine}", title_justify="left")
        table.add_column("system", no_wrap=True)
        for name in ("batch", "rows/s", "tokens/s", "ratio", "of the engine", "GPU busy"):
            table.add_column(name, justify="right")
        for record in these:
            table.add_row(
                record.system,
                record.batch,
                f"{record.rows_per_s:,.1f}",
                f"{record.tokens_per_s:,.0f}",
                f"{record.rows_per_s / base:.2f}" if base else "-",
                f"{100 * record.job_to_engine:.1f} %" if record.job_to_engine else "-",
                f"{100 * record.gpu_busy:.1f} %" if record.gpu_busy else "-",
            )
        console.print(table)
        for record in these:
            if record.stages:
                stages = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in record.stages.items())
                console.print(f"{record.system}: ms of a batch: {stages}")
            if found := record.verification:
                console.print(
                    f"{record.system}: verified: {record.verified}, "
                    + ", ".join(f"{name} {value:,.7g}" for name, value in found.items())
                )
            if record.memory:
                memory = ", ".join(f"{name} {value:,.0f}" for name, value in record.memory.items())
                console.print(f"{record.system}: MB at most: {memory}")
