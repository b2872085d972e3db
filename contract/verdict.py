"""``verify.json``: the verdict on a job.

The verifier computes it once, as this record. The terminal output, ``report.html``, the exit status and the producer
read the record; none of them computes a figure again.
"""

import math
import shlex
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, computed_field

from contract.compare import Comparison, Tolerance
from contract.errors import UserError, first_fault
from contract.findings import NONE, Findings, Tally
from contract.job import Job
from contract.store import Location
from contract.words import count

FILE = "verify.json"
"""The record's file in the job's folder."""

_NAMED = 20
"""Files at fault that a line for people names."""

Number = Annotated[
    float | None, BeforeValidator(lambda value: None if value is None or not math.isfinite(value) else value)
]
"""A figure; None where it is NaN or infinite, which JSON cannot hold."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Record):
    """One question about a job and its answer."""

    name: str
    passed: bool
    detail: str
    """The figures behind the answer; where it failed, the rows or files."""


class Figures(_Record):
    """Sampled rows against PyTorch FP32; a figure is None where nothing finite could be compared."""

    tokens: str = "all"
    """The rows' lengths, such as ``33-64``."""
    rows: int
    vectors: int
    """As many as rows; at token level one for each token."""
    mse: Number
    relative_mse: Number
    min_cosine: Number
    max_difference: Number
    non_finite: int
    """Vectors with a NaN or an infinity in them."""

    @classmethod
    def of(cls, rows: int, comparison: Comparison, tokens: str = "all") -> "Figures":
        return cls(tokens=tokens, rows=rows, **vars(comparison))


class RowResult(_Record):
    """One sampled row; its figures are None where it has no vector of the reference's shape."""

    row_id: int
    n_tokens: int
    truncated: bool
    cosine: Number
    """At token level the lowest of the row's vectors."""
    relative_mse: Number
    max_difference: Number
    problem: str
    """What is wrong with the row; empty if nothing is."""
    text: str
    """The beginning of its text, one printable line of at most 400 characters."""


@dataclass(frozen=True)
class RowAccounting(Tally):
    """What the shards hold against what they must hold."""

    expected_shards: int = 0
    shards: int = 0
    """Shards of this job that could be read."""
    expected_rows: int = 0
    rows: int = 0
    """Rows in those shards, whether they belong there or not."""
    missing_shards: Findings = NONE
    unreadable: Findings = NONE
    """Files under a shard's name that are truncated, corrupt or not embedmill's."""
    foreign_shards: Findings = NONE
    """Shards that were made for another job, batch or engine. Their rows are not counted as this job's."""
    unexpected_files: Findings = NONE
    """Whatever else lies in ``data/``: readers of Parquet folders fail on it."""
    missing_rows: Findings = NONE
    rows_twice: Findings = NONE
    foreign_rows: Findings = NONE
    """Rows in another batch's shard, or of no batch at all."""
    disordered: Findings = NONE
    """Shards whose rows are not in the dataset's order."""

    @property
    def passed(self) -> bool:
        """Whether every row is in its shard exactly once, in order, and nothing else is there."""
        return self.rows == self.expected_rows and not any(found.count for found in self.findings.values())


class Verdict(_Record):
    """What the verifier found. What depends on the sample is None or empty where none could be drawn."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # `passed` is in the file, and is computed here

    job: str
    engine: str
    fingerprint: str
    """The engine's."""
    dtype: str
    dimensions: int | None
    columns: tuple[str, ...]
    overlap: int | None
    dataset: str
    revision: str
    """The dataset's."""
    rows: int
    """Of the job."""
    when: str
    """UTC, ISO 8601."""
    sample: int
    """Rows that were to be sampled."""
    seed: int
    compared: int
    """Rows that were computed again."""
    checks: tuple[Check, ...]
    at_fault: tuple[str, ...]
    """All files in ``data/`` that must be made again, or do not belong there; never cut short."""
    accounting: RowAccounting
    tokens: int | None
    """Tokens that were embedded, after truncation."""
    truncated: int | None
    """Rows of all shards that were truncated."""
    without_text: int | None
    """Rows of all shards without a text."""
    failed: int | None
    """Rows of all shards with an error in place of a vector."""
    taken: dict[str, int] = {}
    """Earlier jobs' ids → how many rows have a vector that was taken from there."""
    repeated: int = 0
    """Rows that have the vector of a text which other rows have too, and which was computed once."""
    strata: tuple[Figures, ...]
    """The sample by length, shortest rows first."""
    total: Figures
    tolerance: dict[str, Tolerance]
    """For each precision that a sampled row was computed in."""
    worst_rows: tuple[RowResult, ...]
    """At most 20: failing rows first, then those with the highest relative MSE."""
    failing: int
    """Sampled rows that have a problem."""
    failing_rows: tuple[RowResult, ...]
    """The first 1,000 of them, by row id."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        return not self.failed_checks

    @property
    def failed_checks(self) -> list[str]:
        return [check.name for check in self.checks if not check.passed]

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def summary(verdict: Verdict, folder: Location) -> str:
    """One line for people, such as ``Verified: 2,307 rows accounted for …``."""
    if not verdict.passed:
        return f"Not verified ({', '.join(verdict.failed_checks)}): {folder}"
    taken = f", {sum(verdict.taken.values()):,} taken from earlier jobs" if verdict.taken else ""
    return (
        f"Verified: {count(verdict.rows, 'row')} accounted for ({verdict.truncated:,} truncated, "
        f"{verdict.without_text:,} without a text{taken}), {verdict.compared:,} recomputed and within tolerance: "
        f"{folder}"
    )


def repairs(verdict: Verdict, folder: Location) -> list[str]:
    """What to do about the faults, a line for each step; empty if there is nothing that a command repairs."""
    retry, steps = shlex.join(["python", "-m", "producer", "retry", str(folder)]), []
    if files := len(verdict.at_fault):
        named = ", ".join(verdict.at_fault[:_NAMED])
        more = f", … (all of them: {FILE}, at_fault)" if files > _NAMED else ""
        steps += [
            f"Set {count(files, 'file')} at fault aside and make missing shards again: {retry}",
            f"At fault: {named}{more}",
        ]
    elif verdict.accounting.missing_shards.count:
        steps.append(f"Make the missing shards: {retry}")
    elif "sample" in verdict.failed_checks:
        steps.append("No vector was compared with PyTorch's: the check sample says why, and what to do")
    if "source" in verdict.failed_checks:
        steps.append(
            "Two readers read the dataset differently: look at the rows named above; the vectors may be of another text"
        )
    return steps


def load_verdict(job: Job) -> Verdict | None:
    """The verdict on a job; None where there is none.

    Raises:
        UserError: ``verify.json`` is not the verifier's.
    """
    file = job.folder / FILE
    try:
        return Verdict.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(
            f"{file} is no verdict ({first_fault(error)})",
            hint=f"verify the job again: python -m verify {job.folder}",
        ) from None


def at_fault(job: Job) -> list[str]:
    """The names of the files in ``data/`` that the verifier found at fault, less those that changed since.

    Raises:
        UserError: ``verify.json`` is not the verifier's, or another job's.
    """
    verdict = load_verdict(job)
    if verdict is None or not verdict.at_fault:
        return []
    if not _is_of(verdict, job):
        raise UserError(f"{job.folder / FILE} is another job's", hint=f"verify this one: python -m verify {job.folder}")
    verified, files = (job.folder / FILE).modified() or 0, job.data.entries()
    return [name for name in verdict.at_fault if name in files and files[name].modified <= verified]


def doubt(job: Job, verdict: Verdict | None) -> str:
    """Why a job cannot count as verified; empty if it can."""
    if verdict is None:
        return "it has not been verified"
    if not _is_of(verdict, job):
        return f"its {FILE} is another job's"
    if not verdict.passed:
        return f"the verifier found fault ({', '.join(verdict.failed_checks)})"
    if max(job.written().values(), default=0) > ((job.folder / FILE).modified() or 0):
        return "it was verified before its last shard was made"
    return ""


def _is_of(verdict: Verdict, job: Job) -> bool:
    return (verdict.fingerprint, verdict.revision, verdict.rows) == (job.fingerprint, job.revision, job.rows)
