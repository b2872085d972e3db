"""Texts that a job has more than once, and how many texts it computes.

A batch computes each of its texts once. A text that several batches have would be computed by each of them, so those
texts are embedded first, by a job of their own, from which all batches take the vectors.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from contract.blank import unless_blank
from contract.job import Job
from contract.origins import hashes_of
from producer.batches import Work
from producer.reuse import Index
from producer.sizing import LEAST_BATCHES, sampled
from producer.texts import TextDataset, readable

Rows = npt.NDArray[np.int64]

_PART = 1 << 22
"""Rows whose keys are sorted at once, about."""
_GAP = 64
"""Two wanted rows that are at most so many rows apart are read in one go."""
_LEAST_ROWS = 64
"""Rows of a batch of repeated texts, at least, unless there are fewer."""
FEW = 200_000
"""Most rows of a dataset that is searched in any case, which takes a second or two. A larger one is searched only if a
sample has repeated texts: the search would delay a job of a billion rows by an hour."""


@dataclass(frozen=True, eq=False)
class SomeRows(TextDataset):
    """Some rows of a dataset, with their texts alone."""

    row_ids: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    """``[n]``: where they are in the dataset, ascending."""

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    def read(self, rows: range) -> tuple[list[str | None], dict[str, pa.Array]]:
        wanted, texts = self.row_ids[rows.start : rows.stop], list[str | None]()
        for near in np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1):
            some = super().read(range(int(near[0]), int(near[-1]) + 1))[0]
            texts += [some[place] for place in (near - near[0]).tolist()]
        return texts, {}


def repeated_work(work: Work) -> Work | None:
    """A job of the texts that several batches of a job have, each text once; None where there is no such text.

    Raises:
        UserError: a row cannot be read.
    """
    if work.job.batches == 1:
        return None
    with _keys(work, None) as keys:
        found = [_in_several_batches(keys[rows], rows, work.job.batch_rows) for rows in _parts(keys)]
    rows = np.sort(np.concatenate([np.empty(0, np.int64), *found]))
    if not len(rows):
        return None
    some = {one.name: getattr(work.texts, one.name) for one in fields(TextDataset)}
    texts = SomeRows(**some | {"columns": (), "features": {}}, row_ids=rows)
    return Work(_job_of(work.job, rows), texts, work.tokenizer)


def search_pays(work: Work) -> bool:
    """Whether the dataset is searched for texts that several batches have. A streamed one is not, because it would be
    fetched twice. One of more than 200,000 rows is if two of the 1,024 rows of ``sizing.sampled`` have the same text.

    Raises:
        UserError: a row of the sample cannot be read.
    """
    job = work.job
    if job.stream or job.rows <= FEW:
        return not job.stream
    texts = [text for rows in sampled(job.rows) for text in _texts(work, rows) if text is not None]
    return len(set(texts)) < len(texts)


def to_compute(work: Work, index: Index | None) -> int:
    """How many texts a job computes: those that no earlier job has, each counted once.

    Raises:
        UserError: a row cannot be read.
    """
    with _keys(work, index) as keys:
        return sum(len(np.unique(keys[rows])) for rows in _parts(keys))


def _job_of(job: Job, rows: Rows) -> Job:
    batch_rows = min(job.batch_rows, max(_LEAST_ROWS, len(rows) // LEAST_BATCHES))
    update = {
        "name": None,
        "revision": f"{job.revision}, these: {hashlib.sha256(rows.tobytes()).hexdigest()}",
        "limit": None,
        "rows": len(rows),
        "batch_rows": batch_rows,
        "columns": (),
    }
    found = job.model_copy(update=update)
    return found.model_copy(update={"id": found.due_id, "folder": job.repeated})


@contextlib.contextmanager
def _keys(work: Work, index: Index | None) -> Iterator[npt.NDArray[np.uint64]]:
    """A key for each row, in a memory-mapped file: a hash of its text, 0 for a row without a text or with one that the
    index has. Different texts have the same key next to never."""
    job = work.job
    with tempfile.TemporaryFile() as file:
        for batch in range(job.batches):
            texts = _texts(work, job.row_range(batch))
            keys = np.array([_key(text) for text in texts], np.uint64)
            if index:
                keys[index.find(hashes_of(texts)).taken] = 0
            keys.tofile(file)
        file.flush()
        yield np.memmap(file, np.uint64, "r")


def _texts(work: Work, rows: range) -> list[str | None]:
    with readable(work.job.dataset, rows):
        return [unless_blank(text) for text in work.texts.texts(rows)]


def _key(text: str | None) -> int:
    return 0 if text is None else xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) or 1


def _parts(keys: npt.NDArray[np.uint64]) -> Iterator[Rows]:
    """The rows whose key is not 0, in parts. Rows with the same key are in the same part."""
    bits = (len(keys) // _PART).bit_length()
    for part in range(1 << bits):
        mine = keys >> np.uint64(64 - bits) == part if bits else np.ones(len(keys), bool)
        yield np.flatnonzero(mine & (keys != 0))


def _in_several_batches(keys: npt.NDArray[np.uint64], rows: Rows, batch_rows: int) -> Rows:
    """The first row of each key that rows of several batches have.

    Args:
        keys: ``[n]``.
        rows: ``[n]``, their rows, ascending.
        batch_rows: rows of a batch.
    """
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    if not len(keys):
        return rows
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(keys))
    several = rows[starts] // batch_rows != rows[ends - 1] // batch_rows
    return rows[starts[several]]
