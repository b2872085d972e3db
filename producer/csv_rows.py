"""A csv file's rows by Python's ``csv``, for its first ones and for what is wrong with others."""

import contextlib
import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from producer.bytestream import opened


def csv_rows(file: Path, separator: str) -> Iterator[list[str]]:
    """A file's rows, as far as they are asked for, without blank lines."""
    with opened(file, quiet=True) as source, any_field_size():
        yield from (row for row in csv.reader(as_text(source), delimiter=separator) if row)


def as_text(source: io.BufferedReader) -> io.TextIOWrapper:
    return io.TextIOWrapper(source, encoding="utf-8", errors="replace", newline="")


@contextlib.contextmanager
def any_field_size() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
