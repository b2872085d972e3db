import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Timer

import pytest

from worker.runtime import gpu_lock as module
from worker.runtime.gpu_lock import gpu_lock

HOLD = """
import sys, time
from worker.runtime.gpu_lock import gpu_lock
with gpu_lock("0000:1B:00.0") as lock, lock.held():
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


def test_the_lock_is_waited_for_until_its_process_is_killed(holder: "subprocess.Popen[str]") -> None:
    killed = time.monotonic() + 0.3
    Timer(0.3, holder.kill).start()
    with gpu_lock("0000:1B:00.0") as lock, lock.held():
        assert time.monotonic() >= killed
    holder.wait()


def test_nobody_waits_for_ever(holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    began = time.monotonic()
    with gpu_lock("0000:1B:00.0") as lock:
        for _ in range(2):
            with lock.held():
                assert holder.poll() is None
    assert time.monotonic() - began >= 0.4
    holder.kill()
    holder.wait()


def test_another_gpu_has_a_lock_of_its_own(
    holder: "subprocess.Popen[str]", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with gpu_lock("0000:2C:00.0") as other:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1/2/3")
        with gpu_lock("0000:1B:00.0") as part, other.held(), part.held():
            assert time.monotonic() - began < module.TIMEOUT
            assert len(list(folder.iterdir())) == 3
    holder.kill()
    holder.wait()


def test_pytorch_and_tensorrt_write_the_gpus_name_differently_and_have_one_lock(folder: Path) -> None:
    with gpu_lock("0000:1B:00.0"), gpu_lock("0000:1b:00.0"):
        assert len(list(folder.iterdir())) == 1


def test_the_lock_is_released_after_an_error(folder: Path) -> None:
    with gpu_lock("x") as lock, gpu_lock("x") as another:
        with pytest.raises(ValueError, match="a batch"), lock.held():
            raise ValueError("a batch")
        began = time.monotonic()
        with another.held():
            assert time.monotonic() - began < module.TIMEOUT


def test_a_link_in_the_lock_files_place_is_not_followed(folder: Path) -> None:
    with gpu_lock("x"):
        (file,) = folder.iterdir()
    file.unlink()
    file.symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), gpu_lock("x"):
        pass
    assert not (folder / "elsewhere").exists()
