"""PyTorch to ONNX for rows that lie end to end: no padding, no mask, and an attention that knows where rows end.

That attention is TensorRT's plug-in ``CustomQKVToContextPluginDynamic``, version 2 with variable sequence lengths,
which TensorRT 8.6 and 10 bring along. Its inputs and its weights' order are described in the TensorRT repository,
``plugin/bertQKVToContextPlugin``.
"""

from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from torch import Tensor, nn

from contract.engine import OUTPUT, Pooling
from contract.plan import ATTENTION_PLUGIN, PACKED_INPUTS
from engine_build.export import exported
from engine_build.model import Head, longest

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
    """The plug-in's attention; what it computes is said in ``forward``, which an export does not run."""

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
    """In place of transformers' self-attention: one matrix for query, key and value, and the plug-in.

    Args:
        attention: transformers' module.
        graph: where the rows' ends are found while the model runs.
    """

    def __init__(self, attention: Any, graph: "PackedGraph") -> None:
        super().__init__()
        self._heads: int = attention.num_attention_heads
        parts: list[nn.Linear] = [attention.query, attention.key, attention.value]
        weights = torch.stack([part.weight.unflatten(0, (self._heads, -1)) for part in parts], 1)
        biases = torch.stack([part.bias.unflatten(0, (self._heads, -1)) for part in parts], 1)
        self.linear = nn.Linear(weights.shape[-1], biases.numel(), dtype=weights.dtype)
        self.linear.weight = nn.Parameter(weights.flatten(0, 2), requires_grad=False)
        self.linear.bias = nn.Parameter(biases.flatten(), requires_grad=False)
        self._rows = graph.rows

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        qkv = self.linear(hidden_states[0])[:, :, None, None]
        context: Tensor = _Attention.apply(qkv, *self._rows, self._heads, self.linear.in_features)  # type: ignore[no-untyped-call]
        return context.flatten(1)[None], None


class PackedGraph(nn.Module):
    """What is exported. It takes the model over: its attention is replaced.

    Args:
        model: an encoder for which ``packable`` holds.
        pooling: see ``engine_build.model.pooled``.
        head: what follows it, in FP32.
    """

    def __init__(self, model: transformers.PreTrainedModel, pooling: Pooling, head: Head) -> None:
        super().__init__()
        self.rows: list[Tensor] = []
        for module in list(model.modules()):
            inner = getattr(module, "self", None)
            if isinstance(inner, nn.Module) and hasattr(inner, "query"):
                module.self = _SelfAttention(inner, self)
        self.model, self.pooling, self.head = model, pooling, head
        self._first_position = model.config.max_position_embeddings - longest(model)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        row_of_token: Tensor,
        cu_seqlens: Tensor,
        longest: Tensor,
    ) -> Tensor:
        """``contract.plan.PACKED_INPUTS`` to ``[rows, hidden]``, or ``[tokens, hidden]``, float32."""
        self.rows[:] = [cu_seqlens, longest]
        if self.pooling != "mean":
            input_ids = input_ids + row_of_token * 0  # looked at for means alone, but every engine has the same inputs
        hidden = self.model(
            input_ids=input_ids[None],
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=self.model.dtype),  # not looked at
            token_type_ids=token_type_ids[None],
            position_ids=(position_ids + self._first_position)[None],
        ).last_hidden_state[0]
        hidden = hidden.to(torch.float32)
        if self.pooling == "mean":
            starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
            rows = torch.arange(starts.shape[0], dtype=torch.int32)
            # A matrix product adds up each row's tokens: factors of 0 and 1, so nothing is lost in it.
            chosen = (row_of_token[None, :] == rows[:, None]).to(torch.float32)
            vectors = (chosen @ hidden) / (ends - starts).to(torch.float32).clamp_min(1.0)[:, None]
        elif self.pooling == "cls":
            # A row without tokens begins behind the last one; its vector is nobody's.
            last = torch.full_like(cu_seqlens[:-1], 0) + (input_ids.shape[0] - 1)
            vectors = hidden[torch.minimum(cu_seqlens[:-1], last)]
        else:
            vectors = hidden
        found: Tensor = self.head(vectors)
        return found


def packed_onnx_from_torch(model: transformers.PreTrainedModel, pooling: Pooling, head: Head, path: Path) -> None:
    """Export an encoder: inputs ``PACKED_INPUTS``, output ``OUTPUT``.

    Args:
        model: in FP16, one for which ``packable`` holds. It cannot be used afterwards.
        pooling: see ``engine_build.model.pooled``.
        head: what follows it, in FP32.
        path: the ONNX file to write.
    """
    # Two rows and a row of padding, so that nothing in the graph is fixed to a special case.
    owners = torch.tensor([0] * 5 + [1] * 8 + [2] * 3, dtype=torch.int32)
    positions = torch.tensor([*range(5), *range(8), *range(3)], dtype=torch.int32)
    ends = torch.tensor([0, 5, 13, 16], dtype=torch.int32)
    zeros = torch.zeros_like(owners)
    example = (zeros + (model.config.pad_token_id or 0), zeros, positions, owners, ends, zeros[:8])
    axes = {name: {0: "tokens"} for name in PACKED_INPUTS[:4]}
    axes |= {"cu_seqlens": {0: "rows_and_1"}, "longest": {0: "longest"}}
    output = {OUTPUT: {0: "tokens" if pooling == "tokens" else "rows"}}
    graph = PackedGraph(model, pooling, head).eval()
    exported(graph, example, PACKED_INPUTS, axes | output, path)
    made = onnx.load(path)
    for node in made.graph.node:
        if node.op_type == ATTENTION_PLUGIN[0]:
            node.domain = ""  # where TensorRT's parser looks for plug-ins; PyTorch takes no unknown name there
    onnx.save(made, path)
