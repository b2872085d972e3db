"""Moves the faulty files of an earlier run aside, so that this run makes them again.

``embedmill embed`` does so with its job. The jobs that a job itself begins, of the rows that give int8's ranges and of
texts that come again, are treated so by every command, and read as a whole: nobody verifies them.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from contract.job import Job
from contract.reuse import read_unchanged
from contract.shard import read_info
from contract.verdict import at_fault
from contract.words import count
from producer.console import print_note

_CONCURRENT = 16
"""Files that are read at the same time: an object store takes its time for each."""


def set_faulty_aside(job: Job, *, whole: bool = False) -> None:
    """Move files that the last verdict found at fault, and those that are no shards, to the job's ``aside/``, and print
    where each is now. Nothing is deleted.

    Args:
        job: whose files.
        whole: compare every column with its digest too, instead of reading the footer alone.

    Raises:
        UserError: the job's ``verify.json`` is another job's.
    """
    for name in sorted({*at_fault(job), *_no_shards(job, whole=whole)}):
        with contextlib.suppress(FileNotFoundError):  # another producer of the job has moved it
            print_note(f"Set aside: {job.set_aside(name)}")


def _no_shards(job: Job, *, whole: bool) -> Iterator[str]:
    batches = sorted(job.committed())
    if whole and batches:  # gigabytes, in a large job
        print_note(f"{count(len(batches), 'shard')} of job {job.id}: compared with their digests before they are used")
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        found = pool.map(lambda batch: _is_faulty(job, batch, whole=whole), batches)
        for batch, faulty in zip(batches, found, strict=True):
            # Once more: another producer of the job may have moved it, and its worker have made a good one.
            if faulty and _is_faulty(job, batch, whole=whole):
                yield job.shard(batch).name


def _is_faulty(job: Job, batch: int, *, whole: bool) -> bool:
    """Whether a batch's file is no shard. One that cannot be read may be good: whoever needs it says why."""
    shard = job.shard(batch)
    try:
        info = read_info(shard)
        if whole:
            read_unchanged(shard, list(info.digests))
    except ValueError:
        return True
    except OSError as error:
        return error.errno is None  # Parquet's, of bytes that are not what they were
    return False
