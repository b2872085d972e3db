import importlib.util
from pathlib import Path

import pytest

from worker.runtime import gpus
from worker.runtime.gpus import cuda_package, gpu_count, gpu_model, lacking, missing, tensorrt_package


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device files of a machine with two GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_device_files_are_counted(devices: Path, tmp_path: Path) -> None:
    assert gpu_count(devices) == 2
    assert gpu_count(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("named", "count"), [("0", 1), ("1,0", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-8a,GPU-9b", 2), ("0,1,2", 2)]
)
def test_cuda_visible_devices_takes_some_away(
    named: str, count: int, devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpu_count(devices) == count


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lacking() == "no NVIDIA GPU"


def test_the_gpus_model_is_the_drivers_name_unless_there_are_several(tmp_path: Path) -> None:
    assert gpu_model(tmp_path / "none") == ""
    for bus in ("0000:19:00.0", "0000:3b:00.0"):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 203\n")
    assert gpu_model(tmp_path) == "NVIDIA H100 80GB HBM3"
    (tmp_path / bus / "information").write_text("Model: \t\t NVIDIA L4\n")
    assert gpu_model(tmp_path) == ""


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("numpy", "json") == ""
    assert missing("numpy", "no_such", "nor_this") == "no Python package no_such and nor_this"


def test_a_package_whose_parent_is_missing_is_missing() -> None:
    assert missing("no_such.bindings") == "no Python package no_such.bindings"


@pytest.mark.parametrize(
    ("installed", "tensorrt", "driver", "lacks"),
    [
        (["tensorrt", "tensorrt_rtx", "pycuda", "cuda.bindings"], "tensorrt", "pycuda", ""),
        (["tensorrt_rtx", "cuda.bindings"], "tensorrt_rtx", "cuda-bindings", ""),
        (["tensorrt_rtx"], "tensorrt_rtx", "", "no Python package cuda-bindings"),
        ([], "", "", "no Python package tensorrt and cuda-bindings"),
    ],
)
def test_of_two_packages_that_do_the_same_the_first_is_taken(
    installed: list[str], tensorrt: str, driver: str, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(gpus, "gpu_count", lambda: 1)
    assert (tensorrt_package(), cuda_package(), lacking()) == (tensorrt, driver, lacks)
