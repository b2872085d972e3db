"""The packed graph in PyTorch, fed by the worker's own layout, against plain transformers one row at a time."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from bench.tiny_model import save_tiny_model
from contract.batch import Batch
from contract.graph import Pooling, packed_inputs
from contract.plan import ATTENTION_PLUGIN, PackedProfile
from contract.tokens import TokenRows
from engine_build.model import position_pad_id
from engine_build.packed import PackedGraph, packable, packed_onnx_from_torch
from tests.contract.samples import engine_spec
from tests.engine_build.encoders import encoder_of
from worker.runtime.head import Head
from worker.runtime.interface import Gathered
from worker.runtime.layout import Packed

ARCHITECTURES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
PROFILES = (PackedProfile(12, 600), PackedProfile(40, 700))
LENGTH = 96


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models whose attention heads are 64 wide."""
    folder = tmp_path_factory.mktemp("wide")
    return {
        name: save_tiny_model(folder / name, name, hidden_size=128, num_attention_heads=2, embedding_size=128)
        for name in ARCHITECTURES
    }


def batch_of(lengths: list[int], pad_id: int) -> Batch:
    random = np.random.default_rng(5)
    n_tokens = np.array(lengths, np.int32)
    ids = random.integers(5, 1000, n_tokens.sum(), dtype=np.int32)
    ids[random.random(ids.shape) < 0.05] = pad_id  # a text may have that token too
    return Batch("job", 0, "engine", np.arange(len(lengths)), TokenRows(ids, n_tokens), n_tokens)


def plain(model: Path, batch: Batch) -> list[np.ndarray]:
    """The last hidden state of each row that has tokens."""
    encoder = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in np.flatnonzero(batch.lengths):
        ids = torch.from_numpy(batch.tokens.slice(slice(row, row + 1)).ids.copy())[None]
        with torch.inference_mode():
            found.append(encoder(input_ids=ids.long()).last_hidden_state[0].numpy())
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False), ("tokens", False)])
def test_vectors_are_plain_transformers(
    architecture: str, pooling: Pooling, normalize: bool, wide: dict[str, Path]
) -> None:
    model = encoder_of(wide[architecture])
    pad_id = model.config.pad_token_id
    spec = engine_spec(
        **{"pooling": pooling, "normalize": normalize, "hidden": 128, "max_length": LENGTH, "pad_id": pad_id},
        position_pad_id=position_pad_id(model),
    )
    lengths = np.random.default_rng(1).integers(0, LENGTH + 1, 60).tolist()
    batch, layout = batch_of(lengths, pad_id), Packed(spec, PROFILES)
    graph = PackedGraph(model, pooling, Head([], None, normalize))
    gathered = Gathered(spec, batch.lengths)
    elements, most = layout.sizes()
    for micro in layout.cut(batch.lengths):
        # What a buffer held before must not matter.
        buffers = {name: np.full(elements, 2**20, np.int32) for name in layout.inputs}
        shapes = layout.fill(batch, micro, buffers)
        feed = [torch.from_numpy(buffers[name][: shapes[name][0]]) for name in layout.inputs]
        with torch.inference_mode():
            found = graph(*feed).numpy()
        assert len(found) <= most
        layout.gather(micro, found[: layout.vectors(micro)], batch.lengths, gathered)
    hidden = plain(wide[architecture], batch)
    expected = {
        "mean": lambda: np.stack([row.mean(axis=0) for row in hidden]),
        "cls": lambda: np.stack([row[0] for row in hidden]),
        "tokens": lambda: np.concatenate(hidden),
    }[pooling]()
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(gathered.vectors, expected, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "tokens"])
def test_the_file_has_the_plug_in_in_every_layer_and_fp16_weights(
    wide: dict[str, Path], tmp_path: Path, pooling: Pooling
) -> None:
    packed_onnx_from_torch(
        encoder_of(wide["bert"]).half(), pooling, Head([], None, True), path=tmp_path / "packed.onnx"
    )
    graph = onnx.load(tmp_path / "packed.onnx").graph
    assert [value.name for value in graph.input] == list(packed_inputs(pooling))
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.INT32 for value in graph.input)
    attention = [node for node in graph.node if node.op_type == ATTENTION_PLUGIN[0]]
    assert [(node.domain, len(node.input)) for node in attention] == [("", 4)] * 2
    said = {one.name: onnx.helper.get_attribute_value(one) for one in attention[0].attribute}
    assert said == {
        "type_id": 1,
        "hidden_size": 128,
        "num_heads": 2,
        "has_mask": 1,
        "var_seqlen": 1,
        "plugin_version": b"2",
        "plugin_namespace": b"",
    }
    assert not {"Softmax", "Where", "IsNaN"} & {node.op_type for node in graph.node}
    matrices = [one for one in graph.initializer if len(one.dims) == 2]
    assert {one.data_type for one in matrices} == {onnx.TensorProto.FLOAT16}


def test_exporting_leaves_the_model_as_it_was(wide: dict[str, Path], tmp_path: Path) -> None:
    model = encoder_of(wide["bert"])
    ids = torch.tensor([[2, 9, 3]])
    before = model(input_ids=ids).last_hidden_state
    packed_onnx_from_torch(model, "mean", Head([], None, True), tmp_path / "packed.onnx")
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)
    graph = PackedGraph(model, "mean", Head([], None, True))
    shared = {id(one) for one in model.parameters()} & {id(one) for one in graph.model.parameters()}
    assert id(model.get_input_embeddings().weight) in shared


def test_only_what_the_plug_in_takes_is_packable(wide: dict[str, Path], tmp_path: Path) -> None:
    model = encoder_of(wide["bert"])
    assert packable(model, 512)
    assert not packable(model, 513)
    assert not packable(encoder_of(save_tiny_model(tmp_path / "narrow")), 512)
    assert not packable(encoder_of(save_tiny_model(tmp_path / "distil", "distilbert", dim=128, n_heads=2)), 512)
