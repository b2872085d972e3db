import json
import os
from pathlib import Path

import pytest

from contract.errors import UserError
from contract.findings import Findings
from contract.job import Job
from contract.verdict import Check, RowAccounting, at_fault, doubt, load_verdict, repairs, summary
from tests.contract.samples import a_job, a_verdict, figures


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Three files in the places of shards, and a verdict that came after them."""
    job = a_job(tmp_path)
    job.save()
    for batch in range(job.batches):
        job.shard(batch).touch()
    write(job)
    return job


def write(job: Job, **changes: object) -> None:
    (job.folder / "verify.json").write_text(a_verdict(job, **changes).to_json())


FAILED = tuple(Check(name=name, passed=name == "rows", detail="") for name in ("rows", "order", "sums"))


def test_a_verdict_is_read_and_stands(job: Job) -> None:
    verdict = load_verdict(job)
    assert verdict is not None
    assert [row.tokens for row in [*verdict.strata, verdict.total]] == ["1-32", "all"]
    assert verdict == a_verdict(job)
    assert doubt(job, verdict) == ""


def test_the_file_says_whether_the_job_passed_as_its_checks_do(job: Job) -> None:
    assert json.loads(a_verdict(job).to_json())["passed"] is True
    verdict = a_verdict(job, checks=FAILED)
    assert json.loads(verdict.to_json())["passed"] is verdict.passed is False
    assert verdict.failed_checks == ["order", "sums"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_figure_that_is_no_number_is_null(value: float | None, job: Job) -> None:
    verdict = a_verdict(job, total=figures(mse=value))
    assert verdict.total.mse is None
    assert json.loads(verdict.to_json())["total"]["mse"] is None


def test_a_good_verdict_is_one_line_without_repairs(job: Job) -> None:
    line = "Verified: 10 rows accounted for (1 truncated, 0 without a text), 2 recomputed and within tolerance: "
    assert summary(a_verdict(job), job.folder) == f"{line}{job.folder}"
    assert repairs(a_verdict(job), job.folder) == []


def test_the_repair_of_files_at_fault_is_one_command_however_many_there_are(job: Job) -> None:
    names = tuple(f"train-{number:05}-of-00025.parquet" for number in range(25))
    write(job, checks=FAILED, at_fault=names)
    verdict = load_verdict(job)
    assert verdict is not None
    assert verdict.at_fault == names
    command, named = repairs(verdict, job.folder)
    assert command.endswith(
        f"25 files at fault aside and make missing shards again: python -m producer retry {job.folder}"
    )
    assert named.count("train-") == 20
    assert named.endswith(", … (all of them: verify.json, at_fault)")
    assert summary(verdict, job.folder) == f"Not verified (order, sums): {job.folder}"


def test_missing_shards_and_readers_that_differ_have_repairs(job: Job) -> None:
    accounting = RowAccounting(missing_shards=Findings(1, ("train-00000-of-00003.parquet",)))
    failed = (Check(name="source", passed=False, detail=""),)
    missing, readers = repairs(a_verdict(job, checks=failed, accounting=accounting), job.folder)
    assert missing == f"Make the missing shards: python -m producer retry {job.folder}"
    assert "look at the rows named above" in readers
    failed = (Check(name="sample", passed=False, detail=""),)
    (nothing,) = repairs(a_verdict(job, checks=failed, compared=0), job.folder)
    assert nothing.startswith("No vector was compared with PyTorch's: the check sample says why")


def test_what_a_verdict_does_not_cover_is_said(job: Job) -> None:
    for changes, says in (
        ({"checks": FAILED}, "the verifier found fault (order, sums)"),
        ({"fingerprint": "0" * 16}, "its verify.json is another job's"),
        ({"rows": 9}, "its verify.json is another job's"),
    ):
        write(job, **changes)
        assert doubt(job, load_verdict(job)) == says
    write(job)
    later = (job.folder / "verify.json").stat().st_mtime_ns + 10**6
    os.utime(str(job.shard(0)), ns=(later, later))
    assert doubt(job, load_verdict(job)) == "it was verified before its last shard was made"


def test_without_a_verdict_that_is_said(job: Job) -> None:
    (job.folder / "verify.json").unlink()
    assert load_verdict(job) is None
    assert doubt(job, None) == "it has not been verified"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": true}'])
def test_a_file_that_is_no_verdict_is_refused_with_the_mend(text: str, job: Job) -> None:
    (job.folder / "verify.json").write_text(text)
    with pytest.raises(UserError, match=r"verify.json is no verdict .*; verify the job again: python -m verify "):
        load_verdict(job)


def test_only_files_that_are_as_the_verifier_saw_them_are_at_fault(job: Job) -> None:
    assert at_fault(job) == []
    names = [job.shard(batch).name for batch in range(3)]
    write(job, checks=FAILED, at_fault=[*names, "stray.txt", "gone.txt"])
    (job.data / "stray.txt").touch()
    later = (job.folder / "verify.json").stat().st_mtime + 5
    for file in (job.shard(1), job.data / "stray.txt"):
        os.utime(str(file), (later, later))  # made since
    assert at_fault(job) == [names[0], names[2]]
    write(job, checks=FAILED, at_fault=names, fingerprint="another")
    with pytest.raises(UserError, match=f"another job's; verify this one: python -m verify {job.folder}"):
        at_fault(job)


def test_a_file_that_is_set_aside_is_kept(job: Job) -> None:
    for number in (1, 2):
        job.shard(0).write_text(f"content {number}")
        moved = job.set_aside(job.shard(0).name)
        assert moved == job.folder / "aside" / f"{job.shard(0).name}.{number}"
        assert moved.read_text() == f"content {number}"
        assert job.committed() == {1, 2}
