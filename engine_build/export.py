"""PyTorch to ONNX, shaped so that TensorRT 8.6, 10 and 11 and ONNX Runtime all fuse it."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from torch import Tensor, nn

from contract.compare import TOLERANCES, Comparison, compare
from contract.engine import INPUTS, OUTPUT, Pooling
from contract.errors import UserError
from engine_build.model import hidden_states, pooled

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
    """What is exported: int32 token ids in, vectors out, pooling and normalization inside."""

    def __init__(self, model: transformers.PreTrainedModel, pooling: Pooling, normalize: bool) -> None:
        super().__init__()
        self.model, self.pooling, self.normalize = model, pooling, normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        # Whatever the model computes in, pooling and normalization are in FP32: there sums over all tokens are taken.
        mask = attention_mask.to(torch.float32)
        if self.model.config.model_type == "distilbert":  # has no segments, but every engine has the same inputs
            mask = mask + token_type_ids * 0.0
        additive = ((1.0 - mask)[:, None, None, :] * _MASKED).to(self.model.dtype)
        hidden = hidden_states(self.model, input_ids, additive, token_type_ids)
        return pooled(hidden.to(torch.float32), mask, self.pooling, normalize=self.normalize)


def onnx_from_torch(model: transformers.PreTrainedModel, pooling: Pooling, *, normalize: bool, path: Path) -> None:
    """Export an encoder: inputs ``INPUTS``, int32 ``[rows, length]``, both axes free; output ``OUTPUT``, float32.

    The graph's types are the model's. Of a model in FP16 it has weights and activations in FP16, and LayerNormalization
    as one node, whose statistics TensorRT takes in FP32. TensorRT 11 has no other way to be told the precision.

    Args:
        model: from ``engine_build.model.load_model``, in FP32 or, by ``half()``, in FP16.
        pooling: see ``engine_build.model.pooled``.
        normalize: likewise.
        path: the ONNX file to write.

    Raises:
        UserError: the weights do not fit into one ONNX file.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > 2**31 - 2**24:
        raise UserError(f"the model's weights take {size / 2**30:.1f} GiB", "one ONNX file holds at most 2 GiB")
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    # The traced example has padding and several rows, so that nothing in the graph is fixed to a special case.
    ids = torch.full((2, 8), model.config.pad_token_id or 0, dtype=torch.int32)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3], dtype=torch.int32)
    axes = {name: {0: "rows", 1: "length"} for name in INPUTS}
    output = {OUTPUT: {0: "rows", 1: "length"} if pooling == "tokens" else {0: "rows"}}
    try:
        graph = _Graph(model, pooling, normalize).eval()
        exported(graph, (ids, mask, torch.zeros_like(ids)), INPUTS, axes | output, path)
    finally:
        model.set_attn_implementation(before)
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


_SENTENCES = (
    "",
    "Mill.",
    "The miller's stone turns slowly, and the flour falls through the sieve.",
    "Ünïcödé, 日本語, emoji 🙂 and numbers 3.14159 belong to real text as well.",
    "A text dataset is cut into batches; each batch waits in a queue until a worker takes it. " * 6,
    "Every row is accounted for exactly once, even when machines fail. " * 60,
)


def check_export(
    paths: Mapping[str, Path],
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    pooling: Pooling,
    *,
    normalize: bool,
    max_length: int,
) -> dict[str, Comparison]:
    """Compare ONNX files in ONNX Runtime with PyTorch, on texts of several lengths, padded together and each alone.

    PyTorch runs with transformers' own attention and mask, so the exported ones are checked too.

    Args:
        paths: precision → file.
        model: in FP32.
        tokenizer: the model's.
        pooling: the files'.
        normalize: likewise.
        max_length: in tokens.

    Raises:
        UserError: the FP32 file differs by more than its tolerance.
    """
    sessions = {
        precision: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for precision, path in paths.items()
    }
    found: dict[str, list[np.ndarray]] = {precision: [] for precision in paths}
    reference = []
    together = [list(_SENTENCES)]
    for texts in together + [[text] for text in _SENTENCES]:
        tokens = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        types = tokens.get("token_type_ids", torch.zeros_like(ids))
        with torch.inference_mode():
            expected = pooled(hidden_states(model, ids, mask, types), mask, pooling, normalize=normalize).numpy()
        real = mask.numpy().astype(bool) if pooling == "tokens" else slice(None)
        reference.append(expected[real])
        feed = {name: tensor.numpy().astype(np.int32) for name, tensor in zip(INPUTS, (ids, mask, types), strict=True)}
        for precision, session in sessions.items():
            found[precision].append(session.run([OUTPUT], feed)[0][real])
    comparisons = {
        precision: compare(np.concatenate(vectors), np.concatenate(reference)) for precision, vectors in found.items()
    }
    comparison = comparisons["fp32"]
    if not comparison.within(TOLERANCES["fp32"]):
        raise UserError(
            f"ONNX Runtime differs from PyTorch: {comparison}",
            f"expected at least {TOLERANCES['fp32'].min_cosine} and at most {TOLERANCES['fp32'].max_relative_mse}",
            "the export is wrong for this model: please report it",
        )
    return comparisons
