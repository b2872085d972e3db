"""Rows end to end through transformers' own code, against the same code on one row at a time."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from contract.errors import UserError
from contract.graph import Pooling
from worker.runtime import attention
from worker.runtime.head import Head
from worker.runtime.layers import layers_of
from worker.runtime.packed_model import PackedModel, fuse_gelu, read_model, write_model

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 64},
    "bert": {},
    "camembert": {},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    "electra": {"embedding_size": 64},
    "ernie": {},
    "eurobert": {"num_key_value_heads": 2},
    "gemma3_text": GROUPED | {"sliding_window": 8, "use_bidirectional_attention": True},
    "jina_embeddings_v3": {},
    "llama": {"num_key_value_heads": 2},
    "mistral": GROUPED | {"sliding_window": 8},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "nomic_bert": {},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "roberta": {},
    "xlm-roberta": {},
}
LENGTHS = (7, 31, 1, 20)
COUNTED = ("camembert", "roberta", "xlm-roberta")
"""Their positions begin behind the padding id."""


def model_of(name: str, **changes: Any) -> transformers.PreTrainedModel:
    shape = {"vocab_size": 500, "pad_token_id": 0} if name == "distilbert" else SHAPE
    config = transformers.AutoConfig.for_model(name, **(shape | ARCHITECTURES[name] | changes))
    transformers.set_seed(3)
    model: Any = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def rows() -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(5, 499, (length,), generator=random) for length in LENGTHS]


def inputs_of(rows: list[Tensor], first_position: int) -> dict[str, Tensor]:
    """The last row has no tokens."""
    positions = torch.cat([torch.arange(len(row)) for row in rows]) + first_position
    ends = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
    tensors = {
        "input_ids": torch.cat(rows),
        "token_type_ids": torch.zeros(ends[-1]),
        "position_ids": positions,
        "cu_seqlens": torch.tensor([0, *ends, ends[-1]]),
    }
    return {name: values.int() for name, values in tensors.items()}


def hidden_of(model: transformers.PreTrainedModel, row: Tensor) -> Tensor:
    hidden: Tensor = model(input_ids=row[None], attention_mask=torch.ones_like(row)[None]).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_end_to_end_are_each_computed_as_if_alone(name: str, tmp_path: Path) -> None:
    """From the file, as a worker reads it, in each pooling; with windows and causal masks where the model has them."""
    model, some = model_of(name), rows()
    with torch.inference_mode():
        alone = [hidden_of(model, row) for row in some]
    write_model(model, Head([], None, False), tmp_path / "model.safetensors")
    poolings: dict[Pooling, Tensor] = {
        "tokens": torch.cat(alone),
        "mean": torch.stack([row.mean(0) for row in alone]),
        "cls": torch.stack([row[0] for row in alone]),
    }
    for pooling, expected in poolings.items():
        encoder, head = read_model(tmp_path / "model.safetensors", torch.float32)
        packed = PackedModel(encoder, pooling, head)
        with torch.inference_mode():
            found = packed(inputs_of(some, first_position=int(name in COUNTED)), longest=64)
        torch.testing.assert_close(found[: len(expected)], expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gemma3_text", "mistral", "modernbert", "qwen3"])
def test_a_long_row_is_computed_without_any_tensor_of_its_length_squared(name: str) -> None:
    """With windows, causal masks and neither, beside a short row."""
    length = 2000
    model, row = model_of(name, max_position_embeddings=length), torch.arange(length) % 490 + 5
    with torch.inference_mode():
        alone = torch.cat([hidden_of(model, row), hidden_of(model, row[:3])])
        packed = PackedModel(model, "tokens", Head([], None, False))
        with _Largest() as largest:
            found = packed(inputs_of([row, row[:3]], first_position=0), longest=length)
    torch.testing.assert_close(found, alone, atol=5e-6, rtol=0)
    assert largest.elements <= 4 * attention.QUERIES * length < length**2


class _Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in (made if isinstance(made, tuple) else (made,)) if isinstance(one, Tensor)]
        self.elements = max([self.elements, *(one.untyped_storage().nbytes() // 4 for one in tensors)])
        return made


@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert", "qwen3"])
def test_layers_are_the_encoders(name: str) -> None:
    model = model_of(name)
    packed = PackedModel(model, "mean", Head([], None, False))
    layers = layers_of(packed.encoder)
    assert len(layers) == model.config.num_hidden_layers
    assert len({type(layer) for layer in layers}) == 1


@pytest.mark.parametrize(
    ("name", "kinds"), [("bert", 1), ("modernbert", 3), ("gemma3_text", 2), ("qwen3", 1), ("mistral", 1)]
)
def test_layers_of_one_kind_share_a_compiled_graph_whatever_the_rows_are(
    name: str, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModernBERT's first layer has no normalization before its attention; Gemma's have windows or none. Of one number
    of tokens neither the number of rows nor the longest one make another graph."""
    seen = set()

    @torch.library.custom_op("embedmill_test::attention", mutates_args=())
    def computed(query: Tensor, ends: Tensor, longest: int) -> Tensor:
        seen.add((len(ends) - 1, longest))
        return query.clone()

    @computed.register_fake
    def _(query: Tensor, *_: object) -> Tensor:
        return torch.empty_like(query)

    # On a CPU the attention reads where rows end, which no graph can.
    monkeypatch.setattr(attention, "row_by_row", lambda query, _key, _value, rows, _: computed(query, *rows[:2]))
    from torch._dynamo.testing import CompileCounter  # here: it imports half a second of PyTorch's compiler

    torch._dynamo.reset()
    windows = {"layer_types": ["sliding_attention", "full_attention"] * 3} if name == "gemma3_text" else {}
    model = model_of(name, num_hidden_layers=6, **windows)
    packed, counter = PackedModel(model, "mean", Head([], None, False)), CompileCounter()
    packed.compile_layers(counter)
    shapes = {(5, 64), (40, 64), (63, 64), (5, 300)}  # 63 rows have 64 ends
    for rows_in_all, longest in sorted(shapes):
        inputs = inputs_of(rows(), first_position=0)
        ends = inputs["cu_seqlens"]
        inputs["cu_seqlens"] = torch.cat([ends, ends[-1:].repeat(rows_in_all + 1 - len(ends))])
        with torch.inference_mode():
            packed(inputs, longest)
    assert (len(layers_of(packed.encoder)), counter.frame_count, seen) == (6, kinds, shapes)


@pytest.mark.parametrize(
    ("name", "fused"), [("bert", 3), ("roberta", 3), ("distilbert", 2), ("modernbert", 0), ("qwen3", 0)]
)
def test_a_fused_gelu_changes_the_vectors_as_little_as_fp16_does(name: str, fused: int) -> None:
    model, row = model_of(name), rows()[1]
    with torch.inference_mode():
        expected = hidden_of(model, row)
        assert fuse_gelu(model) == fused
        found = hidden_of(model, row)
    cosines = nn.functional.cosine_similarity(found, expected, dim=1)
    assert cosines.min() > 0.9999


def test_another_activation_is_not_taken_for_gelu() -> None:
    model, row = model_of("bert", hidden_act="relu"), rows()[1]
    with torch.inference_mode():
        expected = hidden_of(model, row)
        assert fuse_gelu(model) == 0
        assert torch.equal(hidden_of(model, row), expected)


def test_a_file_without_a_weight_is_refused(tmp_path: Path) -> None:
    model: Any = model_of("bert")
    file = tmp_path / "model.safetensors"
    state = {name: values for name, values in model.state_dict().items() if "word_embeddings" not in name}
    model.state_dict = lambda: state
    write_model(model, Head([], None, False), file)
    with pytest.raises(RuntimeError, match="word_embeddings"):
        read_model(file, torch.float32)


def test_weights_are_read_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    dense = ("Dense", {"in_features": 64, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"})
    head = Head([dense, ("Normalize", {})], 4, True)
    write_model(model_of("bert"), head, tmp_path / "model.safetensors")
    encoder, again = read_model(tmp_path / "model.safetensors", torch.float16)
    assert {values.dtype for values in encoder.parameters()} == {torch.float16}
    assert {values.dtype for values in again.parameters()} == {torch.float32}
    vectors = torch.randn(5, 64)
    assert torch.equal(again(vectors), head(vectors))
    assert head(vectors).shape == (5, 4)
    assert head.width(64) == 4


@pytest.mark.parametrize("name", ["acme.Activation", "torch.nn.functional.none", "Tanh"])
def test_an_activation_that_is_none_of_pytorchs_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        Head([("Dense", {"in_features": 2, "out_features": 2, "activation_function": name})], None, False)


def test_the_attention_takes_what_the_models_hand_it() -> None:
    """transformers passes unknown keywords on without a word: one that it renames would be lost."""
    from worker.runtime import attention

    parameters = inspect.signature(attention.attention).parameters
    assert all(parameters[name].default is inspect.Parameter.empty for name in ("cu_seqlens", "longest"))
