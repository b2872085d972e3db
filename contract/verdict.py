"""``verify.json`` as others than the verifier read it."""

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import UserError
from contract.job import Job


class Check(BaseModel):
    """One question about a job and its answer."""

    name: str
    passed: bool
    detail: str


class Figures(BaseModel):
    """Sampled rows against PyTorch FP32; None where there was nothing finite to compare."""

    tokens: str = "all"
    """The rows' lengths, such as ``33-64``."""
    rows: int
    mse: float | None
    relative_mse: float | None
    min_cosine: float | None
    max_difference: float | None
    non_finite: int


class Verdict(BaseModel):
    """What the verifier found."""

    model_config = ConfigDict(extra="ignore")  # the file holds more than is asked for here

    fingerprint: str
    revision: str
    rows: int
    passed: bool
    when: str
    """UTC, ISO 8601."""
    compared: int
    """Rows that were computed again."""
    at_fault: list[str]
    """The names of all files in ``data/`` that must be made again, or do not belong there."""
    checks: list[Check]
    strata: list[Figures]
    total: Figures


def load_verdict(job: Job) -> Verdict | None:
    """The verdict on a job; None where there is none.

    Raises:
        UserError: ``verify.json`` is not the verifier's.
    """
    file = job.folder / "verify.json"
    try:
        return Verdict.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{file} is no verdict ({'.'.join(map(str, first['loc']))}: {first['msg'].lower()})",
            mend=f"verify the job again: python -m verify {job.folder}",
        ) from None


def at_fault(job: Job) -> list[str]:
    """The names of the files in ``data/`` that the verifier found at fault and that are still there as it saw them.

    Raises:
        UserError: ``verify.json`` is not the verifier's, or another job's.
    """
    verdict = load_verdict(job)
    if verdict is None or not verdict.at_fault:
        return []
    if not _is_of(verdict, job):
        raise UserError(
            f"{job.folder / 'verify.json'} is another job's", mend=f"verify this one: python -m verify {job.folder}"
        )
    seen, there = (job.folder / "verify.json").modified() or 0, job.data.entries()
    return [name for name in verdict.at_fault if name in there and there[name].modified <= seen]


def _is_of(verdict: Verdict, job: Job) -> bool:
    return (verdict.fingerprint, verdict.revision, verdict.rows) == (job.fingerprint, job.revision, job.rows)


def doubt(job: Job, verdict: Verdict | None) -> str:
    """Why a job cannot count as verified; empty if it can."""
    if verdict is None:
        return "it has not been verified"
    if not _is_of(verdict, job):
        return "its verify.json is another job's"
    if not verdict.passed:
        return f"the verifier found fault ({', '.join(check.name for check in verdict.checks if not check.passed)})"
    if max(job.written().values(), default=0) > ((job.folder / "verify.json").modified() or 0):
        return "it was verified before its last shard was made"
    return ""
