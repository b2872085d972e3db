"""PyTorch to ONNX for rows that lie end to end: no padding, no mask, and an attention that knows where rows end.

That attention is TensorRT's plug-in ``CustomQKVToContextPluginDynamic``, version 2 with variable sequence lengths,
which TensorRT 8.6 and 10 bring along. Its inputs and its weights' order are described in the TensorRT repository,
``plugin/bertQKVToContextPlugin``.
"""

import copy
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from torch import Tensor, nn

from contract.graph import OUTPUT, Pooling, packed_inputs
from contract.plan import ATTENTION_PLUGIN
from engine_build.export import exported
from worker.runtime.head import Head

_ARCHITECTURES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
_WIDTH = 64
"""Of an attention head: the only width that the plug-in has kernels of for every GPU and length."""
_MAX_LENGTH = 512
"""The longest row that it takes, in tokens."""


def packable(model: transformers.PreTrainedModel, max_length: int) -> bool:
    """Whether a model can be exported so."""
    config = model.config
    return (
        config.model_type in _ARCHITECTURES
        and config.hidden_size == _WIDTH * config.num_attention_heads
        and max_length <= _MAX_LENGTH
    )


class _Attention(torch.autograd.Function):
    """The plug-in's attention; ``forward`` computes the same, and is not run by an export."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cu_seqlens: Tensor, longest: Tensor, heads: int, hidden: int) -> Tensor:
        """softmax(Q Kᵀ / √width) V within each row.

        Shapes: qkv ``[tokens, heads × 3 × width, 1, 1]``, of each head first its query, then its key, then its value;
        cu_seqlens ``[rows + 1]``; the result ``[tokens, heads × width, 1, 1]``.
        """
        query, key, value = qkv.view(len(qkv), heads, 3, -1).transpose(0, 1).unbind(2)
        context = torch.empty_like(query)
        for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
            row = slice(start, end)
            scores = query[:, row] @ key[:, row].transpose(1, 2) * query.shape[-1] ** -0.5
            context[:, row] = torch.softmax(scores, dim=-1) @ value[:, row]
        return context.transpose(0, 1).reshape(len(qkv), hidden, 1, 1)

    @staticmethod
    def symbolic(g: Any, qkv: Any, cu_seqlens: Any, longest: Any, heads: int, hidden: int) -> Any:
        name, version = ATTENTION_PLUGIN
        # Of the second input, a mask, and of the last only the shapes are looked at.
        context = g.op(
            f"tensorrt::{name}",
            *(qkv, longest, cu_seqlens, longest),
            **{"type_id_i": 1, "hidden_size_i": hidden, "num_heads_i": heads, "has_mask_i": 1, "var_seqlen_i": 1},
            **{"plugin_version_s": version, "plugin_namespace_s": ""},
        )
        return context.setType(qkv.type().with_sizes([None, hidden, 1, 1]))


class _SelfAttention(nn.Module):
    """In place of transformers' self-attention: the plug-in, and before it one matrix product for query, key and value.

    A function registered with ``transformers.AttentionInterface`` would leave the model's modules as they are, but gets
    three products, and the plug-in takes their elements interleaved by head: on a GPU that is a copy of all three in
    every layer. In one matrix the rows are interleaved once, here.

    Args:
        attention: transformers' module.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self._heads: int = attention.num_attention_heads
        parts: list[nn.Linear] = [attention.query, attention.key, attention.value]
        weights = torch.stack([part.weight.unflatten(0, (self._heads, -1)) for part in parts], 1)
        biases = torch.stack([part.bias.unflatten(0, (self._heads, -1)) for part in parts], 1)
        self.linear = nn.Linear(weights.shape[-1], biases.numel(), dtype=weights.dtype)
        self.linear.weight = nn.Parameter(weights.flatten(0, 2), requires_grad=False)
        self.linear.bias = nn.Parameter(biases.flatten(), requires_grad=False)

    def forward(
        self, hidden_states: Tensor, *_: Any, cu_seqlens: Tensor, longest: Tensor, **__: Any
    ) -> tuple[Tensor, None]:
        """``[1, tokens, hidden]`` to the same. transformers passes its model's keyword arguments down to here."""
        qkv = self.linear(hidden_states[0])[:, :, None, None]
        context: Tensor = _Attention.apply(qkv, cu_seqlens, longest, self._heads, self.linear.in_features)  # type: ignore[no-untyped-call]
        return context.flatten(1)[None], None


def _with_packed_attention(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """A copy with ``_SelfAttention`` in each layer. Its other weights are the model's own, which stays as it is."""
    shared = {id(values): values for values in (*model.parameters(), *model.buffers())}
    packed = copy.deepcopy(model, shared)
    for module in list(packed.modules()):
        inner = getattr(module, "self", None)
        if isinstance(inner, nn.Module) and hasattr(inner, "query"):
            module.self = _SelfAttention(inner)
    return packed


class PackedGraph(nn.Module):
    """What is exported.

    Args:
        model: an encoder for which ``packable`` holds; it is not changed.
        pooling: see ``engine_build.states.pooled``.
        head: what follows it, in FP32.
    """

    def __init__(self, model: transformers.PreTrainedModel, pooling: Pooling, head: Head) -> None:
        super().__init__()
        self.model, self.pooling, self.head = _with_packed_attention(model), pooling, head

    def forward(self, *inputs: Tensor) -> Tensor:
        """``packed_inputs(pooling)``, in that order, to ``[rows, hidden]``, or ``[tokens, hidden]``, float32."""
        feed = dict(zip(packed_inputs(self.pooling), inputs, strict=True))
        hidden = self.model(
            input_ids=feed["input_ids"][None],
            # A mask of four axes goes through as it is; without one transformers would make one of its own.
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=self.model.dtype),
            token_type_ids=feed["token_type_ids"][None],
            position_ids=feed["position_ids"][None],
            cu_seqlens=feed["cu_seqlens"],
            longest=feed["longest"],
        ).last_hidden_state[0]
        hidden = hidden.to(torch.float32)
        if self.pooling == "mean":
            hidden = _means(hidden, feed["cu_seqlens"], feed["row_of_token"])
        elif self.pooling == "cls":
            hidden = _firsts(hidden, feed["cu_seqlens"])
        vectors: Tensor = self.head(hidden)
        return vectors


def _means(hidden: Tensor, cu_seqlens: Tensor, row_of_token: Tensor) -> Tensor:
    """``[rows, hidden]`` of ``[tokens, hidden]``, both float32."""
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    rows = torch.arange(starts.shape[0], dtype=torch.int32)
    # A matrix product adds up each row's tokens: factors of 0 and 1, so nothing is lost in it.
    chosen = (row_of_token[None, :] == rows[:, None]).to(torch.float32)
    return (chosen @ hidden) / (ends - starts).to(torch.float32).clamp_min(1.0)[:, None]


def _firsts(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Each row's first token's, ``[rows, hidden]`` of ``[tokens, hidden]``."""
    # A row without tokens begins behind the last one; its vector is nobody's.
    last = torch.full_like(cu_seqlens[:-1], 0) + (hidden.shape[0] - 1)
    return hidden[torch.minimum(cu_seqlens[:-1], last)]


def packed_onnx_from_torch(model: transformers.PreTrainedModel, pooling: Pooling, head: Head, path: Path) -> None:
    """Export an encoder: inputs ``packed_inputs(pooling)``, output ``OUTPUT``.

    Args:
        model: in FP16, one for which ``packable`` holds; it is not changed.
        pooling: see ``engine_build.states.pooled``.
        head: what follows it, in FP32.
        path: the ONNX file to write.
    """
    # Two rows and a row of padding, so that nothing in the graph is fixed to a special case.
    tokens = torch.zeros(16, dtype=torch.int32)
    example = {
        "input_ids": tokens + (model.config.pad_token_id or 0),
        "token_type_ids": tokens,
        "position_ids": torch.tensor([*range(5), *range(8), *range(3)], dtype=torch.int32),
        "cu_seqlens": torch.tensor([0, 5, 13, 16], dtype=torch.int32),
        "longest": tokens[:8],
        "row_of_token": torch.tensor([0] * 5 + [1] * 8 + [2] * 3, dtype=torch.int32),
    }
    names = packed_inputs(pooling)
    first_axes = {name: {0: {"cu_seqlens": "rows_and_1", "longest": "longest"}.get(name, "tokens")} for name in names}
    output = {OUTPUT: {0: "tokens" if pooling == "tokens" else "rows"}}
    graph = PackedGraph(model, pooling, head).eval()
    exported(graph, tuple(example[name] for name in names), names, first_axes | output, path)
    made = onnx.load(path)
    for node in made.graph.node:
        if node.op_type == ATTENTION_PLUGIN[0]:
            node.domain = ""  # where TensorRT's parser looks for plug-ins; PyTorch takes no unknown name there
    onnx.save(made, path)
