import json
import os
from pathlib import Path

import pytest

from contract.errors import UserError
from contract.job import Job
from contract.verdict import at_fault, doubt, load_verdict
from tests.contract.samples import a_job

FIGURES = {
    "rows": 2,
    "mse": 1e-15,
    "relative_mse": 1e-12,
    "min_cosine": 1.0,
    "max_difference": None,
    "non_finite": 0,
}


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
    told = {
        "job": job.id,
        "fingerprint": job.fingerprint,
        "revision": job.revision,
        "rows": job.rows,
        "passed": True,
        "when": "2026-11-23T10:00:00+00:00",
        "compared": 2,
        "at_fault": [],
        "checks": [{"name": "rows", "passed": True, "detail": "10 in, 10 out"}],
        "strata": [{"tokens": "1-32", "vectors": 2, **FIGURES}],
        "total": {"vectors": 2, **FIGURES},
        "worst_rows": [],
    }
    (job.folder / "verify.json").write_text(json.dumps(told | changes))


def test_a_verdict_is_read_and_stands(job: Job) -> None:
    verdict = load_verdict(job)
    assert verdict is not None
    assert [row.tokens for row in [*verdict.strata, verdict.total]] == ["1-32", "all"]
    assert doubt(job, verdict) == ""


def test_what_a_verdict_does_not_cover_is_said(job: Job) -> None:
    failed = [{"name": name, "passed": name == "rows", "detail": ""} for name in ("rows", "order", "sums")]
    for changes, says in (
        ({"passed": False, "checks": failed}, "the verifier found fault (order, sums)"),
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
    write(job, passed=False, at_fault=[*names, "stray.txt", "gone.txt"])
    (job.data / "stray.txt").touch()
    later = (job.folder / "verify.json").stat().st_mtime + 5
    for place in (job.shard(1), job.data / "stray.txt"):
        os.utime(str(place), (later, later))  # made since
    assert at_fault(job) == [names[0], names[2]]
    write(job, passed=False, at_fault=names, fingerprint="another")
    with pytest.raises(UserError, match=f"another job's; verify this one: python -m verify {job.folder}"):
        at_fault(job)


def test_a_file_that_is_set_aside_is_kept(job: Job) -> None:
    for number in (1, 2):
        job.shard(0).write_text(f"content {number}")
        moved = job.set_aside(job.shard(0).name)
        assert moved == job.folder / "aside" / f"{job.shard(0).name}.{number}"
        assert moved.read_text() == f"content {number}"
        assert job.committed() == {1, 2}
