"""Which earlier jobs a job may take vectors from, and reading their shards."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from contract.digest import digests_of
from contract.errors import UserError
from contract.job import Job, load_job
from contract.shard import ShardInfo, info_of, open_file
from contract.store import Location
from contract.words import count


def load_sources(job: Job) -> list[Job]:
    """The jobs in the folders of ``Job.sources``, in that order; the job of the repeated texts only if it exists.

    Raises:
        UserError: an earlier job is gone, its folder holds another job, or its vectors do not fit.
    """
    found = []
    for earlier in job.reuse:
        source = load_job(earlier.folder)
        if source.id != earlier.id:
            raise UserError(
                f"{earlier.folder} holds job {source.id}",
                f"job {job.id} takes vectors of job {earlier.id}",
                "bring that one back, or run the producer again with another --reuse",
            )
        found.append(source)
    if (job.repeated / "job.json").exists():
        found.append(load_job(job.repeated))
    for source in found:
        check_fits(source, job)
    return found


def check_fits(source: Job, job: Job) -> None:
    """Check that a text has the same vector in both jobs.

    Args:
        source: the earlier job.
        job: the job that is to take its vectors.

    Raises:
        UserError: the engine, the prefix, the form or the treatment of long texts differs.
    """
    there, here = _decisive(source), _decisive(job)
    for what in (what for what in here if there[what] != here[what]):
        raise UserError(
            f"the vectors of job {source.id} are of another {what} ({there[what]})",
            f"those of this job are of {here[what]}",
            "leave out --reuse, or run with what that job was made with",
        )


def _decisive(job: Job) -> dict[str, str]:
    """What decides a text's vector, besides the text: name → value, in words."""
    # Hundreds of numbers: in a message their hash is enough to see that they differ.
    digest = hashlib.sha256(repr(job.form.ranges).encode()).hexdigest()[:8]
    ranges = f" with the ranges {digest}" if job.form.ranges else ""
    shared = f"windows that share {count(job.overlap, 'token')}" if job.overlap is not None else "truncated texts"
    return {
        "engine": f"fingerprint {job.fingerprint}",
        "prefix": f"prefix {job.prefix!r}",
        "form": f"{job.form}{ranges}",
        "way with long texts": shared,
    }


def read_unchanged(shard: Location, names: Sequence[str]) -> tuple[ShardInfo, pa.Table]:
    """A shard's footer, and some of its columns, compared with the digests that their worker took.

    Args:
        shard: its file.
        names: of the columns.

    Raises:
        ValueError: the file is no shard, or a column is not as the worker wrote it.
        OSError: the file cannot be read.
    """
    with open_file(shard) as file:
        info, table = info_of(file.schema_arrow.metadata), file.read(columns=list(names))
    found = digests_of(table)
    for name in names:
        if name not in found or found[name] != info.digests.get(name):
            raise ValueError(f"its column {name} is not as its worker wrote it")
    return info, table
