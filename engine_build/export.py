"""PyTorch to ONNX, shaped so that TensorRT 8.6, 10 and 11 and ONNX Runtime all fuse it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from torch import Tensor, nn

from contract.errors import UserError, first_line
from contract.graph import INPUTS, OUTPUT, Pooling
from engine_build.states import has_segments, hidden_states, pooled
from worker.runtime.head import Head

OPSET = 17
"""The newest opset that TensorRT 8.6 parses, and the first with LayerNormalization as one node."""

_ATTENTION = "embedmill"
_MASKED = -1e4
"""Added to the scores of padding. The usual -3.4e38 becomes -inf in FP16, and an empty row NaN."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """softmax(scale·Q Kᵀ + mask) V, with the scale on Q, where TensorRT's fused attention looks for it.

    Shapes: query, key and value ``[rows, heads, length, width]``; attention_mask ``[rows, 1, 1, length]``.
    """
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    scores = torch.matmul(query * scale, key.transpose(2, 3)) + attention_mask
    context = torch.matmul(torch.softmax(scores, dim=-1), value)
    return context.transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(_ATTENTION, _attention)


class _Graph(nn.Module):
    """What is exported: int32 token ids in, vectors out, pooling and all that follows it inside."""

    def __init__(self, model: transformers.PreTrainedModel, pooling: Pooling, head: Head) -> None:
        super().__init__()
        self.model, self.pooling, self.head = model, pooling, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        # Whatever the model computes in, pooling and what follows it are in FP32: there sums over all tokens are taken.
        mask = attention_mask.to(torch.float32)
        if not has_segments(self.model):  # every engine has the same inputs
            mask = mask + token_type_ids * 0.0
        additive = ((1.0 - mask)[:, None, None, :] * _MASKED).to(self.model.dtype)
        hidden = hidden_states(self.model, input_ids, additive, token_type_ids)
        vectors: Tensor = self.head(pooled(hidden.to(torch.float32), mask, self.pooling))
        return vectors


def onnx_from_torch(model: transformers.PreTrainedModel, pooling: Pooling, head: Head, path: Path) -> None:
    """Export an encoder: inputs ``INPUTS``, int32 ``[rows, length]``, both axes free; output ``OUTPUT``, float32.

    The graph's types are the model's. Of a model in FP16 it has weights and activations in FP16, and LayerNormalization
    as one node, whose statistics TensorRT takes in FP32. TensorRT 11 has no other way to be told the precision.

    Args:
        model: the encoder, in FP32 or, by ``half()``, in FP16.
        pooling: see ``engine_build.states.pooled``.
        head: what follows it, in FP32.
        path: the ONNX file to write.

    Raises:
        UserError: the weights do not fit into one ONNX file, or a module cannot be exported.
    """
    size = sum(parameter.nbytes for part in (model, head) for parameter in part.parameters())
    if size > 2**31 - 2**24:
        raise UserError(f"the model's weights take {size / 2**30:.1f} GiB", "one ONNX file holds at most 2 GiB")
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    # What has an attention of its own makes the additive mask itself; here it is made already.
    model.__dict__["get_extended_attention_mask"] = lambda mask, *_: mask
    # The traced example has padding and several rows, so that nothing in the graph is fixed to a special case.
    ids = torch.full((2, 8), model.config.pad_token_id or 0, dtype=torch.int32)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3], dtype=torch.int32)
    axes = {name: {0: "rows", 1: "length"} for name in INPUTS}
    output = {OUTPUT: {0: "rows", 1: "length"} if pooling == "tokens" else {0: "rows"}}
    try:
        graph = _Graph(model, pooling, head).eval()
        exported(graph, (ids, mask, torch.zeros_like(ids)), INPUTS, axes | output, path)
    except torch.onnx.errors.OnnxExporterError as error:
        modules = ", ".join(map(str, head.steps))
        raise UserError(
            f"the model cannot be exported to ONNX ({first_line(error)})",
            f"expected that each of its modules after the pooling can be: {modules or 'none'}",
            "choose another model",
        ) from None
    finally:
        model.set_attn_implementation(before)
        del model.__dict__["get_extended_attention_mask"]
    onnx.checker.check_model(str(path))


def exported(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    names: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    path: Path,
) -> None:
    """Trace a graph and write it as ONNX.

    Args:
        graph: in evaluation mode.
        example: its inputs.
        names: the inputs' names; the output's is ``OUTPUT``.
        axes: of each, the free axes and what they are called.
        path: the ONNX file to write.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its successor, which has no opset 17
        torch.onnx.export(
            graph,
            example,
            str(path),
            input_names=list(names),
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
