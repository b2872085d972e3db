"""What Celery reads as it is imported."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.redis.heartbeat import computing
from contract.settings import settings
from embedmill.processes import process
from tests.commands import wait_until
from tests.contract.samples import WholeLedger
from worker import environment

ROOT = Path(__file__).parents[2]


def test_sigterm_that_goes_to_the_whole_group_leaves_the_children_to_their_parent(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with process([sys.executable, "-m", "celery", "-A", "worker", "worker"], log) as worker:
        wait_until(lambda: " loaded: " in log.read_text())
        wait_until(lambda: [one.state for one in computing(WholeLedger(patience=5).heartbeats())] == ["idle"])
        children = psutil.Process(worker.pid).children()
        for child in children:
            child.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert children
        assert all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_worker_that_is_started_in_another_way_says_so_and_ends(tiny: EngineSpec) -> None:
    """Without Celery's own command nothing sets what Celery reads as it is imported."""
    code = "from worker.celery import app; app.worker_main(['worker', '--pool', 'solo'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "REMAP_SIGTERM was not set before Celery was imported" in done.stderr
    assert "celery -A worker worker" in done.stderr
    assert "Traceback" not in done.stderr


def test_celery_begins_anew_before_anything_large_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMAP_SIGTERM", raising=False)
    told = subprocess.run(
        [sys.executable, "-c", _ASKS_FOR_THE_APP], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    program, modules = told.splitlines()
    assert program == sys.executable
    assert "worker.environment" in modules.split()
    assert not {"numpy", "pyarrow", "pydantic", "redis"} & set(modules.split())


_ASKS_FOR_THE_APP = """
import os, sys

def execve(program, arguments, environment):
    assert environment["REMAP_SIGTERM"] == "SIGQUIT"
    print(program, " ".join(sys.modules), sep="\\n", flush=True)
    os._exit(0)

os.execve = execve
sys.argv[0] = "celery"
import worker
worker.app
"""
"""What ``celery -A worker`` does to the package. The process that would take its place is not begun."""


def test_a_worker_without_space_for_what_its_metrics_count_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("EMBEDMILL_METRICS_PORT", "9808")
    monkeypatch.delenv(environment.METRICS, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    settings.cache_clear()
    with pytest.raises(UserError, match=f"no space for what the metrics count .No space left on device: {tmp_path}"):
        environment.prepare()
    assert environment.METRICS not in os.environ
