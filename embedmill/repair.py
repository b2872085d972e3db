"""What an earlier run left that is no good is moved out of the way, so that this one makes it again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from contract.job import Job
from contract.shard import read_info
from contract.verdict import at_fault
from producer.console import print_note

_SIDE_BY_SIDE = 16
"""Footers that are read at once: an object store takes its time for each."""


def set_faulty_aside(job: Job) -> None:
    """Move files that the last verdict found at fault, and those that are no shards, to the job's ``aside/``, and name
    each. Nothing is deleted.

    Raises:
        UserError: the job's ``verify.json`` is another job's.
    """
    for name in sorted({*at_fault(job), *_no_shards(job)}):
        print_note(f"Set aside: {job.set_aside(name)}")


def _no_shards(job: Job) -> Iterator[str]:
    batches = sorted(job.committed())
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        for batch, whole in zip(batches, pool.map(lambda batch: _is_shard(job, batch), batches), strict=True):
            if not whole:
                yield job.shard(batch).name


def _is_shard(job: Job, batch: int) -> bool:
    try:
        read_info(job.shard(batch))
    except ValueError:  # what cannot be reached is no fault of the file's: the producer says so
        return False
    return True
