"""csv files by Python's ``csv``: the separator that fits, and the rows of a file's beginning."""

import contextlib
import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from contract.errors import UserError
from contract.job import CsvDialect
from producer.bytestream import opened

SEPARATORS = (",", ";", "\t", "|")
_SAMPLE = 1 << 20
_SAMPLED_ROWS = 1000


def dialect_of(files: Sequence[Path], name: str, separator: str | None, header: bool) -> CsvDialect:
    """The dialect of a dataset's csv files.

    Raises:
        UserError: several separators are possible, or the files have different ones.
    """
    found: dict[str, Path] = {}
    for file in files:
        text, whole = _sample(file)
        if not text:
            continue
        guess = separator or ("\t" if ".tsv" in file.name.lower() else separator_of(text, whole, str(file)))
        found.setdefault(guess, file)
    if len(found) > 1:
        raise UserError(
            f"the files of {name} have different separators: "
            + ", ".join(f"{guess!r} in {file.name}" for guess, file in found.items()),
            "expected one",
            "name the files of one kind, such as --dataset 'folder/*.tsv'",
        )
    return CsvDialect(separator=next(iter(found), separator or ","), header=header)


def separator_of(text: str, whole: bool, name: str) -> str:
    """What separates the fields of a csv file; "," where there is one column.

    Args:
        text: the file's start.
        whole: whether that is all of it.
        name: the file's, for people.

    Raises:
        UserError: several fit, or the rows have more fields than the header.
    """
    counts = {each: [len(row) for row in _parsed_rows(text, whole, each)] for each in SEPARATORS}
    several = [each for each, fields in counts.items() if fields and fields[0] > 1]
    fit = [each for each in several if len(set(counts[each])) == 1]
    if len(fit) > 1:
        raise UserError(
            f"{name} can be read with the separators {' and '.join(map(repr, fit))}", hint="choose one with --separator"
        )
    if fit or several:
        return fit[0] if fit else max(several, key=lambda each: counts[each][0])
    for each in SEPARATORS[1:]:
        rest = set(counts[each][1:])
        if len(rest) == 1 and rest != {1}:
            raise UserError(
                f"{name}: the header has one field, and the rows have {rest.pop()} with the separator {each!r}",
                "expected as many in both",
                "correct the header, or choose the separator with --separator",
            )
    return ","


def _sample(file: Path) -> tuple[str, bool]:
    with opened(file, quiet=True) as source:
        raw = source.read(_SAMPLE)
    return raw.decode("utf-8", "replace"), len(raw) < _SAMPLE


def _parsed_rows(text: str, whole: bool, separator: str) -> list[list[str]]:
    with any_field_size():
        rows = list(itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), _SAMPLED_ROWS))
    if not whole and 1 < len(rows) < _SAMPLED_ROWS:
        rows.pop()
    return [row for row in rows if row]


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
