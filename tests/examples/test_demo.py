"""The demo leaves no process behind. That it does its work to the end is what ``make demo`` shows."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.demo import shard_lines
from tests.left import processes_of, wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A demo whose producer runs, in a process group of its own."""
    log = tmp_path / "demo.log"
    command = [sys.executable, "-m", "examples.demo", "--folder", str(tmp_path / "demo"), "--limit", "1500"]
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until(lambda: b" rows of " in log.read_bytes() or started.poll() is not None)
        assert started.poll() is None, log.read_text(encoding="utf-8")
        yield started
    finally:
        started.terminate()
        started.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "number", "status"),
    [(os.killpg, signal.SIGINT, 128 + signal.SIGINT), (os.kill, signal.SIGKILL, -signal.SIGKILL)],
    ids=["Ctrl-C", "SIGKILL"],
)
def test_no_process_of_an_interrupted_demo_is_left(
    demo: subprocess.Popen[bytes], tmp_path: Path, kill: Callable[[int, int], None], number: int, status: int
) -> None:
    before = processes_of(tmp_path / "demo")
    for part in ("redis-server", "celery", "producer", "examples.demo"):
        assert any(part in command for command in before), before
    kill(demo.pid, number)
    assert demo.wait(60) == status
    wait_until(lambda: not processes_of(tmp_path / "demo"), seconds=5)


def test_the_demo_shows_the_workers_lines_about_shards(tmp_path: Path) -> None:
    """In the words that the worker's source has."""
    form = re.search(r'"(job %s, batch %d of 0 to %d: )%s, %s, ', (ROOT / "worker" / "embed.py").read_text())
    assert form is not None
    line = form[1] % ("jargon-train-0123456789", 3, 9) + "1,024 rows, 280,000 tokens, 0.2 % padding computed, 1.50 s"
    log = tmp_path / "worker.log"
    log.write_text(f"[2026-11-01 10:00:00,000: INFO/ForkPoolWorker-1] {line}\n[2026-11-01 10:00:01: INFO] ready.\n")
    assert list(shard_lines(log)) == [line]
