"""The dataset read twice: by the producer's reader, and by a second one that shares no code with it.

Where the two differ one of them is wrong, and the vectors may be of a wrong text: the job fails, and both values are
shown.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.blank import unless_blank
from contract.findings import Findings
from contract.job import Job
from contract.words import count
from producer.texts import TextDataset
from verify.source import read_source
from verify.values import same, value_at

_SHOWN = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Readings:
    """Rows of a dataset by the second reader, and how the producer's reader differs from it."""

    reader: str
    """The second reader, such as ``Python's csv``."""
    rows: int
    """How many rows the second reader counts, of those that the job's limit leaves."""
    texts: Mapping[int, str | None]
    """Row id → text without the prefix; None where there is none or a blank one, which has no vector."""
    kept: Mapping[int, Sequence[Any]]
    """Row id → the values of the columns that are carried into the shards."""
    differing: Findings
    """Rows that the two readers read differently, with both values."""


def read_twice(job: Job, texts: TextDataset, wanted: Collection[int]) -> Readings:
    """Read some rows by both readers; the second one also counts all rows.

    Args:
        job: the job.
        texts: its dataset as the producer reads it.
        wanted: row ids.

    Raises:
        UserError: the second reader cannot read the dataset.
    """
    source = read_source(job, wanted)
    differing: list[str] = []
    for row in sorted(wanted):
        (text,), kept = texts.read(range(row, row + 1))
        first = [text, *(value_at(values, 0) for values in kept.values())]
        second = source.wanted.get(row)
        if second is None:
            differing.append(f"row {row}: {source.reader} has no such row")
            continue
        for name, left, right in zip(("text", *kept), first, (second.text, *second.kept), strict=True):
            if not same(left, right):
                differing.append(f"row {row}, {name}: {_shown(left)}, by {source.reader} {_shown(right)}")
    return Readings(
        reader=source.reader,
        rows=min(job.limit or source.rows, source.rows),
        texts={number: unless_blank(row.text) for number, row in source.wanted.items()},
        kept={number: row.kept for number, row in source.wanted.items()},
        differing=Findings.of(differing),
    )


def _shown(value: Any) -> str:
    """A value on one line; of a long one the beginning and the number of characters."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({count(len(text), 'character')})"
