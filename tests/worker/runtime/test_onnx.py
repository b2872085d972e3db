import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from contract.batch import Batch
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.settings import settings
from producer.batches import open_tokenizer, tokenize
from tests.conftest import JARGON, build_engine
from worker.runtime.onnx import onnx_engine


def texts(rows: int) -> list[str]:
    return [json.loads(line)["text"] for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]


def batch(spec: EngineSpec, rows: list[str | None]) -> Batch:
    ids, mask, n_tokens = tokenize(rows, open_tokenizer(spec))
    return Batch("job", 0, spec.fingerprint, np.arange(len(rows)), ids, mask, np.zeros_like(ids), n_tokens)


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
    tiny: EngineSpec, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(60)
    expected = np.stack([hidden.mean(axis=0) for hidden in pytorch(tiny_model, rows)])
    for budget in ("1", "700", "100000"):
        monkeypatch.setenv("EMBEDMILL_TOKEN_BUDGET", budget)
        settings.cache_clear()
        with onnx_engine(tiny, threads=1) as engine:
            found = engine.infer(batch(tiny, list(rows))).vectors
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_token_level_vectors_are_those_of_the_real_tokens_in_row_order(tiny_model: Path) -> None:
    spec = build_engine(tiny_model, "tiny-tokens", "tokens")
    rows = texts(12)
    with onnx_engine(spec, threads=1) as engine:
        found = engine.infer(batch(spec, list(rows))).vectors
    np.testing.assert_allclose(found, np.concatenate(pytorch(tiny_model, rows)), atol=1e-5)


def test_rows_without_a_text_are_left_out(tiny: EngineSpec) -> None:
    first, second = texts(2)
    with onnx_engine(tiny, threads=1) as engine:
        with_nulls = engine.infer(batch(tiny, [None, first, None, second, None]))
        without = engine.infer(batch(tiny, [first, second]))
        nothing = engine.infer(batch(tiny, [None, None]))
    np.testing.assert_allclose(with_nulls.vectors, without.vectors, atol=1e-6)
    assert nothing.vectors.shape == (0, tiny.hidden)
    assert nothing.computed_tokens == 0


def test_computed_tokens_counts_the_padding(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_TOKEN_BUDGET", "100000")
    settings.cache_clear()
    rows = batch(tiny, list(texts(5)))
    with onnx_engine(tiny, threads=1) as engine:
        assert engine.infer(rows).computed_tokens == 5 * rows.lengths.max()


def test_a_changed_onnx_file_is_refused_before_it_is_used(tiny_model: Path) -> None:
    spec = build_engine(tiny_model, "tampered")
    file = spec.folder / "model.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"SHA-256.*python -m engine_build"), onnx_engine(spec, threads=1):
        pass
