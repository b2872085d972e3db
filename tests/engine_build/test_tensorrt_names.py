"""What the TensorRT code calls exists in the real Python bindings of TensorRT 11, which no machine here can run.

The bindings need TensorRT's libraries to be imported: libraries that hold nothing but the few functions that they link
to are enough for that.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from contract.plan import PaddedProfile
from engine_build.profiles import PlanOptions, padded_shapes

ROOT = Path(__file__).parents[2]
FILES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for package in ("engine_build", "worker")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "import tensorrt as trt" in file.read_text(encoding="utf-8")
}
CODE = "\n".join(FILES.values())

LINKED = {
    "nvinfer": [
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getInferLibBuildVersion",
        "getInferLibMajorVersion",
        "getInferLibMinorVersion",
        "getInferLibPatchVersion",
        "getInferLibVersion",
        "getPluginRegistry",
    ],
    "nvinfer_plugin": ["initLibNvInferPlugins"],
    "nvonnxparser": ["createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"],
}

METHODS = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "OnnxParser": ["parse_from_file", "num_errors", "get_error"],
    "IBuilderConfig": [
        "set_memory_pool_limit",
        "builder_optimization_level",
        "set_flag",
        "get_tactic_sources",
        "set_tactic_sources",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
        "progress_monitor",
    ],
    "ITimingCache": ["serialize"],
    "IOptimizationProfile": ["set_shape"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": ["num_io_tensors", "get_tensor_name", "create_execution_context"],
    "IExecutionContext": [
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
        "profiler",
    ],
    "IProfiler": ["report_layer_time"],
    "IProgressMonitor": ["phase_start", "phase_finish", "step_complete"],
    "ILogger": ["log"],
}

GONE = {"BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"}
"""TensorRT 8.6's only, and looked at only where STRONGLY_TYPED is not there."""


def named() -> set[str]:
    """What the sources take from the module, with ``flags`` for NetworkDefinitionCreationFlag."""
    found = set(re.findall(r"\btrt\.([A-Za-z_][\w.]*)", CODE))
    return found | {f"NetworkDefinitionCreationFlag.{name}" for name in re.findall(r"\bflags\.(\w+)", CODE)}


@pytest.fixture(scope="session")
def exists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Name in the bindings → whether it is there."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the libraries that TensorRT's bindings want")
    folder = tmp_path_factory.mktemp("libraries")
    for library, functions in LINKED.items():
        source = folder / f"{library}.c"
        source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions))
        target = f"lib{library}.so.11"
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / target), str(source), f"-Wl,-soname,{target}"]
        subprocess.run(command, check=True)
    named_here = named() | {"NetworkDefinitionCreationFlag.STRONGLY_TYPED"}
    asked = sorted(named_here | {f"{kind}.{method}" for kind, methods in METHODS.items() for method in methods})
    script = f"""
import functools, json
import tensorrt_bindings as trt
def there(name):
    try:
        functools.reduce(getattr, name.split("."), trt)
    except AttributeError:
        return False
    return True
print(json.dumps({{name: there(name) for name in {asked!r}}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"LD_LIBRARY_PATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_name_exists_in_tensorrt_11(exists: dict[str, bool]) -> None:
    assert {name for name in named() if not exists[name]} == GONE
    assert [name for name, there in exists.items() if not there and name not in GONE] == []


@pytest.mark.parametrize("method", sorted({method for methods in METHODS.values() for method in methods}))
def test_the_list_of_methods_is_the_codes(method: str) -> None:
    assert re.search(rf"(\.|def ){method}\b", CODE)


def test_all_code_for_tensorrt_is_read() -> None:
    assert set(FILES) == {
        "engine_build/bench/tensorrt.py",
        "engine_build/build_plan.py",
        "worker/runtime/gpu_plan.py",
        "worker/runtime/tensorrt.py",
    }


@pytest.fixture
def built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MagicMock:
    """A TensorRT that has these flags and no others, once a plan was built with it."""
    network_flags, builder_flags = request.param
    tensorrt = MagicMock(
        ILogger=type("ILogger", (), {"Severity": MagicMock()}),
        IProgressMonitor=type("IProgressMonitor", (), {}),
        NetworkDefinitionCreationFlag=SimpleNamespace(**network_flags),
        BuilderFlag=SimpleNamespace(**builder_flags),
    )
    config = tensorrt.Builder.return_value.create_builder_config.return_value
    config.add_optimization_profile.return_value = 0
    config.get_tactic_sources.return_value = 0b111
    config.get_timing_cache.return_value.serialize.return_value = b"a cache"
    tensorrt.TacticSource = SimpleNamespace(CUBLAS=0)
    tensorrt.Builder.return_value.build_serialized_network.return_value = b"a plan"
    for name in ("engine_build.build_plan", "worker.runtime.gpu_plan"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, module in {"tensorrt": tensorrt, "pycuda": MagicMock(), "pycuda.driver": MagicMock()}.items():
        monkeypatch.setitem(sys.modules, name, module)
    plan_from_onnx = importlib.import_module("engine_build.build_plan").plan_from_onnx
    for name in ("engine_build.build_plan", "worker.runtime.gpu_plan"):
        monkeypatch.delitem(sys.modules, name)
    profiles = [padded_shapes(PaddedProfile.parse("1-32x257-512"))]
    options, cache = PlanOptions(level=2), tmp_path / "a.cache"
    plan = plan_from_onnx(tmp_path / "a.onnx", profiles, options, cache=cache, step=lambda what, done, total: None)
    assert (bytes(plan), cache.read_bytes()) == (b"a plan", b"a cache")
    return tensorrt.Builder.return_value


@pytest.mark.parametrize("built", [({"STRONGLY_TYPED": 1}, {})], indirect=True)
def test_what_is_gone_in_tensorrt_11_is_not_used_there(exists: dict[str, bool], built: MagicMock) -> None:
    """11 has STRONGLY_TYPED, with which the code takes neither of the two."""
    assert exists["NetworkDefinitionCreationFlag"]
    assert exists["NetworkDefinitionCreationFlag.STRONGLY_TYPED"]
    built.create_network.assert_called_once_with(1 << 1)
    built.create_builder_config().set_flag.assert_not_called()


@pytest.mark.parametrize("built", [({"EXPLICIT_BATCH": 0}, {"FP16": "half"})], indirect=True)
def test_tensorrt_8_6_is_allowed_fp16(built: MagicMock) -> None:
    built.create_network.assert_called_once_with(1 << 0)
    config = built.create_builder_config()
    config.set_flag.assert_called_once_with("half")
    assert config.builder_optimization_level == 2
    config.set_tactic_sources.assert_called_once_with(0b110)
    set_shape = built.create_optimization_profile().set_shape
    set_shape.assert_any_call("input_ids", (1, 257), (32, 512), (32, 512))
    assert set_shape.call_count == 3


def test_nothing_that_is_removed_after_8_6_is_called() -> None:
    removed = (
        "max_workspace_size",
        "execute_async_v2",
        "get_binding",
        "binding_is_input",
        "build_engine",
        "num_bindings",
    )
    assert not [name for name in removed if name in CODE]
