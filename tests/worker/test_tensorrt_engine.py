"""The TensorRT engine on a real GPU, against ONNX Runtime in FP32 on the same rows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.batch import Batch
from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec, engine_folder, load_engine
from contract.errors import UserError
from contract.plan import Profile
from contract.settings import settings
from producer.batches import open_tokenizer, tokenize
from tests.conftest import JARGON
from worker.engine import open_engine
from worker.onnx_engine import OnnxEngine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

NAMES = ("tiny", "tiny-tokens", "minilm", "packed", "packed-tokens")
PADDED = (Profile(1, 32, 1, 512), Profile(32, 32, 64, 64))
"""Any shape; and a batch that must be padded with rows."""
PACKED = (Profile(1, 24, 1, 1536),)


@pytest.fixture(scope="session", autouse=True)
def planned(session_engines: Path, request: pytest.FixtureRequest) -> None:
    """The session's engines, each with a plan. The two packed ones have attention heads 64 wide."""
    from engine_build.plan import add_plan

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
            if not spec.plans:
                profiles = PACKED if packed else PADDED
                add_plan(
                    spec,
                    profiles=profiles,
                    packed=packed,
                    level=1,
                    workspace=2**30,
                    gpu=0,
                    step=lambda what, done, total: None,
                )
    settings.cache_clear()


def jargon(rows: int) -> list[str]:
    return [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]


def batch(spec: EngineSpec, rows: list[str | None]) -> Batch:
    ids, mask, n_tokens = tokenize(rows, open_tokenizer(spec))
    return Batch("job", 0, spec.fingerprint, np.arange(len(rows)), ids, mask, np.zeros_like(ids), n_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_fp32_in_row_order(name: str) -> None:
    spec = load_engine(name)
    rows: list[str | None] = [None, *jargon(300), None, "", "one"]
    whole = batch(spec, rows)
    with OnnxEngine(spec, threads=4) as engine:
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
    spec, random = load_engine(name), np.random.default_rng(3)
    words = jargon(40)
    with open_engine(spec, threads=1) as engine, OnnxEngine(spec, threads=2) as fp32:
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


def gpu_memory() -> int:
    """Bytes of GPU 0's memory that are in use, by whomever."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout) * 2**20


def test_a_process_leaves_no_memory_behind() -> None:
    before = gpu_memory()
    code = "from contract.engine import load_engine as l; from worker.engine import open_engine as o\n"
    code += "with o(l('minilm'), 1): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=JARGON.parent.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert gpu_memory() <= before


def test_a_cuda_error_is_told_as_the_end_of_the_process() -> None:
    """In a process of its own: nothing on the GPU works in it afterwards."""
    code = """
import numpy as np
from contract.batch import Batch
from contract.engine import load_engine
from worker.engine import EngineDead
from worker.tensorrt_engine import TensorRTEngine
spec = load_engine("tiny")
ones = np.ones((4, 512), np.int32)
batch = Batch("job", 0, "", np.arange(4), ones * (2**31 - 1), ones, ones * 0, np.full(4, 512, np.int32))
engine = TensorRTEngine(spec, 0).__enter__()
engine._slots[0].device["input_ids"].free()
engine._slots[0].device["input_ids"] = 0xBAD
try:
    engine.infer(batch)
except EngineDead as error:
    print("dead:", error)
import os
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=JARGON.parent.parent)
    assert done.returncode == 7, done.stderr
    assert "dead: GPU 0 failed" in done.stdout


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
