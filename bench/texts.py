"""``python -m bench.texts``: a dataset of as many rows as are asked for, out of the Jargon File and a seed.

A row is a run of consecutive words from a place in the Jargon File. Only the rows' lengths imitate another dataset;
they follow a log-normal distribution:

``reviews``
    IMDB-like: a median of 253 tokens, 15 % over 512, and so a mean of 280 once they are truncated there
``short``
    a mean of 40 tokens
"""

import csv
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pyarrow as pa
import pyarrow.parquet as pq

_EPILOG = """\b
Examples:
  python -m bench.texts build/reviews.csv --rows 10000
  python -m bench.texts build/short.parquet --kind short --rows 1000000 --seed 7

The file is written as it is made: memory does not grow with the rows. The same arguments give the same file.
"""

JARGON = Path(__file__).resolve().parent.parent / "examples" / "jargon.jsonl"

_TOKENS_PER_WORD = 1.52
"""Of the Jargon File's words, under BERT's uncased WordPiece."""

_CHUNK = 4096
"""Rows that are in memory at once."""


class Lengths(NamedTuple):
    """A log-normal distribution of tokens in a row."""

    median: float
    sigma: float


KINDS = {
    "reviews": Lengths(253.0, 0.68),
    "short": Lengths(35.3, 0.5),
}


@click.command(epilog=_EPILOG)
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--kind", type=click.Choice(list(KINDS)), default="reviews", show_default=True, help="The rows' lengths.")
@click.option("--rows", type=click.IntRange(min=1), default=10_000, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Decides the rows.")
def main(target: Path, kind: str, rows: int, seed: int) -> None:
    """Write a csv or parquet file TARGET with a column `text`."""
    if target.suffix not in WRITERS:
        raise click.BadParameter(f"expected a file name that ends with {' or '.join(WRITERS)}", param_hint="target")
    write(target, kind, rows, seed)
    click.echo(f"{target}: {rows:,} rows, {target.stat().st_size / 1e6:,.1f} MB")


def write(target: Path, kind: str, rows: int, seed: int = 0) -> None:
    """Write a dataset of ``KINDS``; the file's suffix says its format.

    Args:
        target: ``.csv`` or ``.parquet``.
        kind: a key of ``KINDS``.
        rows: how many.
        seed: decides the rows; the first ``n`` of them do not depend on ``rows``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[target.suffix](target, texts(kind, rows, seed))


def texts(kind: str, rows: int, seed: int = 0) -> Iterator[str]:
    """The rows of a dataset one after the other; arguments as ``write``."""
    lines = JARGON.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    chance, lengths = random.Random(seed), KINDS[kind]
    for _ in range(rows):
        tokens = chance.lognormvariate(math.log(lengths.median), lengths.sigma)
        count = max(1, round((tokens - 2) / _TOKENS_PER_WORD))  # two tokens are the special ones
        start = chance.randrange(len(words))
        run = words[start : start + count]
        while len(run) < count:  # past the end it goes on at the beginning
            run += words[: count - len(run)]
        yield " ".join(run)


def _write_csv(target: Path, rows: Iterator[str]) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([row] for row in rows)


def _write_parquet(target: Path, rows: Iterator[str]) -> None:
    with pq.ParquetWriter(target, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        while chunk := list(itertools.islice(rows, _CHUNK)):
            writer.write_table(pa.table({"text": chunk}))


WRITERS: dict[str, Callable[[Path, Iterator[str]], None]] = {".csv": _write_csv, ".parquet": _write_parquet}
"""How a file of this suffix is written."""


if __name__ == "__main__":
    main(prog_name="python -m bench.texts")
