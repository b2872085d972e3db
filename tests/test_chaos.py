"""A short version of ``make chaos``: fewer batches, fewer faults, the same comparison row by row."""

from pathlib import Path

import pytest
import redis
from rich.console import Console

from bench.chaos import rig
from bench.chaos.fault import Fault
from bench.chaos.place import Place
from bench.chaos.processes import kill_child, kill_worker
from bench.chaos.rig import Rig
from bench.chaos.run import run
from bench.chaos.servers import OneServer
from bench.chaos.surroundings import confuse, restart_redis
from tests.contract.samples import a_job

POISON = {"CHAOS_RAISE": "41", "CHAOS_KILL": "103", "CHAOS_NAN": "177"}
SHORT = (
    Fault("SIGKILLs of children", kill_child, 4, (0.1, 0.9), seconds=0.3),
    Fault("SIGKILLs of whole workers", kill_worker, 2, (0.2, 1.8), seconds=0.3),
    Fault("Redis killed, all in it lost", restart_redis, after=8),
    Fault("rows that raise, kill and yield NaN", env=POISON, failed=(41, 103, 177), seconds=0.02),
    Fault("every message twice, strangers, garbage", confuse(), 10**6, (0.1, 0.1), seconds=0.1),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_row_is_lost_twice_or_different_whatever_happens(tmp_path: Path, session_engines: Path) -> None:
    lost = tmp_path / "lost"
    lost.touch()
    faults = [*SHORT, Fault("a GPU that is lost", env={"CHAOS_DEAD": str(lost)}, seconds=0.1)]
    records = run(faults, tmp_path, seed=1, rows=184, console=Console())
    assert not lost.exists()
    assert [record["fault"] for record in records] == ["undisturbed", *(fault.name for fault in faults)]
    for record in records:
        assert record["passed"], record
        assert (record["rows"], record["rows_lost"], record["rows_twice"], record["rows_different"]) == (184, 0, 0, 0)


def test_of_what_is_left_on_redis_only_a_count_that_expires_is_no_fault(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rig, "_LAST_WORDS", 0.5)
    job, client = a_job(tmp_path / "output"), redis.Redis.from_url(redis_url)
    job.save()

    class Given(OneServer):
        def client(self) -> redis.Redis:
            return client

    servers = Given(lambda name, command: pytest.fail("it runs"), tmp_path, "127.0.0.1")
    after = Rig(Place(tmp_path, tmp_path), tmp_path, 1, servers, output=str(tmp_path / "output"))
    client.set(f"embedmill:{job.key}:rows", 5, ex=60)
    assert after.left_on_redis() == []
    client.persist(f"embedmill:{job.key}:rows")
    client.set(f"embedmill:{job.key}:out", "x", ex=60)
    assert after.left_on_redis() == [f"embedmill:{job.key}:out", f"embedmill:{job.key}:rows"]
