"""``python -m bench.texts``: a dataset of as many rows as are asked for, out of several books and a seed.

A row is a run of consecutive words from a place in the Jargon File or in the documentation of one of a few Python
packages: some 40,000 different words, so that new ones turn up all the time, as in real texts. Only the rows' lengths
imitate another dataset; they follow a log-normal distribution:

``reviews``
    IMDB-like: a median of 253 tokens, 15 % over 512, and so a mean of 280 once they are truncated there
``short``
    a mean of 40 tokens
``documents``
    a mean of 4,000 tokens, most of them between 3,200 and 5,000
"""

import csv
import functools
import importlib.util
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pyarrow as pa
import pyarrow.parquet as pq

from contract.errors import UserError

_EPILOG = """\b
Examples:
  python -m bench.texts build/reviews.csv --rows 10000
  python -m bench.texts build/short.parquet --kind short --rows 1000000 --seed 7

The file is written as it is made: memory does not grow with the rows. The same arguments and the same versions of the
packages give the same file.
"""

JARGON = Path(__file__).resolve().parent.parent / "examples" / "jargon.jsonl"

DOCUMENTED = ("numpy", "pandas", "pyarrow", "datasets", "transformers")
"""Packages whose documentation is read: the strings in triple quotes of their modules."""

_TOKENS_PER_WORD = 1.37
"""Of all books' words, each as often, under BERT's uncased WordPiece."""
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[.,;:!?]?(?=\s)")

_CHUNK = 4096
"""Rows that are in memory at once."""


class Lengths(NamedTuple):
    """A log-normal distribution of tokens in a row."""

    median: float
    sigma: float


KINDS = {
    "reviews": Lengths(253.0, 0.68),
    "short": Lengths(35.3, 0.5),
    "documents": Lengths(4_000.0, 0.1),
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
    chance, lengths, every = random.Random(seed), KINDS[kind], books()
    for _ in range(rows):
        tokens = chance.lognormvariate(math.log(lengths.median), lengths.sigma)
        count = max(1, round((tokens - 2) / _TOKENS_PER_WORD))  # two tokens are the special ones
        words = chance.choice(every)
        start = chance.randrange(len(words))
        run = words[start : start + count]
        while len(run) < count:  # past the end it goes on at the beginning
            run += words[: count - len(run)]
        yield " ".join(run)


@functools.cache
def books() -> list[list[str]]:
    """Each book's words.

    Raises:
        UserError: one of the packages is not installed.
    """
    lines = JARGON.read_text(encoding="utf-8").splitlines()
    return [" ".join(json.loads(line)["text"] for line in lines).split(), *map(_documentation, DOCUMENTED)]


def _documentation(package: str) -> list[str]:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{package} is not installed, whose documentation is read", hint=f"pip install {package}")
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.py"))
    strings = (
        text
        for file in files
        for text in re.findall(r'"""(.*?)"""', file.read_text(encoding="utf-8", errors="ignore"), re.DOTALL)
    )
    return [word for text in strings for word in _WORD.findall(text)]


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
