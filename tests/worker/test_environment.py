"""What Celery reads as it is imported."""

import signal
import time
from pathlib import Path

import psutil

from contract.engine import EngineSpec
from contract.redis.heartbeat import computing
from examples.local import celery_worker
from tests.contract.samples import WholeLedger
from tests.test_end_to_end import wait_until


def test_sigterm_that_goes_to_the_whole_group_leaves_the_children_to_their_parent(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    with celery_worker(tmp_path / "worker.log") as worker:
        wait_until(lambda: [one.state for one in computing(WholeLedger(patience=5).heartbeats())] == ["idle"])
        children = psutil.Process(worker.pid).children()
        for child in children:
            child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert children
        assert all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
