"""Rows of a dataset to batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from contract.batch import Batch
from contract.blank import unless_blank
from contract.job import Job
from contract.origins import Hashes, Origins, hashes_of
from contract.words import count
from producer.reuse import Index
from producer.texts import TextDataset, readable
from producer.tokenizer import RowTokenizer, tokenize_windows


class Work(NamedTuple):
    """What batches are made of."""

    job: Job
    texts: TextDataset
    """Pickled it names its memory-mapped files: no text is copied."""
    tokenizer: RowTokenizer
    known: Index | None = None
    """Where the vectors of earlier jobs are."""

    def payload(self, batch: int) -> bytes:
        """A batch's bytes; always the same.

        Raises:
            UserError: its rows cannot be read or tokenized.
        """
        rows = self.job.row_range(batch)
        with readable(self.job.dataset, rows):
            texts, kept = self.texts.read(rows)
            find = self.known.find if self.known else Origins.of
            made = batch_of(self.job, batch, texts, self.tokenizer, kept, find)
            featured = replace(made, features=self.texts.features)
            return featured.to_bytes(self.tokenizer.length, self.tokenizer.pad_id)


def batch_of(
    job: Job,
    number: int,
    texts: Sequence[str | None],
    rows: RowTokenizer,
    kept: Mapping[str, pa.Array] | None = None,
    find: Callable[[Hashes], Origins] = Origins.of,
) -> Batch:
    """One batch of a job from the texts, and the columns to keep, of ``job.row_range(number)``.

    A blank text is none: see ``contract.blank``. Columns are kept as they are. A text that comes several times is
    tokenized once, one that is found in an earlier job not at all.

    Args:
        job: the job.
        number: the batch's.
        texts: None for a row without a text.
        rows: the tokenizer.
        kept: the columns, by name.
        find: where the vectors of texts are, by their hashes.

    Raises:
        ValueError: there are not as many texts as rows.
    """
    wanted = job.row_range(number)
    if len(texts) != len(wanted):
        raise ValueError(f"found {count(len(texts), 'text')} for {count(len(wanted), 'row')}")
    present = [unless_blank(text) for text in texts]
    origins = find(hashes_of(present))
    computed = (~origins.taken & ~origins.repeated).tolist()
    present = [text if needed else None for text, needed in zip(present, computed, strict=True)]
    owners, tokens, n_tokens = tokenize_windows(present, rows, job.prefix, job.overlap)
    # A text's further windows have nulls there: once is enough for what may be long.
    first = np.diff(owners, prepend=-1) != 0
    indices = pa.array(np.where(first, owners, 0), mask=~first)
    return Batch(
        job=job.id,
        number=number,
        engine=job.fingerprint,
        row_id=np.arange(wanted.start, wanted.stop, dtype=np.int64)[owners],
        tokens=tokens,
        n_tokens=n_tokens,
        kept={name: values.take(indices) for name, values in (kept or {}).items()},
        prompt_tokens=0 if rows.pools_prompt else rows.prompt_tokens(job.prefix),
        origins=origins.take(owners),
    )
