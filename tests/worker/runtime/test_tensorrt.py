"""The TensorRT engine on a real GPU, against ONNX Runtime in FP32 on the same rows: once by each of the packages that
reach the driver, of those that are installed."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.batch import Batch
from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec, engine_folder
from contract.engines import load_engine
from contract.errors import UserError
from contract.plan import PackedProfile, PaddedProfile
from contract.settings import settings
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import JARGON
from tests.worker.runtime.drivers import PACKAGES, only, take
from tests.worker.runtime.failing import failing_at
from tests.worker.runtime.memory import gpu_memory
from worker.runtime.choose import open_engine
from worker.runtime.driver import cuda_driver
from worker.runtime.onnx import onnx_engine

ROOT = JARGON.parent.parent

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

NAMES = ("tiny", "tiny-tokens", "minilm", "packed", "packed-tokens")
PADDED = (PaddedProfile.parse("1-32x1-512"), PaddedProfile.parse("32x64"))
"""Any shape; and a batch that must be padded with rows."""
PACKED = (PackedProfile(24, 1536),)


@pytest.fixture(params=PACKAGES, autouse=True)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    take(request.param, monkeypatch)
    name: str = request.param
    return name


@pytest.fixture(scope="session", autouse=True)
def planned(session_engines: Path) -> None:
    """The session's engines, each with a plan. The two packed ones, whose attention heads are 64 wide, get theirs where
    TensorRT has the plug-in for it."""
    from engine_build.build_plan import add_plan
    from engine_build.onnx_to_plan import has_attention_plugin
    from engine_build.profiles import PlanOptions

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        settings.cache_clear()
        for name in NAMES:
            if not engine_folder(name).exists():
                from bench.tiny_model import save_tiny_model
                from tests.conftest import MINILM, build_engine

                folder = session_engines.parent / name
                width: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2}
                model = MINILM if name == "minilm" else save_tiny_model(folder, **width if "packed" in name else {})
                build_engine(model, name, "tokens" if "tokens" in name else None)
            spec, packed = load_engine(name), "packed" in name
            if not spec.plans and (not packed or has_attention_plugin()):
                options = PlanOptions(
                    packed=packed,
                    padded_profiles=() if packed else PADDED,
                    packed_profiles=PACKED if packed else (),
                    level=1,
                    workspace=2**30,
                )
                add_plan(spec, options, gpu=0, step=lambda what, done, total: None)
    settings.cache_clear()


def engine_with_plan(name: str) -> EngineSpec:
    spec = load_engine(name)
    if not spec.plans:
        pytest.skip("this TensorRT lacks the attention plug-in of packed plans")
    return spec


def jargon(rows: int) -> list[str]:
    return [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]


def batch(spec: EngineSpec, rows: list[str | None]) -> Batch:
    tokens, n_tokens = tokenize(rows, open_tokenizer(spec))
    return Batch("job", 0, spec.fingerprint, np.arange(len(rows)), tokens, n_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_fp32_in_row_order(name: str) -> None:
    spec = engine_with_plan(name)
    rows: list[str | None] = [None, *jargon(300), None, "", "one"]
    whole = batch(spec, rows)
    with onnx_engine(spec, threads=4) as engine:
        expected = engine.infer(whole)
    with open_engine(spec, threads=1) as engine:
        assert engine.precision == "fp16"
        found = engine.infer(whole)
        again = engine.infer(whole)
    comparison = compare(found.vectors, expected.vectors)
    assert comparison.within(TOLERANCES["fp16"]), comparison
    assert found.computed_tokens >= whole.lengths.sum()
    assert np.array_equal(found.vectors, again.vectors)


@pytest.mark.parametrize("name", ["tiny", "packed"])
def test_batches_of_any_size_and_length(name: str) -> None:
    spec, random = engine_with_plan(name), np.random.default_rng(3)
    words = jargon(40)
    with open_engine(spec, threads=1) as engine, onnx_engine(spec, threads=2) as fp32:
        for rows in (1, 2, 31, 33, 200):
            texts: list[str | None] = [words[random.integers(40)][: random.integers(1, 4000)] for _ in range(rows)]
            some = batch(spec, texts)
            comparison = compare(engine.infer(some).vectors, fp32.infer(some).vectors)
            assert comparison.within(TOLERANCES["fp16"]), (rows, comparison)
        nothing = engine.infer(batch(spec, [None]))
    assert nothing.vectors.shape == (0, spec.hidden)


def test_fifty_loads_and_releases_leave_nothing_behind() -> None:
    spec = load_engine("minilm")
    some = batch(spec, list(jargon(8)))
    taken = []
    for _ in range(50):
        with open_engine(spec, threads=1) as engine:
            engine.infer(some)
        taken.append(gpu_memory())
    assert max(taken[1:]) == min(taken[1:]), taken


def test_a_process_leaves_no_memory_behind(package: str) -> None:
    before = gpu_memory()
    code = (
        only(package)
        + "from contract.engines import load_engine as l; from worker.runtime.choose import open_engine as o\n"
    )
    code += "with o(l('minilm'), 1): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert gpu_memory() <= before


@pytest.mark.parametrize("allocation", [1, 2, 6])
def test_a_load_that_fails_leaves_no_memory_behind(allocation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while the error, whose traceback refers to what was being made, is still there. The first allocation is the
    plan's, the others are the slots'."""
    from worker.runtime.gpu_plan import gpu_context

    cuda = cuda_driver()

    def free() -> int:
        with gpu_context(0):
            return int(cuda.mem_get_info()[0])

    spec, calls, mem_alloc = load_engine("minilm"), itertools.count(1), cuda.mem_alloc
    with open_engine(spec, 1):  # what TensorRT keeps until the process ends is there then
        pass

    def failing(size: int) -> Any:
        if next(calls) == allocation:
            raise cuda.MemoryError("no memory is left")
        return mem_alloc(size)

    before = free()
    monkeypatch.setattr(cuda, "mem_alloc", failing)
    with pytest.raises(UserError, match=r"too little free memory .*no memory is left") as caught, open_engine(spec, 1):
        pass
    assert free() >= before
    assert caught.tb is not None


def test_the_contexts_of_a_plan_share_one_block_of_memory() -> None:
    from worker.runtime.gpu_plan import LoadedPlan, gpu_context, memory_size

    cuda = cuda_driver()
    spec = load_engine("minilm")
    assert len(spec.plans[0].profiles) == 2
    with gpu_context(0) as gpu:
        LoadedPlan(spec, gpu).close()  # what TensorRT keeps until the process ends is there then
        before = cuda.mem_get_info()[0]
        plan = LoadedPlan(spec, gpu)
        taken, block = before - cuda.mem_get_info()[0], memory_size(plan.engine)
        plan.close()
        assert cuda.mem_get_info()[0] == before
    weights = (spec.folder / spec.plans[0].file).stat().st_size
    assert taken < weights + 1.5 * block, (taken, weights, block)


def test_a_cuda_error_is_told_as_the_end_of_the_process(package: str) -> None:
    """In a process of its own: nothing on the GPU works in it afterwards."""
    code = """
import numpy as np
from contract.batch import Batch
from contract.engines import load_engine
from contract.tokens import TokenRows
from worker.runtime.interface import EngineDead
from worker.runtime.tensorrt import tensorrt_engine
spec = load_engine("tiny")
lengths = np.full(4, 512, np.int32)
batch = Batch("job", 0, "", np.arange(4), TokenRows(np.full(4 * 512, 2**31 - 1, np.int32), lengths), lengths)
opened = tensorrt_engine(spec, 0)  # kept: it would be closed once nobody refers to it
engine = opened.__enter__()
slot = engine._pipeline.slots[0]
slot.device["input_ids"].free()
slot.device["input_ids"] = 0xBAD
try:
    engine.infer(batch)
except EngineDead as error:
    print("dead:", error)
import os
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", only(package) + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 7, done.stderr
    assert "dead: GPU 0 failed" in done.stdout


def test_an_engine_that_finds_too_little_memory_is_the_users_error(package: str) -> None:
    """In a process of its own, as a worker's child, which takes nearly all of the GPU's memory first."""
    code = """
from contract.engines import load_engine
from contract.errors import UserError
from worker.runtime.driver import cuda_driver
from worker.runtime.gpu_plan import gpu_context
from worker.runtime.tensorrt import tensorrt_engine
spec, cuda = load_engine("minilm"), cuda_driver()
with gpu_context(0):
    taken, size = [], cuda.mem_get_info()[0]
    while size >= 2**20:
        try:
            taken.append(cuda.mem_alloc(size))
        except cuda.MemoryError:
            size //= 2
try:
    with tensorrt_engine(spec, 0):
        print("loaded")
except UserError as error:
    print("refused:", error)
with gpu_context(0):
    for one in taken:
        one.free()
with tensorrt_engine(spec, 0):
    print("loaded once there is memory")
"""
    done = subprocess.run([sys.executable, "-c", only(package) + code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.splitlines()
    assert re.match(r"refused: GPU 0 has too little free memory for engine minilm: [\d,]+ of [\d,]+ MiB \(", refused)
    assert "nvidia-smi" in refused
    assert loaded == "loaded once there is memory"


@pytest.mark.parametrize("name", ["tiny", "packed"])
def test_after_an_error_the_next_batch_has_its_own_vectors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of a batch leaves micro-batches on the GPU, whose vectors are nobody's."""
    from worker.runtime.layout import Packed, Padded

    spec, layout = engine_with_plan(name), Packed if name == "packed" else Padded
    first, second = batch(spec, list(jargon(200))), batch(spec, list(jargon(230)[200:]))
    with open_engine(spec, threads=1) as engine:
        expected = engine.infer(second).vectors
        for method in ("fill", "gather"):
            with monkeypatch.context() as patch:
                patch.setattr(layout, method, failing_at(3, getattr(layout, method)))
                with pytest.raises(ValueError, match="micro-batch 3"):
                    engine.infer(first)
            assert np.array_equal(engine.infer(second).vectors, expected)


def test_a_changed_plan_is_refused_before_it_is_loaded() -> None:
    spec = load_engine("tiny")
    file = spec.folder / spec.plans[0].file
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"SHA-256.*engine_build plan --engine tiny"), open_engine(spec, 1):
            pass
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("change", [{"tensorrt": "10.0.0"}, {"sm": 75}])
def test_a_plan_for_another_machine_is_refused(change: dict[str, object]) -> None:
    spec = load_engine("tiny")
    other = spec.model_copy(update={"plans": (spec.plans[0].model_copy(update=change),)})
    with pytest.raises(UserError, match=r"has plans for.*this machine has.*engine_build plan"), open_engine(other, 1):
        pass


def test_a_damaged_plan_whose_hash_is_recorded_gives_tensorrts_reason() -> None:
    from contract.files import sha256_of

    spec = load_engine("tiny")
    file = spec.folder / "plans" / "damaged.plan"
    file.write_bytes((spec.folder / spec.plans[0].file).read_bytes()[:5000])
    plan = spec.plans[0].model_copy(update={"file": "plans/damaged.plan", "sha256": sha256_of(file)})
    with (
        pytest.raises(UserError, match=r"TensorRT .* refuses"),
        open_engine(spec.model_copy(update={"plans": (plan,)}), 1),
    ):
        pass
