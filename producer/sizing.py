"""How many rows a batch has where ``--batch-rows`` is left out.

A batch has about 300,000 tokens: reviews with a mean of 280 tokens make batches of 1,024 rows, titles with a mean of 36
batches of 8,320. A GPU is then busy for long enough with either, and a CPU is not busy for minutes with one. The number
is part of the job's identity, so it follows from the dataset, the engine and the options alone: from a sample that is
the same on every machine, and from no setting.
"""

import random
from typing import NamedTuple

from contract.blank import unless_blank
from contract.words import count
from producer.texts import TextDataset, readable
from producer.tokenizer import RowTokenizer, tokenize_windows

TOKENS = 300_000
"""Most tokens of a batch, on average: after truncation, or in all windows; padding is not counted."""
LEAST_BATCHES = 40
"""Batches that a job has at least: progress is seen, and a second worker has something to do."""
PER_TOKEN_ROWS = 64
"""Rows of a batch for an engine that gives a vector for each token. Its shards are some hundred times larger a row."""

_STEP = 64
"""What the rows are a multiple of, if they are more."""
_LEAST_TOKENS = 2000
"""Of a batch, on average, however small the job is, unless 64 rows have fewer: a CPU's core computes it within a second
or two, and what a batch costs besides, some 20 ms, is little beside that."""
_MOST_ROWS = 65_536
_MOST_CELLS = 1 << 25
"""Token ids of a batch on the wire, padding included, however long a single row of it is. Neither side holds them, but
to write and read so many took 0.3 s of a core, and their padding 2 MB."""
_KEPT_BYTES = 32 << 20
"""Bytes of kept columns, on average. They go through Redis as they are."""

_SLICES, _SLICE = 16, 64
"""The sample: so many slices of so many rows. A slice of a dataset that is left on the Hub costs one row group."""
_SEED = 0


class Sample(NamedTuple):
    """What was found in some rows of a dataset."""

    rows: int
    tokens: int
    """After truncation, or in all windows; special tokens counted."""
    kept_bytes: int
    """Of the columns that are kept."""


class BatchSize(NamedTuple):
    """How many rows a batch has, and why."""

    rows: int
    why: str
    """For people."""


def batch_size(texts: TextDataset, rows: int, tokenizer: RowTokenizer, prefix: str, overlap: int | None) -> BatchSize:
    """The rows of a batch, by a sample of a dataset.

    Args:
        texts: the dataset.
        rows: how many of its rows are embedded, from the start.
        tokenizer: the engine's.
        prefix: put before every text.
        overlap: tokens that two windows share; None where long texts are truncated.

    Raises:
        UserError: a row of the sample cannot be read or tokenized.
    """
    tokens = kept_bytes = 0
    ranges = sampled(rows)
    for some in ranges:
        with readable(texts.dataset, some):
            found, kept = texts.read(some)
            _, found_tokens, _ = tokenize_windows([unless_blank(text) for text in found], tokenizer, prefix, overlap)
        tokens += len(found_tokens.ids)
        kept_bytes += sum(values.nbytes for values in kept.values())
    return size_from(Sample(sum(map(len, ranges)), tokens, kept_bytes), rows, tokenizer.length)


def sampled(rows: int) -> list[range]:
    """The rows of the sample: all of a small dataset, or 16 slices of 64 rows, one in each sixteenth of it. Where in
    its sixteenth a slice begins is drawn with a fixed seed, so that a dataset of equal parts does not mislead it."""
    if rows <= _SLICES * _SLICE:
        return [range(start, min(start + _SLICE, rows)) for start in range(0, rows, _SLICE)]
    generator, starts = random.Random(_SEED), []
    for part in range(_SLICES):
        begin, end = rows * part // _SLICES, rows * (part + 1) // _SLICES
        starts.append(begin + int(generator.random() * (end - begin - _SLICE + 1)))
    return [range(start, start + _SLICE) for start in starts]


def size_from(sample: Sample, rows: int, length: int) -> BatchSize:
    """The rows of a batch: the largest number that keeps every limit.

    Args:
        sample: some of the rows.
        rows: how many rows are embedded.
        length: most tokens of a row.
    """
    tokens, kept = max(sample.tokens, 1), max(sample.kept_bytes, 1)
    padded = min(_MOST_ROWS, max(_MOST_CELLS // length, 1))
    limits = [
        (_rounded(TOKENS * sample.rows // tokens), f"at most {count(TOKENS, 'token')}"),
        (
            _rounded(max(rows // LEAST_BATCHES, min(_STEP, _LEAST_TOKENS * sample.rows // tokens))),
            f"at least {count(LEAST_BATCHES, 'batch', 'batches')}, but of {count(_STEP, 'row')} or "
            f"{count(_LEAST_TOKENS, 'token')}",
        ),
        (_rounded(padded), f"at most {count(padded, 'row')} padded to {count(length, 'token')}"),
        # A power of two: the bytes of the same values differ a little with how a file lays them out.
        (1 << (max(_KEPT_BYTES * sample.rows // kept, 1).bit_length() - 1), "at most 32 MiB of kept columns"),
    ]
    least, why = min(limits)
    each = round(least * sample.tokens // sample.rows, -3)
    about = f"about {count(each, 'token')}" if each else "less than 500 tokens"
    return BatchSize(
        least, f"Batches of {count(least, 'row')}, {about} each: {why}, by a sample of {count(sample.rows, 'row')}"
    )


def _rounded(rows: int) -> int:
    """Down to a multiple of 64, or for less than 64 rows as they are, and at least 1."""
    return max(rows - rows % _STEP if rows >= _STEP else rows, 1)
