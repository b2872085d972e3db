"""Two jobs and one worker: the urgent one, begun later, ends first."""

from pathlib import Path

from contract.engine import EngineSpec
from contract.jobs import find_job
from embedmill.processes import celery_worker
from producer.reasons import reason
from producer.status import status_of
from tests.commands import called, wait_until
from tests.conftest import JARGON
from tests.contract.samples import WholeLedger

ROOT = str(JARGON.parent.parent)
COMMAND = ("producer", "--dataset", JARGON, "--text-column", "text", "--batch-rows", 5, "--detach")
LARGE = (*COMMAND, "--limit", 300, "--name", "large")
URGENT = (*COMMAND, "--limit", 100, "--name", "urgent")


def test_of_two_jobs_the_urgent_one_begun_later_ends_first(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    ledger = WholeLedger(patience=5)
    called(*LARGE)
    large = find_job("large")
    with celery_worker(
        tmp_path / "worker.log", app="bench.chaos.haunted", env={"CHAOS_SECONDS": "0.2", "PYTHONPATH": ROOT}
    ):
        wait_until(lambda: len(large.committed()) >= 2)
        called(*URGENT, "--priority", 5)
        urgent, before = find_job("urgent"), len(large.committed())
        wait_until(lambda: ledger.priorities() == {large.key: 0, urgent.key: 5})
        wait_until(lambda: any(one.job == urgent.key for one in ledger.heartbeats()))
        seen = status_of(large, ledger).view
        assert reason(seen).line.endswith("its priority 5 goes before this job's 0")
        assert "priority" in called("producer", "status", "large").stdout
        wait_until(lambda: len(urgent.committed()) == urgent.batches)
        # What the worker had in hand and had taken before is all that came of the other job meanwhile.
        assert len(large.committed()) <= before + 3
        # The same command with another priority changes it; the job is the same one.
        called(*LARGE, "--priority", -7)
        assert find_job("large").id == large.id
        assert ledger.priorities()[large.key] == -7
