"""Whether this worker can serve a job. What it lacks is its own fault, and counts against no batch."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from contract.engines import engine_of
from contract.errors import UserError, reason
from contract.job import Job, load_job
from contract.store import StoreError

SAME_ENGINE = "give every worker the engine directory that the producer used"
"""What to do where this worker has another engine than the job's under its name."""

_PROBE = 64 * 1024
"""Bytes that there must be space for before a batch is computed for nothing."""


class CannotServe(Exception):
    """This worker cannot serve a job, whatever the batch: another can, or this one once something has changed."""


@contextmanager
def workers_fault(path: object = "") -> Iterator[None]:
    """In the ``with`` block, an error that is this machine's fault becomes a ``CannotServe``: no such engine or another
    one, no module, no such folder, no right to it, no space, no credentials, too little memory.

    Args:
        path: what is being written, for errors that do not name it.
    """
    try:
        yield
    except (UserError, StoreError) as error:
        raise CannotServe(error.message) from None
    except ImportError as error:
        raise CannotServe(f"a Python package is missing ({reason(error)})") from None
    except OSError as error:
        where = f": {error.filename or path}" if error.filename or path else ""
        raise CannotServe(f"{error.strerror or reason(error)}{where}") from None
    except MemoryError:
        raise CannotServe("out of memory") from None


def check(job: Job) -> None:
    """See whether this machine has what a job needs: its engine, its folder, and space there.

    Of a bucket nothing is asked: its library may not be used in a process that has children yet to make. The batch's
    own process finds out.

    Raises:
        CannotServe: it has not.
    """
    with workers_fault():
        engine_of(job, SAME_ENGINE)
        if job.folder.local:
            check_folder(job)
            staging = job.folder / "staging"
            try:
                with tempfile.TemporaryFile(dir=str(staging)) as probe:
                    probe.write(bytes(_PROBE))
            except OSError as error:  # whose own name is that of the file, or none
                raise CannotServe(f"{error.strerror}: {staging}") from None


def check_folder(job: Job) -> None:
    """See whether the job's folder was made by a producer for this very job, whatever Redis says where that is.

    Raises:
        UserError: it was not.
    """
    there = load_job(job.folder)
    if (there.identity, there.reuse) != (job.identity, job.reuse):
        raise UserError(
            f"{job.folder} belongs to another job on this worker",
            f"expected job {job.id}",
            "let producer and workers see the same folder under this path",
        )
