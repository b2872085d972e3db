import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import producer.command
from contract.job import Job
from contract.redis.ledger import DeadBatch
from producer.status import status_of
from tests.commands import called
from tests.contract.samples import WholeLedger, a_job, commit_by_hand
from tests.producer.test_driver import batch


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """18 rows in 5 batches: two have shards, one is out, one is dead."""
    job = a_job(tmp_path / "output", rows=18, batch_rows=4)
    job.save()
    return job


@pytest.fixture
def ledger(redis_url: str, job: Job) -> WholeLedger:
    ledger = WholeLedger(patience=5)
    for number in (0, 4):
        commit_by_hand(job, batch(job, number))
    for number in (0, 1):  # the worker of batch 0 died before it could say that it was done
        ledger.publish(job, number, b"x" * 1000)
    ledger.bury(
        job.key,
        2,
        DeadBatch(
            error="ValueError: no vector of {ForeignNode[/embeddings/Gather]}", where="embed.py:3 in f", attempts=4
        ),
    )
    return ledger


def test_every_batch_is_counted_once(job: Job, ledger: WholeLedger) -> None:
    status = status_of(job, ledger)
    assert (status.done, status.out, len(status.dead), status.waiting) == (2, 1, 1, 1)
    assert (status.rows, status.out_bytes, status.view.alive()) == (6, 1000, [])
    assert status.eta == pytest.approx((18 - 6) / status.rows_per_s)


def test_the_speed_is_that_of_the_last_minute(job: Job, ledger: WholeLedger) -> None:
    hour_ago = time.time() - 3600
    os.utime(str(job.shard(0)), (hour_ago, hour_ago))
    assert status_of(job, ledger).rows_per_s == pytest.approx(2 / 60)
    os.utime(str(job.shard(4)), (hour_ago, hour_ago))
    assert (status_of(job, ledger).rows_per_s, status_of(job, ledger).eta) == (0, None)


def test_the_command_shows_the_latest_job_and_names_what_is_dead(job: Job, ledger: WholeLedger) -> None:
    told = CliRunner().invoke(producer.command.main, ["status"])
    assert told.exit_code == 0, told.output
    for shown in (job.id, "6 of 18", "dead 2", "no vector", "[/embeddings/Gather]"):
        assert shown in told.output


def test_watching_ends_with_the_job(job: Job, ledger: WholeLedger) -> None:
    for number in (1, 3):
        commit_by_hand(job, batch(job, number))
    told = CliRunner().invoke(producer.command.main, ["status", job.id, "--watch"])
    assert told.exit_code == 0, told.output
    assert "14 of 18" in told.output


def test_without_a_redis_the_folders_jobs_are_listed_and_who_asks_more_is_told_at_once(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_PATIENCE", "300")
    commit_by_hand(job, batch(job, 0))
    told = called("producer", "list")
    assert "4 of 18" in told.stdout
    assert "not done" in told.stdout
    line = "no answer from Redis at redis://127.0.0.1:1/0 ("
    assert f"Only the jobs in {job.folder.parent} are listed: {line}" in told.stderr
    for words in (("status", job.id), ("cancel", job.id), ("clean",)):
        assert line in called("producer", *words, expect=1).output
