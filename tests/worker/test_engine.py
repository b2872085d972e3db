"""Which engine a worker takes, on a machine without a GPU and on one that has none to give."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from tests.contract.samples import plan_spec
from worker.engine import open_engine, takes_tensorrt
from worker.onnx_engine import OnnxEngine

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def runtime(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_RUNTIME", value)
    settings.cache_clear()


@pytest.mark.parametrize("asked", ["auto", "onnxruntime"])
def test_without_a_gpu_onnx_runtime_computes(
    asked: str, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime(asked, monkeypatch)
    with_plan = tiny.model_copy(update={"plans": (plan_spec(),)})
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_engine(with_plan, threads=1), OnnxEngine)
    assert not caplog.records


def test_tensorrt_that_is_asked_for_and_cannot_be_had_is_an_error(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("tensorrt", monkeypatch)
    with pytest.raises(UserError, match=r"this machine has no NVIDIA GPU.*pip install 'embedmill\[gpu\]'"):
        takes_tensorrt(tiny)


def test_a_worker_that_cannot_have_it_does_not_start(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_RUNTIME", "tensorrt")
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "EMBEDMILL_RUNTIME is tensorrt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_probe_opens_the_engine_or_says_why_not(tiny: EngineSpec) -> None:
    fine = subprocess.run([sys.executable, "-m", "worker.probe", "tiny"], cwd=ROOT, capture_output=True, text=True)
    assert (fine.returncode, fine.stderr) == (0, "")
    gone = subprocess.run([sys.executable, "-m", "worker.probe", "none"], cwd=ROOT, capture_output=True, text=True)
    assert gone.returncode == 1
    assert gone.stderr.startswith("Error: no engine none in ")
