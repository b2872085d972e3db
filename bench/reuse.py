"""``python -m bench.reuse``: what ``--reuse`` and identical texts save.

Each job is made by the code of producer and worker in this one process, without Redis, so that its CPU seconds are all
that the job takes. It is verified afterwards.
"""

import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.job import Job
from contract.settings import put
from contract.shard import read_info
from contract.store import location
from contract.verdict import summary
from producer.batches import Work
from producer.dataset import open_dataset
from producer.repeats import repeated_work
from producer.request import JobRequest, resolve
from producer.reuse import index_of
from producer.texts import DatasetSource
from producer.tokenizer import open_tokenizer
from verify.command import run
from verify.terminal import Terminal
from worker.embed import Embedder

_JARGON = Path(__file__).parent.parent / "examples" / "jargon.jsonl"
_WORDS = 12
"""Of a text."""
_SAMPLE = 256
"""Rows that are verified."""


@dataclass(frozen=True)
class Measured:
    """A job, and what it took."""

    dataset: str
    rows: int
    computed: int
    """Texts."""
    cpu_seconds: float
    verdict: str


def texts_of(dice: random.Random, count: int) -> list[str]:
    """Different texts, each of some consecutive words of the Jargon File."""
    words = [word for line in _JARGON.read_text("utf-8").splitlines() for word in json.loads(line)["text"].split()]
    starts = dice.sample(range(len(words) - _WORDS), count)
    return [f"{number}: {' '.join(words[start : start + _WORDS])}" for number, start in enumerate(starts)]


def measure(
    name: str, texts: list[str], folder: Path, spec: EngineSpec, earlier: tuple[Job, ...]
) -> tuple[Job, Measured]:
    """Make a job of some texts, and verify it."""
    file = folder / f"{name.replace(' ', '-')}.parquet"
    pq.write_table(pa.table({"text": texts}), file)
    source, embedder = DatasetSource(str(file)), Embedder(threads=1)
    embedder.engine(spec.name)
    began = time.process_time()
    opened, tokenizer = open_dataset(source), open_tokenizer(spec)
    request = JobRequest(source, location(folder / "output"), engine=spec.name, reuse=earlier)
    work = Work(resolve(request, opened, spec, tokenizer), opened, tokenizer)
    work.job.save()
    works = [one for one in (repeated_work(work), work) if one]
    for one in works:
        _make(one, embedder)
    seconds = time.process_time() - began
    embedder.close()
    verdict = summary(run(work.job, _SAMPLE, 0, Terminal()), work.job.folder).partition(": /")[0]
    return work.job, Measured(name, work.job.rows, sum(map(_computed, works)), round(seconds, 2), verdict)


def _make(work: Work, embedder: Embedder) -> None:
    work.job.save()
    with index_of(work.job) as index:
        for number in range(work.job.batches):
            embedder.embed(work.job, number, work._replace(known=index).payload(number))


def _computed(work: Work) -> int:
    infos = [read_info(work.job.shard(number)) for number in range(work.job.batches)]
    return sum(info.rows - info.without_text - info.spared for info in infos)


@click.command()
@click.option("--engine", default="minilm", show_default=True)
@click.option("--rows", type=click.IntRange(min=1000), default=20_000, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where the record goes.")
def main(engine: str, rows: int, file: Path | None) -> None:
    """Embed texts, then the same ones of which 1 % are new, also in another order, and texts that come ten times."""
    put(engine=engine)
    spec, dice = load_engine(engine), random.Random(0)
    pool = texts_of(dice, rows + rows // 100)
    first_texts, new = pool[:rows], pool[rows:]
    changed = list(first_texts)
    for place, text in zip(dice.sample(range(rows), len(new)), new, strict=True):
        changed[place] = text
    shuffled = dice.sample(changed, rows)
    often = dice.sample(first_texts[: rows // 10] * 10, rows)
    with tempfile.TemporaryDirectory(prefix="embedmill-") as name:
        folder, found = Path(name), []
        first, one = measure("all new", first_texts, folder, spec, ())
        found.append(one)
        found.append(measure("1 % new", changed, folder, spec, (first,))[1])
        found.append(measure("1 % new in another order", shuffled, folder, spec, (first,))[1])
        found.append(measure("each text ten times", often, folder, spec, ())[1])
    for one in found:
        print(f"{one.dataset}: {one.computed:,} of {one.rows:,} computed, {one.cpu_seconds} CPU seconds; {one.verdict}")
    if file:
        file.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
