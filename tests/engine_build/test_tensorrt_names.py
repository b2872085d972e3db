"""What no machine without a GPU can run: TensorRT 8.6's builder, and what later ones run a plan with.

Every graph is built for real in ``test_plan_ahead``.
"""

import functools
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from contract.plan import PaddedProfile
from engine_build.profiles import PlanOptions, padded_shapes

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
"""The functions that TensorRT 11's bindings link to, by library."""

ON_A_GPU = [
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.num_io_tensors",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.device_memory_size_v2",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "IExecutionContext.set_device_memory",
    "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.profiler",
    "IProfiler.report_layer_time",
    "init_libnvinfer_plugins",
]
"""What ``worker.runtime.gpu_plan`` and ``engine_build.bench.tensorrt`` take of a TensorRT that is newer than 8.6."""

BUILDING = [
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "ITimingCache.serialize",
]
"""What ``engine_build.onnx_to_plan`` takes of TensorRT 11 and not of TensorRT-RTX."""


def there(module: object, name: str) -> bool:
    try:
        functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return False
    return True


def test_what_runs_a_plan_exists_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert [name for name in ON_A_GPU if not there(trt, name)] == []


def test_what_runs_a_plan_exists_in_tensorrt_11(tmp_path: Path) -> None:
    """The bindings need TensorRT's libraries to be imported: libraries that hold nothing but the few functions that
    they link to are enough for that."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the libraries that TensorRT's bindings want")
    for library, functions in LINKED.items():
        source, target = tmp_path / f"{library}.c", f"lib{library}.so.11"
        source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in functions))
        command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / target), str(source), f"-Wl,-soname,{target}"]
        subprocess.run(command, check=True)
    script = f"""
import functools, json
import tensorrt_bindings as trt
{inspect.getsource(there)}
print(json.dumps([name for name in {[*ON_A_GPU, *BUILDING]!r} if not there(trt, name)]))
"""
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_tensorrt_8_6_is_allowed_fp16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """8.6 has neither strong typing nor a progress monitor."""
    tensorrt = MagicMock(
        spec=["Builder", "OnnxParser", "MemoryPoolType"],
        ILogger=type("ILogger", (), {"Severity": MagicMock()}),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        BuilderFlag=SimpleNamespace(FP16="half"),
        TacticSource=SimpleNamespace(CUBLAS=0),
        __spec__=object(),
        __version__="8.6.1",
    )
    builder = tensorrt.Builder.return_value
    config = builder.create_builder_config.return_value
    config.add_optimization_profile.return_value = 0
    config.get_tactic_sources.return_value = 0b111
    config.get_timing_cache.return_value.serialize.return_value = b"a cache"
    builder.build_serialized_network.return_value = b"a plan"
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    # Both take TensorRT when they are imported: here another than the one that they have, or that is not there.
    for name in ("engine_build.onnx_to_plan", "worker.runtime.trt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("engine_build.onnx_to_plan")
    for name in ("engine_build.onnx_to_plan", "worker.runtime.trt"):
        monkeypatch.delitem(sys.modules, name)

    profiles, cache = [padded_shapes(PaddedProfile.parse("1-32x257-512"))], tmp_path / "a.cache"
    options = PlanOptions(level=2)
    plan = module.plan_from_onnx(
        tmp_path / "a.onnx", profiles, options, sm=90, cache=cache, step=lambda what, done, total: None
    )
    assert (bytes(plan), cache.read_bytes()) == (b"a plan", b"a cache")
    builder.create_network.assert_called_once_with(1 << 0)
    config.set_flag.assert_called_once_with("half")
    assert config.builder_optimization_level == 2
    config.set_tactic_sources.assert_called_once_with(0b110)
    set_shape = builder.create_optimization_profile().set_shape
    set_shape.assert_any_call("input_ids", (1, 257), (32, 512), (32, 512))
    assert set_shape.call_count == 3
