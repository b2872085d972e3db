"""The engines that compute on a CPU, each against plain transformers."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from onnxruntime import InferenceSession
from sentence_transformers import SentenceTransformer

from bench.families import save_family
from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import JARGON, build_engine
from worker.runtime.choose import Opened
from worker.runtime.modules import ModulesEngine, modules_engine
from worker.runtime.onnx import OnnxEngine, onnx_engine, session_of
from worker.runtime.torch_cpu import torch_cpu_engine

Open = Callable[[EngineSpec, int], Opened]


@pytest.fixture(params=[onnx_engine, torch_cpu_engine])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens an engine in one of the runtimes."""
    made: Open = request.param
    return made


def texts(rows: int) -> list[str]:
    return [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]


def batch(spec: EngineSpec, rows: list[str | None]) -> Batch:
    tokens, n_tokens = tokenize(rows, open_tokenizer(spec))
    return Batch("job", 0, spec.fingerprint, np.arange(len(rows)), tokens, n_tokens)


def pytorch(model: Path, rows: list[str]) -> list[np.ndarray]:
    """The last hidden state of each row's real tokens, one row at a time, so without any padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in rows:
        with torch.inference_mode():
            encoded = tokenizer(row, truncation=True, max_length=512, return_tensors="pt")
            found.append(encoder(**encoded).last_hidden_state[0].numpy())
    return found


def test_vectors_are_pytorchs_whatever_the_micro_batches(
    opened: Open, tiny: EngineSpec, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(60)
    expected = np.stack([hidden.mean(axis=0) for hidden in pytorch(tiny_model, rows)])
    for budget in ("1", "700", "100000"):
        monkeypatch.setenv("EMBEDMILL_TOKEN_BUDGET", budget)
        settings.cache_clear()
        with opened(tiny, 1) as engine:
            found = engine.infer(batch(tiny, list(rows))).vectors
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_long_rows_are_computed_one_at_a_time_by_onnx_runtime(
    tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = batch(tiny, [*texts(30), None, "a long row " * 60, "one more " * 70])
    session = session_of(tiny.check_file("model.onnx", tiny.onnx_sha256))
    with ThreadPoolExecutor(2) as pool:
        engine = OnnxEngine(tiny, session, pool)
        expected = engine.infer(rows).vectors
        at_once = _at_once(session, monkeypatch)
        monkeypatch.setattr("worker.runtime.onnx.LONG_ROW", 100)
        monkeypatch.setenv("EMBEDMILL_TOKEN_BUDGET", "1")  # each row alone
        settings.cache_clear()
        found = engine.infer(rows).vectors
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert max(at_once) == 1
    assert len(at_once) == (rows.lengths > 100).sum() >= 3


def _at_once(session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of more than 100 tokens are computed beside each such row, itself counted."""
    run, running, seen = session.run, [0], list[int]()

    def counted(names: list[str], feed: dict[str, np.ndarray]) -> object:
        if feed["input_ids"].shape[1] <= 100:
            return run(names, feed)
        running[0] += len(feed["input_ids"])
        seen.append(running[0])
        made = run(names, feed)
        running[0] -= len(feed["input_ids"])
        return made

    monkeypatch.setattr(session, "run", counted)
    return seen


def test_token_level_vectors_are_those_of_the_real_tokens_in_row_order(opened: Open, tiny_model: Path) -> None:
    spec = build_engine(tiny_model, "tiny-tokens", "tokens")
    rows = texts(12)
    with opened(spec, 1) as engine:
        found = engine.infer(batch(spec, list(rows))).vectors
    np.testing.assert_allclose(found, np.concatenate(pytorch(tiny_model, rows)), atol=1e-5)


def test_rows_without_a_text_are_left_out(opened: Open, tiny: EngineSpec) -> None:
    first, second = texts(2)
    with opened(tiny, 1) as engine:
        with_nulls = engine.infer(batch(tiny, [None, first, None, second, None]))
        without = engine.infer(batch(tiny, [first, second]))
        nothing = engine.infer(batch(tiny, [None, None]))
    np.testing.assert_allclose(with_nulls.vectors, without.vectors, atol=1e-6)
    assert nothing.vectors.shape == (0, tiny.hidden)
    assert nothing.computed_tokens == 0


def test_each_row_is_counted_once_as_it_is_computed(opened: Open, tiny: EngineSpec) -> None:
    counted: list[int] = []
    with opened(tiny, 2) as engine:
        engine.infer(batch(tiny, [None, *texts(30)]), counted.append)
    assert sum(counted) == 30


def test_computed_tokens_counts_the_padding(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_TOKEN_BUDGET", "100000")
    settings.cache_clear()
    rows = batch(tiny, list(texts(5)))
    with onnx_engine(tiny, threads=1) as engine:
        assert engine.infer(rows).computed_tokens == 5 * rows.lengths.max()


@pytest.mark.parametrize(("file", "opened"), [("model.onnx", onnx_engine), ("model.safetensors", torch_cpu_engine)])
def test_a_changed_file_is_refused_before_it_is_used(file: str, opened: Open, tiny_model: Path) -> None:
    spec = build_engine(tiny_model, "tampered")
    path = spec.folder / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"SHA-256.*python -m engine_build"), opened(spec, 1):
        pass
    path.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))


def test_a_changed_file_of_the_modules_is_refused_before_it_is_used(tmp_path: Path) -> None:
    spec = build_engine(save_family("StaticEmbedding", tmp_path / "family"), f"static-{tmp_path.name}")
    some = batch(spec, list(texts(5)))
    with modules_engine(spec, 1) as engine:
        assert engine.infer(some).vectors.shape == (5, spec.hidden)
    (spec.folder / "modules" / "modeling_mine.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=r"SHA-256.*python -m engine_build"), modules_engine(spec, 1):
        pass
    (spec.folder / "modules" / "modeling_mine.py").unlink()
    shutil.rmtree(spec.folder / "modules" / "1_Normalize", ignore_errors=True)
    (spec.folder / "modules" / "modules.json").unlink()
    with pytest.raises(UserError, match=r"SHA-256.*python -m engine_build"), modules_engine(spec, 1):
        pass


def test_the_models_own_modules_give_the_vectors_of_packed_rows(tiny_model: Path, tmp_path: Path) -> None:
    """Of every length, at token level too, and whatever rows are computed together."""
    for pooling in ("mean", "tokens"):
        spec = build_engine(tiny_model, f"tiers-{pooling}-{tmp_path.name}", pooling, max_length=200)
        model = SentenceTransformer(str(tiny_model), device="cpu")
        some = batch(spec, [*texts(50), None, "a"])
        with torch_cpu_engine(spec, 1) as packed:
            expected = packed.infer(some).vectors
        if pooling == "tokens":
            model = SentenceTransformer(modules=[model[0]], device="cpu")
        found = ModulesEngine(spec, model).infer(some)
        np.testing.assert_allclose(found.vectors, expected, atol=5e-6)
        assert found.computed_tokens >= some.lengths.sum()


@pytest.mark.parametrize("rows", [1, 2, 31, 200])
def test_batches_of_any_size_and_length(rows: int, tiny: EngineSpec) -> None:
    """Two implementations that share no code must agree."""
    random, words = np.random.default_rng(rows), texts(40)
    some = batch(tiny, [words[random.integers(40)][: random.integers(1, 4000)] for _ in range(rows)])
    with onnx_engine(tiny, 1) as onnx, torch_cpu_engine(tiny, 1) as pytorch:
        np.testing.assert_allclose(pytorch.infer(some).vectors, onnx.infer(some).vectors, atol=2e-6)
