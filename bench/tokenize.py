"""``python -m bench.tokenize``: the rows that the producer's tokenizing processes make in a second, and where it goes.

No worker: batches are made as the producer makes them, and put into a Redis of its own.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

from bench.machine import machine
from bench.texts import JARGON, KINDS, write
from contract.batch import Batch
from contract.engines import load_engine
from contract.job import Job
from contract.redis.claims import Claims
from contract.redis.working import WorkerLedger
from contract.settings import settings
from contract.store import location
from embedmill.processes import redis_server
from producer.batches import Work, batch_of
from producer.dataset import open_dataset
from producer.texts import DatasetSource, TextDataset
from producer.tokenizer import RowTokenizer, open_tokenizer, tokenizer_from
from producer.tokenizing import Made, tokenizing_apart

_EPILOG = """\b
Examples:
  python -m bench.tokenize --processes 1,2,4,8,16 --json docs/benchmarks/tokenize.json
  python -m bench.tokenize --engine bert-base-cased --kind short

The processes are started and warm before the clock runs. Without --engine a WordPiece tokenizer is trained on the
Jargon File first.
"""

_PROCESSES_DEFAULT = "1,2,4,8,16"
_VERSIONS = ("tokenizers", "numpy", "pyarrow", "datasets")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Record:
    """One line of the JSON file."""

    system: str
    dataset: str
    machine: str
    cores: int
    date: str
    versions: dict[str, str]
    rows: int
    processes: int
    batch: int
    """Rows of a batch."""
    seconds: float
    rows_per_s: float
    tokens_per_s: float
    """After truncation, padding not counted."""
    per_core: float
    """Rows/s of one process of these, against one process alone."""
    stages: dict[str, float]
    """Processor seconds of one batch in one process, by what it is spent on; medians."""


@click.command(epilog=_EPILOG)
@click.option("--processes", default=_PROCESSES_DEFAULT, show_default=True, help="Numbers of processes, with commas.")
@click.option("--kind", type=click.Choice(list(KINDS)), default="reviews", show_default=True, help="See bench.texts.")
@click.option("--batches", type=click.IntRange(min=4), default=12, show_default=True, help="Batches for each process.")
@click.option("--batch-rows", type=click.IntRange(min=1), default=1024, show_default=True, help="Rows of a batch.")
@click.option("--engine", help="Whose tokenizer.  [default: one that is trained on the Jargon File]")
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Where the records go.")
def main(processes: str, kind: str, batches: int, batch_rows: int, engine: str | None, target: Path | None) -> None:
    """Measure the producer's tokenizing processes on a dataset that bench.texts makes."""
    try:
        numbers = sorted({int(number) for number in processes.split(",")})
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas, such as {_PROCESSES_DEFAULT}") from None
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as name:
        folder = Path(name)
        tokenizer = open_tokenizer(load_engine(engine)) if engine else _trained(folder)
        file = folder / f"{kind}.parquet"
        write(file, kind, batch_rows * batches * max(numbers))
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        dataset = open_dataset(DatasetSource(str(file)))
        works = {n: Work(_job(dataset, n * batches * batch_rows, batch_rows), dataset, tokenizer) for n in numbers}
        stages = _stages(works[numbers[0]])
        records: list[Record] = []
        for number, work in works.items():
            seconds, tokens = _measure(work, number)
            each = work.job.rows / seconds / number
            records.append(
                Record(
                    system=f"tokenizing, {number} {'process' if number == 1 else 'processes'}",
                    dataset=kind,
                    machine=machine(),
                    cores=len(os.sched_getaffinity(0)),
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    versions={"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
                    rows=work.job.rows,
                    processes=number,
                    batch=batch_rows,
                    seconds=round(seconds, 3),
                    rows_per_s=round(each * number, 1),
                    tokens_per_s=round(tokens / seconds, 1),
                    per_core=round(each * records[0].processes / records[0].rows_per_s, 3) if records else 1.0,
                    stages=stages,
                )
            )
    _show(records)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n", encoding="utf-8")


def _measure(work: Work, processes: int) -> tuple[float, int]:
    """Seconds and tokens of all of a job's batches."""
    with redis_server() as url:
        os.environ["EMBEDMILL_REDIS_URL"] = url
        settings.cache_clear()
        ledger, everything = WorkerLedger(patience=5), range(work.job.batches)
        claims = Claims(work.job, ledger.connection)
        with claims.joined(), tokenizing_apart(work, processes) as source:
            claims.claim(everything, len(everything))
            # Each process makes a batch before the clock runs, which starts them and warms them up.
            for made in [source.make(batch) for batch in everything[: source.ahead]]:
                made.result()
            todo = list(everything)
            making, putting = set[Future[Made]](), set[Future[bool]]()
            began = time.perf_counter()
            while todo or making or putting:
                while todo and len(making) + len(putting) < source.ahead:
                    making.add(source.make(todo.pop()))
                both: list[Future[Any]] = [*making, *putting]
                wait(both, return_when=FIRST_COMPLETED)
                ready = {one for one in making if one.done()}
                putting = {put for put in putting if not put.done()} | {
                    one.result().put(claims.producer) for one in ready
                }
                making -= ready
            seconds = time.perf_counter() - began
        payloads = (ledger.fetch(work.job.key, batch) for batch in everything)
        return seconds, sum(int(Batch.from_bytes(payload or b"").lengths.sum()) for payload in payloads)


def _job(dataset: TextDataset, rows: int, batch_rows: int) -> Job:
    """Of which no folder is made."""
    return Job.create(
        location("/none"),
        dataset=dataset.dataset,
        config=None,
        split=dataset.split,
        text=dataset.text,
        revision=dataset.revision,
        limit=rows,
        prefix="",
        engine="none",
        fingerprint="none",
        rows=rows,
        batch_rows=batch_rows,
    )


def _stages(work: Work) -> dict[str, float]:
    """Processor seconds of a batch in this process, on one core, by what they are spent on; medians of five batches."""
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, call: Callable[..., Result], *arguments: object) -> Result:
        began = time.process_time()
        result = call(*arguments)
        seconds.setdefault(stage, []).append(time.process_time() - began)
        return result

    rows = work.tokenizer
    for number in range(min(5, work.job.batches)):
        texts = timed("dataset", work.texts.texts, work.job.row_range(number))
        present = [text for text in texts if text is not None]
        timed("Rust on whole texts, for comparison", rows.tokenizer.encode_batch_fast, present)
        timed("token ids, some words new", _ids, rows, present)
        timed("token ids, all words known", _ids, rows, present)
        batch = timed("joining", batch_of, work.job, number, texts, rows)
        timed("padding, Arrow and LZ4", batch.to_bytes, rows.length, rows.pad_id)
    found = {stage: statistics.median(times) for stage, times in seconds.items()}
    found["joining"] -= found["token ids, all words known"]  # which it begins with
    return {stage: round(value, 5) for stage, value in found.items()}


def _ids(rows: RowTokenizer, texts: Sequence[str]) -> list[bytes]:
    return list(rows.ids(texts))


def _trained(folder: Path) -> RowTokenizer:
    """A WordPiece tokenizer that gives the Jargon File as many tokens as BERT's does."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries = [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()]
    trainer = WordPieceTrainer(vocab_size=8000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(entries, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer_from(folder / "tokenizer.json", 512, special.index("[PAD]"))


def _show(records: list[Record]) -> None:
    first = records[0]
    console = Console(highlight=False)
    table = Table(title=f"{first.dataset} in batches of {first.batch}, {first.cores} cores: {first.machine}")
    for name in ("processes", "rows/s", "tokens/s", "per core"):
        table.add_column(name, justify="right")
    for record in records:
        rates = f"{record.rows_per_s:,.0f}", f"{record.tokens_per_s:,.0f}", f"{record.per_core:.2f}"
        table.add_row(str(record.processes), *rates)
    console.print(table)
    console.print("ms of one batch:", ", ".join(f"{stage} {1000 * value:.1f}" for stage, value in first.stages.items()))


if __name__ == "__main__":
    main(prog_name="python -m bench.tokenize")
