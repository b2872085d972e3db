"""Which engine a worker takes, on a machine without a GPU and on one that has none to give."""

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import Settings, settings
from contract.shard import ShardInfo
from contract.tuned import Measurement
from tests.contract.samples import plan_spec
from worker.probe import UNTOUCHED
from worker.runtime import choose as module
from worker.runtime.choose import RUNTIMES, choose, gpu_usable, open_engine, open_fp32_engine
from worker.runtime.onnx import OnnxEngine
from worker.runtime.torch_cpu import TorchCpuEngine
from worker.starting import try_on_gpu

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
        assert choose(with_plan).runtime.name == "onnxruntime"
        assert not gpu_usable()
        with open_engine(with_plan, threads=1) as engine:
            assert isinstance(engine, OnnxEngine)
    assert not caplog.records


def test_an_engine_with_long_rows_is_computed_on_a_cpu_by_pytorch(
    tiny: EngineSpec, caplog: pytest.LogCaptureFixture
) -> None:
    for length, kind in ((1024, OnnxEngine), (1025, TorchCpuEngine)):
        long = tiny.model_copy(update={"max_length": length})
        with caplog.at_level(logging.INFO), open_engine(long, threads=1) as engine:
            assert isinstance(engine, kind)
        with open_fp32_engine(long, threads=1) as engine:
            assert isinstance(engine, kind)
    assert "ONNX Runtime" not in caplog.messages[0]
    assert "for a row of 1,025 tokens ONNX Runtime's attention would take gigabytes" in caplog.messages[1]


def test_onnx_runtime_with_long_rows_is_warned_of(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime("onnxruntime", monkeypatch)
    with (
        caplog.at_level(logging.WARNING),
        open_engine(tiny.model_copy(update={"max_length": 8192}), threads=1) as engine,
    ):
        assert isinstance(engine, OnnxEngine)
    (line,) = caplog.messages
    assert "rows of up to 8,192 tokens" in line
    assert "pip install 'embedmill[torch]', and unset EMBEDMILL_RUNTIME" in line


def test_a_plan_that_cannot_be_used_is_said_where_the_engine_is_opened(
    tiny: EngineSpec, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = EngineSpec.model_validate(tiny.model_dump() | {"plans": [{"file": "plans/a.plan"}]})
    with caplog.at_level(logging.WARNING), open_engine(damaged, threads=1) as engine:
        assert isinstance(engine, OnnxEngine)
    (line,) = caplog.messages
    assert "has an entry of plans that this version cannot use (sha256: field required); build it on" in line


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all that TensorRT and PyTorch need, and an H200."""
    ready = [one._replace(machine_lacks=lambda: "") if one.uses_gpu else one for one in RUNTIMES]
    monkeypatch.setattr(module, "RUNTIMES", tuple(ready))
    monkeypatch.setattr(module, "gpu_model", lambda: "NVIDIA H200")


@pytest.mark.parametrize(
    ("asked", "planned", "name", "on_gpu"),
    [
        ("auto", True, "tensorrt", True),
        ("auto", False, "torch", True),
        ("torch", True, "torch", True),
        ("tensorrt", True, "tensorrt", True),
        ("onnxruntime", True, "onnxruntime", False),
    ],
)
def test_on_a_gpu_where_nothing_was_measured_a_plan_comes_first_and_then_pytorch(
    asked: str, planned: bool, name: str, on_gpu: bool, gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime(asked, monkeypatch)
    chosen = choose(tiny.model_copy(update={"plans": (plan_spec(),) if planned else ()}))
    assert (chosen.runtime.name, chosen.runtime.uses_gpu) == (name, on_gpu)
    assert gpu_usable() == on_gpu


@pytest.mark.parametrize("package", ["pycuda", "cuda-bindings"])
def test_the_log_says_through_which_package_tensorrt_reaches_the_gpu(
    package: str, gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime("tensorrt", monkeypatch)
    load: Any = lambda: lambda *_: None  # noqa: E731
    ready = [one._replace(load=load, through=lambda: package) for one in module.RUNTIMES if one.name == "tensorrt"]
    monkeypatch.setattr(module, "RUNTIMES", tuple(ready))
    with caplog.at_level(logging.INFO):
        open_engine(tiny.model_copy(update={"plans": (plan_spec(),)}), threads=1)
    told = f"engine tiny is computed by tensorrt on a GPU through {package}: EMBEDMILL_RUNTIME is tensorrt"
    assert caplog.messages == [told]


@pytest.mark.parametrize(
    ("name", "why", "told"),
    [("torch", {}, "in FP16: "), ("modules", {"fp16": "is too far"}, "in BF16 (FP16 is too far): ")],
)
def test_the_log_says_in_which_precision_pytorch_computes_on_a_gpu_and_why(
    name: str,
    why: dict[str, str],
    told: str,
    gpu: None,
    tiny: EngineSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime(name, monkeypatch)
    load: Any = lambda: lambda *_: None  # noqa: E731
    monkeypatch.setattr(module, "RUNTIMES", tuple(one._replace(load=load) for one in module.RUNTIMES))
    chosen = {"torch_precision": "bf16", "unused_precisions": why} if why else {}
    with caplog.at_level(logging.INFO):
        open_engine(only(tiny, name).model_copy(update=chosen), threads=1)
    assert caplog.messages == [f"engine tiny is computed by {name} on a GPU {told}EMBEDMILL_RUNTIME is {name}"]


def test_tensorrt_that_is_asked_for_without_a_plan_is_an_error(
    gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("tensorrt", monkeypatch)
    told = (
        "EMBEDMILL_RUNTIME is tensorrt; engine tiny has no plan; build it on this machine: python -m engine_build plan"
    )
    with pytest.raises(UserError, match=told):
        choose(tiny.model_copy(update={"plans": ()}))


def measured(runtime: str, mixed: float, **changes: object) -> Measurement:
    fields = {
        "gpu": "NVIDIA H200",
        "runtime": runtime,
        "version": f"{runtime} 1",
        "tokens_per_second": {"short": 1.0, "mixed": mixed, "long": 1.0},
        "min_cosine": 0.99999,
        "within_tolerance": True,
        "created": "2026-11-01T00:00:00.000000+00:00",
    }
    return Measurement.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("measurements", "name"),
    [
        ([measured("tensorrt", 1.7e6), measured("torch", 2.4e6)], "torch"),
        ([measured("tensorrt", 2.5e6), measured("torch", 2.4e6)], "tensorrt"),
        ([measured("torch", 1e6)], "torch"),
        ([measured("tensorrt", 1.7e6), measured("torch", 2.4e6, within_tolerance=False)], "tensorrt"),
        ([measured("torch", 2.4e6, gpu="NVIDIA L4")], "tensorrt"),
        ([measured("onnxruntime", 9e6)], "tensorrt"),
    ],
)
def test_on_a_gpu_the_fastest_that_was_measured_there_and_is_exact_is_taken(
    measurements: list[Measurement], name: str, gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("auto", monkeypatch)
    chosen = choose(tiny.model_copy(update={"plans": (plan_spec(),), "measured": tuple(measurements)}))
    assert chosen.runtime.name == name
    if name == "torch" and len(measurements) == 2:
        assert chosen.why == "measured on NVIDIA H200, million tokens/s: tensorrt 1.70, torch 2.40"


def test_a_measured_runtime_that_this_machine_lacks_is_not_taken(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime("auto", monkeypatch)
    assert choose(tiny.model_copy(update={"measured": (measured("torch", 2.4e6),)})).runtime.name == "onnxruntime"


def test_a_gpu_that_the_engine_leaves_idle_is_a_warning(
    gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime("auto", monkeypatch)
    monkeypatch.setattr(module, "RUNTIMES", tuple(one for one in module.RUNTIMES if one.name != "torch"))
    with caplog.at_level(logging.WARNING):
        assert choose(tiny).runtime.name == "onnxruntime"
    (record,) = caplog.records
    assert record.message.startswith("the GPU is left idle: engine tiny has no plan; build it on this machine")
    caplog.clear()
    choose(EngineSpec.model_validate(tiny.model_dump() | {"plans": [{}]}))
    (record,) = caplog.records
    assert "no plan besides 1 that this version cannot use (file: field required); build it" in record.message


def test_pytorch_computes_on_a_cpu_when_it_is_asked_for(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime("torch", monkeypatch)
    with open_engine(tiny, threads=1) as engine:
        assert isinstance(engine, TorchCpuEngine)
    assert not gpu_usable()


def only(spec: EngineSpec, tier: str) -> EngineSpec:
    """The engine as if it had this tier alone."""
    hashes = dict.fromkeys(("onnx_sha256", "onnx_fp16_sha256", "onnx_packed_sha256", "torch_sha256"))
    unused = {"onnx": "its attention has windows"}
    return spec.model_copy(update={**hashes, f"{tier}_sha256": "x", "unused": unused})


@pytest.mark.parametrize("tier", ["torch", "modules"])
def test_an_engine_without_onnx_is_computed_by_what_it_has(
    tier: str, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = only(tiny, tier)
    for asked in ("auto", tier):
        runtime(asked, monkeypatch)
        assert (choose(spec).runtime.name, choose(spec).runtime.uses_gpu) == (tier, False)
    runtime("onnxruntime", monkeypatch)
    with (
        pytest.raises(UserError, match="EMBEDMILL_RUNTIME is onnxruntime; engine tiny has no ONNX file: its attention"),
        open_engine(spec, threads=1),
    ):
        pass


def test_pytorch_computes_on_a_gpu_only_in_a_precision_that_is_exact_enough(tiny: EngineSpec) -> None:
    on_gpu = next(one for one in RUNTIMES if one.name == "torch" and one.uses_gpu)
    assert not on_gpu.engine_lacks(tiny)
    far = tiny.model_copy(update={"torch_precision": None})
    assert on_gpu.engine_lacks(far).startswith("engine tiny is too far from encode() in FP16 and BF16")


@pytest.mark.parametrize("tier", ["torch", "modules"])
def test_an_engine_without_onnx_on_a_machine_without_pytorch_is_an_error_that_says_what_to_install(
    tier: str, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("auto", monkeypatch)
    monkeypatch.setattr(
        module,
        "RUNTIMES",
        tuple(
            one._replace(machine_lacks=lambda: "no Python package torch") if one.extra in ("torch", "modules") else one
            for one in RUNTIMES
        ),
    )
    told = rf"computed by {tier}, and this machine has no Python package torch.*its attention has windows.*\[{tier}\]"
    with pytest.raises(UserError, match=told):
        choose(only(tiny, tier))
    with pytest.raises(UserError, match=told):
        open_fp32_engine(only(tiny, tier), threads=1)


@pytest.mark.parametrize("tier", ["torch", "modules"])
def test_on_a_gpu_an_engine_without_onnx_is_computed_there(
    tier: str, gpu: None, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("auto", monkeypatch)
    assert (choose(only(tiny, tier)).runtime.name, choose(only(tiny, tier)).runtime.uses_gpu) == (tier, True)


def test_every_runtime_can_be_asked_for_by_its_name() -> None:
    named = set(get_args(Settings.model_fields["runtime"].annotation))
    assert named == {"auto", *(runtime.name for runtime in RUNTIMES)}


def test_tensorrt_that_is_asked_for_and_cannot_be_had_is_an_error(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime("tensorrt", monkeypatch)
    with pytest.raises(UserError, match=r"this machine has no NVIDIA GPU.*pip install 'embedmill\[gpu\]'"):
        choose(tiny)


@pytest.mark.parametrize(("name", "tier"), [("onnxruntime", "torch"), ("torch", "modules"), ("modules", "torch")])
def test_a_runtime_that_is_asked_for_and_that_the_engine_has_nothing_for_is_an_error(
    name: str, tier: str, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's parent chooses before it starts its children, so that it ends with this line."""
    runtime(name, monkeypatch)
    with pytest.raises(
        UserError, match=rf"EMBEDMILL_RUNTIME is {name}; engine tiny has no .*; unset EMBEDMILL_RUNTIME"
    ):
        choose(only(tiny, tier))


def test_a_worker_that_cannot_have_it_does_not_start(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_RUNTIME", "tensorrt")
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "EMBEDMILL_RUNTIME is tensorrt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_probe_opens_the_engine_or_says_why_not(tiny: EngineSpec) -> None:
    fine = subprocess.run([sys.executable, "-m", "worker.probe", "tiny"], cwd=ROOT, capture_output=True, text=True)
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, f"{UNTOUCHED}\n", "")
    gone = subprocess.run([sys.executable, "-m", "worker.probe", "none"], cwd=ROOT, capture_output=True, text=True)
    assert gone.returncode == 1
    assert gone.stderr.startswith("Error: no engine none in ")


def test_a_worker_imports_what_its_children_need_once_it_is_known_that_this_leaves_cuda_alone(
    tiny: EngineSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def load() -> Any:
        loaded.append("here")

    runtime = next(one for one in module.RUNTIMES if one.before_fork)._replace(load=load)
    try_on_gpu(tiny, runtime._replace(before_fork=False))
    assert not loaded
    try_on_gpu(tiny, runtime)
    assert loaded == ["here"]
    with pytest.raises(UserError, match="engine gone cannot be opened on this machine's GPU"):
        try_on_gpu(tiny.model_copy(update={"name": "gone"}), runtime)
    assert loaded == ["here"]
    assert "Error: no engine gone in " in capfd.readouterr().err


def test_each_runtime_has_words_for_how_it_computes() -> None:
    sources = Path(module.__file__).parent.glob("*.py")
    named = {name for source in sources for name in re.findall(r'^    runtime = f"(\S+) ', source.read_text(), re.M)}
    assert named == {"onnxruntime", "sentence-transformers", "tensorrt", "torch"}
    for name in named:
        assert re.fullmatch(
            r"\S+ 1\.0 \(.+, fp16\)", ShardInfo.model_construct(runtime=f"{name} 1.0", precision="fp16").computed_by
        )
