"""A LoRA adapter is merged into its model, and the engine gives the vectors of the two."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from bench.families import save_family
from contract.batch import Batch
from contract.compare import cosines
from contract.engine import EngineSpec
from contract.errors import UserError
from engine_build.build import build
from engine_build.prepare import EngineOptions
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import build_engine
from tests.contract.samples import a_job
from verify.reference import open_model
from worker.runtime.choose import RUNTIMES

TEXTS = ["a hacker", "", "The miller's stone turns slowly, and the flour falls through the sieve. " * 9]


def save_adapter(folder: Path, **options: Any) -> Path:
    """A sentence-transformers folder whose encoder is an adapter of a tiny BERT, and changes its vectors."""
    from peft import LoraConfig, get_peft_model

    shutil.copytree(save_family("bert", folder), folder / "adapter")
    for name in ("model.safetensors", "config.json"):
        (folder / "adapter" / name).unlink()
    config = LoraConfig(r=4, target_modules=["query", "value"], **options)
    model: Any = get_peft_model(AutoModel.from_pretrained(folder / "plain"), config)
    torch.manual_seed(1)
    for name, values in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.3)
    model.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def assert_same(spec: EngineSpec, theirs: Any) -> None:
    tokens, n_tokens = tokenize(TEXTS, open_tokenizer(spec))
    batch = Batch("adapter", 0, spec.fingerprint, np.arange(len(tokens)), tokens, n_tokens)
    for runtime in RUNTIMES:
        if not runtime.uses_gpu and not runtime.engine_lacks(spec):
            with runtime.load()(spec, 1, 0) as engine:
                assert cosines(engine.infer(batch).vectors, theirs).min() >= 0.99999


def test_an_adapters_engine_gives_the_vectors_of_both(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path)
    said: list[str] = []
    spec, _ = build(str(folder), EngineOptions("adapter"), say=said.append, step=lambda text: None)
    assert f"peft merged the LORA adapter into {tmp_path / 'plain'}." in said
    assert spec.tiers == ("onnx", "torch")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert cosines(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), theirs).min() < 0.95
    assert_same(spec, theirs)
    # The verifier opens the adapter's folder, and finds the model unchanged.
    reference = open_model(a_job(tmp_path / "output"), spec)
    assert cosines(reference.model.encode(TEXTS), theirs).min() >= 0.99999


def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(tmp_path / "whole", modules_to_save=["embeddings"])
    with pytest.raises(UserError, match="expected LoRA layers alone"):
        build_engine(folder, "saved-modules")
    folder = save_adapter(tmp_path / "tokens", trainable_token_indices=[1, 2])
    with pytest.raises(UserError, match="expected LoRA layers alone"):
        build_engine(folder, "tokens")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else there(name))
    with pytest.raises(UserError, match=r"pip install 'embedmill\[peft\]'"):
        build_engine(folder, "no-peft")
    monkeypatch.undo()
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        build_engine(folder, "no-base")
