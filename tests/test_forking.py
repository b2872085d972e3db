"""A program that is forked is as one that was started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from contract.engine import EngineSpec
from embedmill.processes import process
from tests import forking
from tests.commands import wait_until
from tests.left import processes_of


def both(*words: str, **options: object) -> list[tuple[int, str, str]]:
    """Exit status and output of a program that is forked, and of one that is started."""
    found = []
    for cold in (False, True):
        forking.cold = cold  # which the fixture of all tests undoes
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100, **options)  # type: ignore[call-overload]
        found.append((done.returncode, done.stdout, done.stderr))
    return found


@pytest.mark.parametrize(
    "words",
    [("-m", "producer", "--help"), ("-P", "-m", "producer", "list"), ("-m", "producer", "--dataset", "nowhere.csv")],
)
def test_it_ends_and_says_the_same(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    forked, started = both(*words, cwd=tmp_path)
    assert forked == started
    assert forking.server


def test_it_is_this_processs_child_and_shows_its_command_line_environment_and_folder(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    (place := tmp_path / "place").mkdir()
    env = {"PYTHONPATH": str(Path(__file__).parent.parent), "EMBEDMILL_OUTPUT": str(tmp_path / "elsewhere")}
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-n", "me@%h"]
    with process(command, tmp_path / "log", env=env | {"REMAP_SIGTERM": "SIGQUIT"}, cwd=place) as started:
        wait_until(lambda: " loaded: " in (tmp_path / "log").read_text())
        seen = psutil.Process(started.pid)
        assert seen.ppid() == os.getpid()
        assert [word for word in seen.cmdline() if word] == command
        assert seen.cwd() == str(place)
        assert seen.environ() == os.environ | env | {"REMAP_SIGTERM": "SIGQUIT"}
        assert os.getsid(started.pid) == started.pid
        assert {os.readlink(f"/proc/{started.pid}/fd/{number}") for number in (1, 2)} == {str(tmp_path / "log")}
        (child,) = seen.children()
        assert len(processes_of(tmp_path / "elsewhere")) == 2
        started.send_signal(signal.SIGKILL)
        assert started.wait(20) == -signal.SIGKILL
        wait_until(lambda: not child.is_running())


def test_what_libraries_read_as_they_are_imported_is_not_taken_from_another_environment() -> None:
    server = forking.server or forking.Server.start()
    env = dict(server.environment)
    assert server.takes(env | {"EMBEDMILL_ENGINE": "x", "TMPDIR": "/x"})
    for name in ("HF_HOME", "OMP_NUM_THREADS", "PYTHONPATH", "CELERY_BROKER_URL", "PROMETHEUS_MULTIPROC_DIR"):
        assert not server.takes(env | {name: "another"})
