"""The exported graph against plain transformers: its own loading, attention and mask, and pooling written down here."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import numpy_helper

from bench.tiny_model import save_tiny_model
from contract.graph import INPUTS, OUTPUT, Pooling
from engine_build.export import OPSET, onnx_from_torch
from engine_build.model import longest
from engine_build.tiers import EXPORTED
from tests.engine_build.encoders import FAMILY, OTHERS, encoder_of
from worker.runtime.head import Head

LAYERS, HIDDEN, VOCABULARY = 2, 32, 1000
POSITIONS: dict[str, dict[str, int]] = {
    name: {"max_position_embeddings": 2048} for name in ("gte", "jina_embeddings_v3")
}
"""Of architectures with 8,192: plain transformers takes 8 GiB for two rows so long."""

POOLINGS: list[tuple[Pooling, bool]] = [
    ("mean", True),
    ("mean", False),
    ("cls", True),
    ("cls", False),
    ("tokens", True),
    ("tokens", False),
]
EXPORTS = [
    *(("bert", *pooling) for pooling in POOLINGS),
    *((one, *pooling) for one in FAMILY[1:] for pooling in (POOLINGS[0], POOLINGS[3], POOLINGS[5])),
    *((one, *POOLINGS[0]) for one in OTHERS),
]


class Models(dict[str, Path]):
    """A tiny model of each architecture that a test of this process asks for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = save_tiny_model(self._folder / name, name, **POSITIONS.get(name, {}))
        return self[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def graph(request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The mean-pooled, normalized graph of the architecture that the test names."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx_from_torch(encoder_of(models[request.param]), "mean", Head([], None, True), path=path)
    return onnx.load(path)


@functools.cache
def loaded(folder: Path) -> torch.nn.Module:
    return transformers.AutoModel.from_pretrained(folder).eval()


def plain_transformers(
    folder: Path, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32], pooling: Pooling, normalize: bool
) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found = loaded(folder)(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    hidden = found.last_hidden_state.numpy()
    if pooling == "mean":
        vectors = np.stack([row[real == 1].mean(axis=0) for row, real in zip(hidden, mask, strict=True)])
    elif pooling == "cls":
        vectors = hidden[:, 0]
    else:
        vectors = hidden
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) if normalize else vectors


def rows_of(lengths: list[int], width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Random token ids and their mask, padded to ``width``."""
    random = np.random.default_rng(sum(lengths) + width)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    return random.integers(5, VOCABULARY, mask.shape, np.int32) * mask, mask


@pytest.mark.parametrize(("architecture", "pooling", "normalize"), EXPORTS)
def test_the_graph_computes_what_transformers_computes(
    architecture: str, pooling: Pooling, normalize: bool, models: Models, tmp_path: Path
) -> None:
    folder, path = models[architecture], tmp_path / "model.onnx"
    model = encoder_of(folder)
    onnx_from_torch(model, pooling, Head([], None, normalize), path=path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    most = longest(model)
    for lengths, width in [
        ([2], 2),  # alone, as short as a row can be
        ([17], 17),
        ([most], most),
        ([2, 3, 30, 31, 32], 32),  # together, one of them without padding
        ([5, 2, 9], 64),  # all of them padded
        ([most, 2], most),
    ]:
        ids, mask = rows_of(lengths, width)
        found = session.run([OUTPUT], dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True)))[0]
        expected = plain_transformers(folder, ids, mask, pooling, normalize)
        real = mask == 1 if pooling == "tokens" else slice(None)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found[real], expected[real], atol=2e-5, err_msg=f"lengths {lengths} in {width}")


def test_padding_makes_no_difference_to_a_row(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_from_torch(encoder_of(models["bert"]), "mean", Head([], None, True), path=path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def embed(ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        return session.run([OUTPUT], dict(zip(INPUTS, (ids, mask, np.zeros_like(ids)), strict=True)))[0]

    ids, mask = rows_of([6], 6)
    alone = embed(ids, mask)
    padded, padded_mask = np.pad(ids, [(0, 0), (0, 500)]), np.pad(mask, [(0, 0), (0, 500)])
    np.testing.assert_allclose(embed(padded, padded_mask), alone, atol=1e-6)
    padded[:, 6:] = 7  # what stands behind the text is never looked at
    np.testing.assert_allclose(embed(padded, padded_mask), alone, atol=1e-6)


def test_exporting_leaves_the_model_as_it_was(models: Models, tmp_path: Path) -> None:
    model = encoder_of(models["bert"])
    attention = model.config._attn_implementation
    ids = torch.tensor([[2, 9, 3]])
    before = model(input_ids=ids).last_hidden_state
    onnx_from_torch(model, "cls", Head([], None, False), path=tmp_path / "model.onnx")
    assert model.config._attn_implementation == attention
    assert torch.equal(model(input_ids=ids).last_hidden_state, before)


every_architecture = pytest.mark.parametrize("graph", EXPORTED, indirect=True, scope="session")
berts_family = pytest.mark.parametrize("graph", FAMILY, indirect=True, scope="session")


@every_architecture
def test_the_graph_takes_int32_and_has_free_axes(graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", OPSET)] == [("", 17)]
    assert [value.name for value in graph.graph.input] == list(INPUTS)
    for value in graph.graph.input:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT32
        assert [axis.dim_param for axis in value.type.tensor_type.shape.dim] == ["rows", "length"]
    (output,) = graph.graph.output
    assert output.name == OUTPUT
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    rows, hidden = output.type.tensor_type.shape.dim
    assert (rows.dim_param, hidden.dim_value) == ("rows", HIDDEN)  # pooled inside: no axis of tokens comes out


@berts_family
def test_the_graph_is_the_clean_chain_that_tensorrt_fuses(graph: onnx.ModelProto) -> None:
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("Softmax") == LAYERS
    assert operators.count("LayerNormalization") == 1 + 2 * LAYERS
    assert operators.count("Erf") == LAYERS
    in_pieces = {"Pow", "Sqrt", "ReduceMean"}  # of a LayerNorm
    by_choice = {"Where", "IsNaN", "If", "Loop", "NonZero"}  # of a mask
    assert not (in_pieces | by_choice) & set(operators)
    assert {node.domain for node in graph.graph.node} == {""}


@every_architecture
def test_no_constant_overflows_in_half_precision(graph: onnx.ModelProto) -> None:
    constants = list(graph.graph.initializer)
    constants += [item.t for node in graph.graph.node for item in node.attribute if item.HasField("t")]
    floats = [numpy_helper.to_array(tensor) for tensor in constants if tensor.data_type == onnx.TensorProto.FLOAT]
    assert floats
    assert all(np.isfinite(values.astype(np.float16)).all() for values in floats)
    assert not any(tensor.data_type == onnx.TensorProto.DOUBLE for tensor in constants)


@berts_family
def test_attention_scales_the_query_and_adds_the_mask(graph: onnx.ModelProto) -> None:
    made_by = {name: node for node in graph.graph.node for name in node.output}
    consumers = {name: node for node in graph.graph.node for name in node.input}
    for softmax in (node for node in graph.graph.node if node.op_type == "Softmax"):
        masked = made_by[softmax.input[0]]
        assert masked.op_type == "Add"
        scores = next(made_by[name] for name in masked.input if made_by[name].op_type == "MatMul")
        scaled, keys = (made_by[name] for name in scores.input)
        assert (scaled.op_type, keys.op_type) == ("Mul", "Transpose")
        assert consumers[softmax.output[0]].op_type == "MatMul"
