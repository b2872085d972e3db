import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Timer

import pytest

from worker import turns
from worker.turns import Turns

HOLD = """
import sys, time
from worker.turns import Turns
with Turns("0000:1B:00.0"):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)}
    )
    assert process.stdout
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_turn_is_waited_for_until_its_process_is_killed(holder: "subprocess.Popen[str]") -> None:
    killed = time.monotonic() + 0.3
    Timer(0.3, holder.kill).start()
    mine = Turns("0000:1B:00.0")
    with mine:
        assert time.monotonic() >= killed
    mine.close()
    holder.wait()


def test_nobody_waits_for_ever(holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_PATIENCE", 0.2)
    began = time.monotonic()
    mine = Turns("0000:1B:00.0")
    for _ in range(2):
        with mine:
            assert holder.poll() is None
    assert time.monotonic() - began >= 0.4
    mine.close()
    holder.kill()
    holder.wait()


def test_another_gpu_has_turns_of_its_own(
    holder: "subprocess.Popen[str]", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Turns("0000:2C:00.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1/2/3")
    part = Turns("0000:1B:00.0")
    began = time.monotonic()
    with other, part:
        assert time.monotonic() - began < turns._PATIENCE
        assert len(list(folder.iterdir())) == 3
    holder.kill()
    holder.wait()


def test_a_link_in_the_lock_files_place_is_not_followed(folder: Path) -> None:
    mine = Turns("x")
    (file,) = folder.iterdir()
    mine.close()
    file.unlink()
    file.symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Turns("x")
    assert not (folder / "elsewhere").exists()
