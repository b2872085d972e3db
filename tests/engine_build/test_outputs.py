"""Sparse and multi-vector models: folders as other tools left them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

from bench.families import WIDTH, save_family
from contract.batch import Batch
from contract.compare import cosines
from contract.engine import EngineSpec
from contract.errors import UserError
from producer.tokenizer import open_tokenizer, tokenize
from tests.conftest import build_engine
from worker.runtime.choose import open_fp32_engine

TEXTS = ["a hacker, of a kind; or (not)", "", "The miller's stone turns slowly. " * 30]


@pytest.fixture(scope="module")
def colbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("ColBERT", tmp_path_factory.mktemp("colbert"))


@pytest.fixture(scope="module")
def splade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("SPLADE", tmp_path_factory.mktemp("splade"))


def computed(spec: EngineSpec) -> list[Any]:
    tokens, n_tokens = tokenize(TEXTS, open_tokenizer(spec), spec.prefix)
    batch = Batch("outputs", 0, spec.fingerprint, np.arange(len(tokens)), tokens, n_tokens)
    with open_fp32_engine(spec, 1) as engine:
        return list(engine.infer(batch).rows.split(spec.hidden))


def json_of(file: Path, **changes: object) -> None:
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | changes))


def as_pylate(colbert: Path, folder: Path) -> Path:
    """As PyLate saved it before sentence-transformers had such models: masks and norms were not in the folder."""
    shutil.copytree(colbert, folder)
    kept = [one for one in json.loads((folder / "modules.json").read_text()) if one["idx"] < 2]
    kept[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(kept))
    dense = json.loads((folder / kept[1]["path"] / "config.json").read_text())
    names = ("in_features", "out_features", "bias", "activation_function")
    (folder / kept[1]["path"] / "config.json").write_text(json.dumps({name: dense[name] for name in names}))
    prefixes = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "document_length": 40}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "ColBERT", **prefixes}))
    return folder


def as_stanford(colbert: Path, folder: Path) -> Path:
    """As ColBERT's authors save it: the projection beside the encoder's weights."""
    shutil.copytree(colbert, folder)
    weights = {f"bert.{name}": values for name, values in load_file(folder / "model.safetensors").items()}
    (dense,) = folder.glob("*_Dense")
    weights["linear.weight"] = load_file(dense / "model.safetensors")["linear.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    json_of(folder / "config.json", architectures=["HF_ColBERT"])
    json_of(folder / "artifact.metadata", query_token_id="[unused0]", doc_token_id="[unused1]", doc_maxlen=40)
    return folder


@pytest.mark.parametrize("layout", [as_pylate, as_stanford])
def test_a_colbert_of_another_tool_gives_the_vectors_of_encode_document(
    layout: Any, colbert: Path, tmp_path: Path
) -> None:
    folder = layout(colbert, tmp_path / layout.__name__)
    spec = build_engine(folder, layout.__name__, max_length="model")
    assert (spec.opened_by, spec.layout, spec.hidden, spec.max_length) == ("MultiVectorEncoder", "tokens", 16, 40)
    assert spec.tiers == ("onnx", "torch")
    assert spec.without_vector  # punctuation
    theirs = MultiVectorEncoder(str(folder), device="cpu").encode_document(TEXTS, convert_to_numpy=True)
    for ours, expected in zip(computed(spec), theirs, strict=True):
        assert ours.shape == expected.shape
        assert cosines(ours, expected).min() >= 0.99999
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_a_sparse_model_keeps_its_number_of_active_dimensions(splade: Path, tmp_path: Path) -> None:
    shutil.copytree(splade, tmp_path / "few")
    json_of(tmp_path / "few" / "config_sentence_transformers.json", max_active_dims=20)
    spec = build_engine(tmp_path / "few", "few", max_length=64)
    found = computed(spec)
    assert [int((row != 0).sum()) for row in found] == [20, 20, 20]
    model = SparseEncoder(str(tmp_path / "few"), device="cpu")
    model.max_seq_length = 64
    assert cosines(np.concatenate(found), model.encode(TEXTS).to_dense().numpy()).min() >= 0.99999


def test_an_autoencoder_of_dense_vectors_is_a_sparse_model(tmp_path: Path) -> None:
    save_family("bert", tmp_path / "bert")
    torch.manual_seed(3)
    steps = [Pooling(WIDTH, "mean"), SparseAutoEncoder(WIDTH, 128, k=16, k_aux=8)]
    model = SparseEncoder(modules=[Transformer(str(tmp_path / "bert" / "plain")), *steps], device="cpu")
    model.save_pretrained(str(tmp_path / "csr"), create_model_card=False)
    spec = build_engine(tmp_path / "csr", "csr", max_length=64)
    assert (spec.layout, spec.hidden, spec.tiers) == ("sparse", 128, ("modules",))


def test_what_such_models_have_no_choice_of_is_said_in_one_line(colbert: Path, splade: Path, tmp_path: Path) -> None:
    for folder, own in ((colbert, "a MultiVectorEncoder"), (splade, "a SparseEncoder")):
        for options in ({"pooling": "cls"}, {"normalize": True}, {"normalize": False}):
            with pytest.raises(UserError, match=f"--(pooling cls|(no-)?normalize); the model is {own}"):
                build_engine(folder, "none", **options)
    model: Any = MultiVectorEncoder(str(colbert), device="cpu")
    MultiVectorEncoder(modules=[*model, HierarchicalTokenPooling(2)], device="cpu").save_pretrained(
        str(tmp_path / "fewer"), create_model_card=False
    )
    with pytest.raises(UserError, match="the model has the module HierarchicalTokenPooling"):
        build_engine(tmp_path / "fewer", "none")
    SentenceTransformer(modules=[model[0], model[1]], device="cpu").save_pretrained(
        str(tmp_path / "plain"), create_model_card=False
    )
    with pytest.raises(UserError, match="Dense after its encoder, which would be left out"):
        build_engine(tmp_path / "plain", "none", "tokens")
    shutil.copytree(splade, tmp_path / "ranker")
    json_of(tmp_path / "ranker" / "config_sentence_transformers.json", model_type="CrossEncoder")
    with pytest.raises(UserError, match="is a CrossEncoder; expected one of SentenceTransformer"):
        build_engine(tmp_path / "ranker", "none")
