"""How many tokens a dataset's texts have, by a sample of its rows, and by how much that may be off."""

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.blank import unless_blank
from contract.job import Job
from producer.batches import Work
from producer.sizing import sampled
from producer.texts import readable
from producer.tokenizer import tokenize_windows

_ALL = 4096
"""Rows up to which a dataset is read as a whole."""
_SLICES, _SLICE = 1024, 16
"""Of a larger one at most so many slices of so many rows."""
_LOOK_EVERY = 64
"""Slices after which it is seen whether they are enough."""
_PRECISION = 0.01
"""The tokens' relative error at which they are."""
_Z = 1.96
"""A normal distribution's 95 % lie within so many standard errors."""
_SEED = 0
_LONGEST = 3


class Figure(NamedTuple):
    """A sum over all rows."""

    value: float
    error: float
    """In 95 of 100 samples the true sum is not farther away; 0 where every row was read."""


class LongRow(NamedTuple):
    """A row that is among the longest of the sample."""

    tokens: int
    """Before truncation."""
    row: int


@dataclass(frozen=True)
class Survey:
    """What a sample says of all rows of a job."""

    rows: int
    """Of the job."""
    read: int
    """Of the sample."""
    tokens: Figure
    """That are embedded: after truncation, or in all windows."""
    truncated: Figure
    """Rows with more tokens than the engine takes, unless long texts have windows."""
    without_text: Figure
    longest: tuple[LongRow, ...]
    """The longest rows of the sample, the longest first."""


@dataclass
class _Found:
    """Of each slice that was read: rows, tokens, truncated rows, rows without a text."""

    slices: list[tuple[int, int, int, int]] = field(default_factory=list)
    longest: list[LongRow] = field(default_factory=list)

    @property
    def read(self) -> int:
        return sum(rows for rows, *_ in self.slices)


def survey(work: Work) -> Survey:
    """Tokenize a sample of a job's rows.

    Raises:
        UserError: a row of the sample cannot be read or tokenized.
    """
    found, job = _Found(), work.job
    for number, rows in enumerate(_slices(job), 1):
        _read(work, rows, found)
        if number % _LOOK_EVERY == 0 and found.read > _ALL:
            tokens = _total(found, 1, job.rows)
            if tokens.error <= _PRECISION * tokens.value:
                break
    tokens, truncated, without_text = (_total(found, column, job.rows) for column in (1, 2, 3))
    longest = tuple(sorted(found.longest, reverse=True))
    return Survey(job.rows, found.read, tokens, truncated, without_text, longest)


def _slices(job: Job) -> Iterator[range]:
    """All rows; or slices that are spread over the dataset, in any order, so that the first ones are a sample too."""
    if job.stream:  # a slice costs a row group
        yield from sampled(job.rows)
    elif job.rows <= _ALL:
        yield from (range(start, min(start + _SLICE, job.rows)) for start in range(0, job.rows, _SLICE))
    else:
        generator, parts = random.Random(_SEED), min(_SLICES, job.rows // _SLICE)
        for part in generator.sample(range(parts), parts):
            begin, end = job.rows * part // parts, job.rows * (part + 1) // parts
            start = begin + generator.randrange(end - begin - _SLICE + 1)
            yield range(start, start + _SLICE)


def _read(work: Work, rows: range, found: _Found) -> None:
    job, texts, tokenizer = work.job, work.texts, work.tokenizer
    with readable(job.dataset, rows):
        some = [unless_blank(text) for text in texts.texts(rows)]
        owners, ids, repeated = tokenize_windows(some, tokenizer, job.prefix, job.overlap)
    n_tokens = repeated[np.flatnonzero(np.diff(owners, prepend=-1))]
    truncated = 0 if job.windowed else int((n_tokens > tokenizer.length).sum())
    found.slices.append((len(rows), int(ids.lengths.sum()), truncated, int((n_tokens == 0).sum())))
    lengths = [LongRow(int(tokens), row) for tokens, row in zip(n_tokens, rows, strict=True)]
    found.longest = heapq.nlargest(_LONGEST, [*found.longest, *lengths])


def _total(found: _Found, column: int, rows: int) -> Figure:
    """The sum of a column over all rows, from the slices': a ratio estimate, and its error from how much the slices
    differ (Cochran, Sampling Techniques, 1977, chapter 9: clusters of unequal sizes)."""
    table: npt.NDArray[np.float64] = np.array(found.slices, np.float64)
    sizes, values = table[:, 0], table[:, column]
    read, slices = sizes.sum(), len(table)
    mean = values.sum() / read
    if read >= rows or slices < 2:
        return Figure(float(mean * rows), 0.0)
    spread = float(np.sum((values - mean * sizes) ** 2)) / (slices - 1)
    error = rows * math.sqrt((1 - read / rows) * spread / slices) / (read / slices)
    return Figure(float(mean * rows), _Z * error)
