"""Which engine a worker takes, on a machine without a GPU and on one that has none to give."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import Settings, settings
from tests.contract.samples import plan_spec
from worker.runtime import choose as module
from worker.runtime.choose import RUNTIMES, choose, gpu_usable, open_engine
from worker.runtime.onnx import OnnxEngine

ROOT = Path(__file__).parents[3]


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
        assert choose(with_plan).name == "onnxruntime"
        assert not gpu_usable()
        with open_engine(with_plan, threads=1) as engine:
            assert isinstance(engine, OnnxEngine)
    assert not caplog.records


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all that TensorRT needs."""
    tensorrt, *others = RUNTIMES
    monkeypatch.setattr(module, "RUNTIMES", (tensorrt._replace(machine_lacks=lambda: ""), *others))


@pytest.mark.parametrize(
    ("asked", "planned", "name"),
    [
        ("auto", True, "tensorrt"),
        ("auto", False, "onnxruntime"),
        ("tensorrt", False, "tensorrt"),  # which then says that there is no plan
        ("onnxruntime", True, "onnxruntime"),
    ],
)
def test_with_a_gpu_tensorrt_computes_an_engine_that_has_a_plan(
    asked: str,
    planned: bool,
    name: str,
    gpu: None,
    tiny: EngineSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime(asked, monkeypatch)
    spec = tiny.model_copy(update={"plans": (plan_spec(),) if planned else ()})
    with caplog.at_level(logging.WARNING):
        chosen = choose(spec)
    assert (chosen.name, chosen.uses_gpu) == (name, name == "tensorrt")
    assert gpu_usable() == (asked != "onnxruntime")
    idle = "engine tiny has no plan, so the GPU is left idle; build it on this machine"
    assert [idle in record.message for record in caplog.records] == ([True] if asked == "auto" and not planned else [])


def test_every_runtime_can_be_asked_for_by_its_name() -> None:
    named = set(get_args(Settings.model_fields["runtime"].annotation))
    assert named == {"auto", *(runtime.name for runtime in RUNTIMES)}


def test_tensorrt_that_is_asked_for_and_cannot_be_had_is_an_error(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("tensorrt", monkeypatch)
    with pytest.raises(UserError, match=r"this machine has no NVIDIA GPU.*pip install 'embedmill\[gpu\]'"):
        choose(tiny)


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
