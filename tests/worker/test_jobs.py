"""When a worker takes batches of a job again that it refused."""

from pathlib import Path

import pytest

from contract.job import Job
from tests.contract.samples import WholeLedger, a_job
from worker import jobs
from worker.heartbeat import HeartbeatSender
from worker.jobs import Jobs
from worker.serving import CannotServe


@pytest.fixture
def job(redis_url: str, tmp_path: Path) -> Job:
    job = a_job(tmp_path / "output")
    WholeLedger(patience=5).announce(job)
    return job


@pytest.mark.parametrize(("found_by_a_check", "again_after"), [(True, 2.0), (False, 30.0)])
def test_a_job_is_served_again_soon_if_a_check_finds_why_its_batch_went_back(
    found_by_a_check: bool, again_after: float, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, swapped = 1000.0, False

    def check(job: Job) -> None:
        if swapped and found_by_a_check:
            raise CannotServe("another engine")

    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    served = Jobs(HeartbeatSender("w"), check)
    served.refresh()
    assert set(served.served) == {job.key}
    swapped = True
    served.refuse(job.key, "the engine cannot be loaded")
    served.refresh()
    swapped = False
    assert not served.served
    now += again_after - 0.1
    served.refresh()
    assert served.refuses(job.key)
    now += 0.2
    served.refresh()
    assert set(served.served) == {job.key}
