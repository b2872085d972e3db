"""Moves the faulty files of an earlier run aside, so that this run makes them again.

``embedmill embed`` does so with its job. The jobs that a job itself begins, of the rows that give int8's ranges and of
texts that come again, are treated so by every command: nobody knows them who could repair them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from contract.job import Job
from contract.shard import read_info
from contract.verdict import at_fault
from producer.console import print_note

_CONCURRENT = 16
"""Footers that are read at the same time: an object store takes its time for each."""


def set_faulty_aside(job: Job) -> None:
    """Move files that the last verdict found at fault, and those that are no shards, to the job's ``aside/``, and print
    where each is now. Nothing is deleted.

    Raises:
        UserError: the job's ``verify.json`` is another job's.
    """
    for name in sorted({*at_fault(job), *_no_shards(job)}):
        print_note(f"Set aside: {job.set_aside(name)}")


def _no_shards(job: Job) -> Iterator[str]:
    batches = sorted(job.committed())
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        for batch, whole in zip(batches, pool.map(lambda batch: _is_shard(job, batch), batches), strict=True):
            if not whole:
                yield job.shard(batch).name


def _is_shard(job: Job, batch: int) -> bool:
    try:
        read_info(job.shard(batch))
    except ValueError:  # an OSError is not the file's fault, and the producer reports it
        return False
    return True
