"""Of which earlier jobs a job may take vectors, and what of a shard may be taken."""

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from contract.digest import ColumnDigest
from contract.errors import UserError
from contract.job import Job, load_job
from contract.shard import ShardInfo
from contract.words import count


def load_sources(job: Job) -> list[Job]:
    """The jobs whose folders are ``Job.sources``; the one of the repeated texts only where it is there.

    Raises:
        UserError: an earlier job is gone, is another one by now, or has other vectors of the same texts.
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
    """See that the same text has the same vector in two jobs.

    Args:
        source: the earlier one.
        job: the one that is to take its vectors.

    Raises:
        UserError: it has not.
    """
    there, here = _making(source), _making(job)
    for what in (what for what in here if there[what] != here[what]):
        raise UserError(
            f"the vectors of job {source.id} are of another {what} ({there[what]})",
            f"those of this job are of {here[what]}",
            "leave out --reuse, or run with what that job was made with",
        )


def _making(job: Job) -> dict[str, str]:
    """All that a text's vector follows from, besides the text: what → what it is, for people."""
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


def check_digests(table: pa.Table, info: ShardInfo, names: Iterable[str]) -> None:
    """See that columns of a shard are as its worker wrote them.

    Args:
        table: with these columns.
        info: the shard's footer.
        names: of the columns.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        digest = ColumnDigest()
        for part in table.column(name).chunks:
            digest.update(part)
        if digest.hexdigest() != info.digests.get(name):
            raise ValueError(f"its column {name} is not as its worker wrote it")
