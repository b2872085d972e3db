"""PyTorch on a real GPU, against ONNX Runtime in FP32 on the same rows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.batch import Batch
from contract.compare import TOLERANCES, compare
from contract.engine import EngineSpec, engine_folder
from contract.engines import load_engine
from contract.errors import UserError
from contract.settings import settings
from contract.tuned import AttentionKernel
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import JARGON
from tests.worker.runtime.failing import failing_at, output_after_a_cuda_error
from tests.worker.runtime.memory import gpu_memory
from worker.runtime.choose import open_engine
from worker.runtime.cuda import cuda_device
from worker.runtime.flash import KERNELS, flash_attention, lacking
from worker.runtime.interface import Engine
from worker.runtime.onnx import onnx_engine
from worker.runtime.torch_gpu import profiles_on, torch_gpu_engine

ROOT = JARGON.parent.parent

pytestmark = [pytest.mark.gpu_torch, pytest.mark.timeout(600)]

NAMES = ("tiny", "tiny-tokens", "packed", "roberta")


@pytest.fixture(scope="session", autouse=True)
def built(session_engines: Path) -> None:
    """The session's engines, one of RoBERTa's family among them, whose positions count past padding tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        settings.cache_clear()
        for name in NAMES:
            if not engine_folder(name).exists():
                from bench.tiny_model import save_tiny_model
                from tests.conftest import build_engine

                kind = "roberta" if name == "roberta" else "bert"
                width: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2} if name != "tiny" else {}
                model = save_tiny_model(session_engines.parent / name, kind, **width)
                build_engine(model, name, "tokens" if "tokens" in name else None)
    settings.cache_clear()


@pytest.fixture(autouse=True)
def torch_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_RUNTIME", "torch")
    settings.cache_clear()


def jargon(rows: int) -> list[str]:
    return [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]


def batch(spec: EngineSpec, rows: list[str | None]) -> Batch:
    tokens, n_tokens = tokenize(rows, open_tokenizer(spec))
    return Batch("job", 0, spec.fingerprint, np.arange(len(rows)), tokens, n_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_those_of_fp32_in_row_order(name: str) -> None:
    spec = load_engine(name)
    whole = batch(spec, [None, *jargon(300), None, "", "one", "a[UNK]b [PAD] c"])
    with onnx_engine(spec, threads=4) as fp32:
        expected = fp32.infer(whole)
    with open_engine(spec, threads=1) as engine:
        assert (engine.precision, engine.runtime.split()[0]) == ("fp16", "torch")
        found, again = engine.infer(whole), engine.infer(whole)
    comparison = compare(found.vectors, expected.vectors)
    assert comparison.within(TOLERANCES["fp16"]), comparison
    assert found.computed_tokens >= whole.lengths.sum()
    assert np.array_equal(found.vectors, again.vectors)


def test_batches_of_any_size_and_length() -> None:
    spec, random = load_engine("tiny"), np.random.default_rng(3)
    words = jargon(40)
    with open_engine(spec, threads=1) as engine, onnx_engine(spec, threads=2) as fp32:
        for rows in (1, 2, 31, 33, 200, 2000):
            texts: list[str | None] = [words[random.integers(40)][: random.integers(1, 4000)] for _ in range(rows)]
            some = batch(spec, texts)
            comparison = compare(engine.infer(some).vectors, fp32.infer(some).vectors)
            assert comparison.within(TOLERANCES["fp16"]), (rows, comparison)
        nothing = engine.infer(batch(spec, [None]))
    assert nothing.vectors.shape == (0, spec.hidden)


def test_loads_and_releases_leave_nothing_behind() -> None:
    spec = load_engine("packed")
    some = batch(spec, list(jargon(8)))
    taken = []
    for _ in range(8):
        with open_engine(spec, threads=1) as engine:
            engine.infer(some)
        taken.append(gpu_memory())
    assert max(taken[1:]) - min(taken[1:]) <= 2 * 2**20, taken


@pytest.mark.parametrize("name", ["torch", "modules"])
def test_what_a_worker_imports_before_it_forks_leaves_cuda_to_its_children(name: str) -> None:
    code = f"""
import os, torch
from worker.runtime.choose import RUNTIMES
from worker.runtime.gpus import cuda_untouched
next(one for one in RUNTIMES if one.name == {name!r} and one.before_fork).load()
print(cuda_untouched(), flush=True)
child = os.fork()
if not child:
    print(torch.ones(3).cuda().sum().item(), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
torch.ones(3).cuda()
print(cuda_untouched())
"""
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # as a worker has it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.split() == ["True", "3.0", "0", "False"], done.stderr


def test_a_process_leaves_no_memory_behind() -> None:
    """Of two processes the second is the measure: this one has memory of its own."""
    before = gpu_memory()
    code = "from contract.engines import load_engine as l; from worker.runtime.choose import open_engine as o\n"
    code += "with o(l('tiny'), 1): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert gpu_memory() <= before


def test_a_cuda_error_is_told_as_the_end_of_the_process() -> None:
    assert "dead: GPU 0 failed" in output_after_a_cuda_error("tiny", "torch_gpu", "torch_gpu_engine(spec, 0)")


def test_an_engine_that_finds_too_little_memory_is_the_users_error() -> None:
    code = """
import torch
from contract.engines import load_engine
from contract.errors import UserError
from worker.runtime.torch_gpu import torch_gpu_engine
spec = load_engine("packed")
taken = torch.empty(torch.cuda.mem_get_info()[0] - 2**26, dtype=torch.uint8, device="cuda")
try:
    with torch_gpu_engine(spec, 0):
        print("loaded")
except UserError as error:
    print("refused:", error)
del taken
torch.cuda.empty_cache()
with torch_gpu_engine(spec, 0):
    print("loaded once there is memory")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    refused, loaded = done.stdout.splitlines()
    assert refused.startswith("refused: GPU 0 has too little free memory for engine packed: ")
    assert loaded == "loaded once there is memory"


def test_after_an_error_the_next_batch_has_its_own_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of a batch leaves micro-batches on the GPU, whose vectors are nobody's."""
    from worker.runtime.layout import Packed

    spec = load_engine("packed")
    first, second = batch(spec, list(jargon(600))), batch(spec, list(jargon(700)[600:]))
    with open_engine(spec, threads=1) as engine:
        expected = engine.infer(second).vectors
        for method in ("fill", "gather"):
            with monkeypatch.context() as patch:
                patch.setattr(Packed, method, failing_at(2, getattr(Packed, method)))
                with pytest.raises(ValueError, match="micro-batch 2"):
                    engine.infer(first)
            assert np.array_equal(engine.infer(second).vectors, expected)


def compile_engine(name: str) -> EngineSpec:
    """Have an engine compiled for this GPU, by the command, in a process of its own."""
    command = [sys.executable, "-m", "engine_build", "compile", "--engine", name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    spec = load_engine(name)
    (compiled,) = spec.compiled
    assert (spec.folder / compiled.file).is_file()
    return spec


def test_what_was_compiled_is_loaded_and_gives_the_same_vectors() -> None:
    spec = compile_engine("packed")
    some = batch(spec, list(jargon(30)))
    with open_engine(spec.model_copy(update={"compiled": ()}), threads=1) as engine:
        expected = vectors_of(engine, some)
    began = time.monotonic()
    with open_engine(spec, threads=1) as engine:
        found = vectors_of(engine, some)
    print(f"loaded in {time.monotonic() - began:.1f} s")
    np.testing.assert_array_equal(found, expected)


def vectors_of(engine: Engine, some: Batch) -> Any:
    return engine.infer(some).vectors


def test_changed_compiled_graphs_are_refused_before_they_are_loaded() -> None:
    spec = load_engine("packed")
    if not spec.compiled:
        pytest.skip("nothing was compiled: the test above failed")
    file = spec.folder / spec.compiled[0].file
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"SHA-256.*engine_build compile --engine packed"), open_engine(spec, 1):
            pass
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (16, 16)])
@pytest.mark.parametrize("longest", [64, 512])
def test_flash_attention_computes_what_pytorchs_does(
    longest: int, window: tuple[int, int], kernel: AttentionKernel
) -> None:
    import torch
    from torch.nn.attention.varlen import varlen_attn

    if lacks := lacking(kernel):
        pytest.skip(lacks)
    random = torch.Generator().manual_seed(longest)
    lengths = torch.tensor([longest, 0, 1, *torch.randint(0, longest + 1, (40,), generator=random).tolist(), 0])
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to("cuda", torch.int32)
    query, key, value = torch.randn(int(ends[-1]), 3, 12, 64, device="cuda", dtype=torch.float16).unbind(1)
    expected = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=window)
    found = flash_attention(query, key, value, ends, longest, None, list(window), kernel)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kernel", [None, *KERNELS])
@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_keys_have_the_attention_of_the_cpu(causal: bool, kernel: AttentionKernel | None) -> None:
    import torch

    from worker.runtime.attention import attention

    if kernel and (lacks := lacking(kernel)):
        pytest.skip(lacks)
    ends = torch.tensor([0, 200, 200, 201, 500], dtype=torch.int32)
    query, key, value = (torch.randn(1, heads, 500, 64) for heads in (8, 2, 2))

    def computed(device: str, dtype: torch.dtype, kernel: AttentionKernel | None) -> torch.Tensor:
        sent = (part.to(device, dtype) for part in (query, key, value))
        rows = {"cu_seqlens": ends.to(device), "longest": torch.empty(300, 0, device=device)}
        compute: Any = attention
        made, _ = compute(torch.nn.Module(), *sent, None, **rows, is_causal=causal, kernel=kernel)
        return made.float().cpu()

    expected = computed("cpu", torch.float32, None)
    torch.testing.assert_close(computed("cuda", torch.float16, kernel), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_engine_by_flash_attention_has_the_vectors_of_fp32(kernel: AttentionKernel) -> None:
    if lacks := lacking(kernel):
        pytest.skip(lacks)
    spec = load_engine("packed")
    every = {str(profile): kernel for profile in profiles_on(cuda_device(0), spec)}
    whole = batch(spec, [None, *jargon(300), "", "one"])
    with onnx_engine(spec, threads=4) as fp32:
        expected = fp32.infer(whole)
    with torch_gpu_engine(spec, 0, kernels=every) as engine:
        comparison = compare(engine.infer(whole).vectors, expected.vectors)
    assert comparison.within(TOLERANCES["fp16"]), comparison
