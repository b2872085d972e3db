"""What the TensorRT code calls exists in the real Python bindings of TensorRT 11, which no machine here can run.

The bindings need TensorRT's libraries to be imported: libraries that hold nothing but the few functions that they link
to are enough for that.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "engine_build/plan.py",
    "engine_build/bench_tensorrt.py",
    "worker/plan.py",
    "worker/tensorrt_engine.py",
)
SOURCES = [(ROOT / name).read_text(encoding="utf-8") for name in FILES]
CODE = "\n".join(SOURCES)

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
    asked = sorted(named() | {f"{kind}.{method}" for kind, methods in METHODS.items() for method in methods})
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


def test_what_is_gone_in_tensorrt_11_is_not_used_there(exists: dict[str, bool]) -> None:
    """11 has STRONGLY_TYPED, with which the code takes neither of the two."""
    assert exists["NetworkDefinitionCreationFlag"]
    plan = SOURCES[0]
    assert "flag = strongly_typed if strongly_typed is not None else flags.EXPLICIT_BATCH" in plan
    assert re.search(r"if strongly_typed is None:\n\s+config\.set_flag\(trt\.BuilderFlag\.FP16\)", plan)


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
