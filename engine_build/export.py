"""PyTorch to ONNX, shaped so that TensorRT 8.6, 10 and 11 and ONNX Runtime all fuse it."""

import warnings
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
        mask = attention_mask.to(torch.float32)
        if self.model.config.model_type == "distilbert":  # has no segments, but every engine has the same inputs
            mask = mask + token_type_ids * 0.0
        additive = (1.0 - mask)[:, None, None, :] * _MASKED
        hidden = hidden_states(self.model, input_ids, additive, token_type_ids)
        return pooled(hidden, mask, self.pooling, normalize=self.normalize)


def onnx_from_torch(model: transformers.PreTrainedModel, pooling: Pooling, *, normalize: bool, path: Path) -> None:
    """Export an encoder: inputs ``INPUTS``, int32 ``[rows, length]``, both axes free; output ``OUTPUT``, float32.

    Args:
        model: from ``engine_build.model.load_model``.
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the TorchScript exporter announces its successor, which has no opset 17
            torch.onnx.export(
                _Graph(model, pooling, normalize).eval(),
                (ids, mask, torch.zeros_like(ids)),
                str(path),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_axes={name: {0: "rows", 1: "length"} for name in INPUTS}
                | {OUTPUT: {0: "rows", 1: "length"} if pooling == "tokens" else {0: "rows"}},
                opset_version=OPSET,
                dynamo=False,
            )
    finally:
        model.set_attn_implementation(before)
    onnx.checker.check_model(str(path))


_SENTENCES = (
    "",
    "Mill.",
    "The miller's stone turns slowly, and the flour falls through the sieve.",
    "Ünïcödé, 日本語, emoji 🙂 and numbers 3.14159 belong to real text as well.",
    "A text dataset is cut into batches; each batch waits in a queue until a worker takes it. " * 6,
    "Every row is accounted for exactly once, even when machines fail. " * 60,
)


def check_export(
    path: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    pooling: Pooling,
    *,
    normalize: bool,
    max_length: int,
) -> Comparison:
    """Compare the ONNX file in ONNX Runtime with PyTorch, on texts of several lengths, padded together and each alone.

    PyTorch runs with transformers' own attention and mask, so the exported ones are checked too.

    Raises:
        UserError: they differ by more than the FP32 tolerance.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    together = [list(_SENTENCES)]
    found, reference = [], []
    for texts in together + [[text] for text in _SENTENCES]:
        tokens = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        types = tokens.get("token_type_ids", torch.zeros_like(ids))
        feed = {name: tensor.numpy().astype(np.int32) for name, tensor in zip(INPUTS, (ids, mask, types), strict=True)}
        vectors = session.run([OUTPUT], feed)[0]
        with torch.inference_mode():
            expected = pooled(hidden_states(model, ids, mask, types), mask, pooling, normalize=normalize).numpy()
        real = mask.numpy().astype(bool) if pooling == "tokens" else slice(None)
        found.append(vectors[real])
        reference.append(expected[real])
    comparison = compare(np.concatenate(found), np.concatenate(reference))
    if not comparison.within(TOLERANCES["fp32"]):
        raise UserError(
            f"ONNX Runtime differs from PyTorch: lowest cosine {comparison.min_cosine:.7f}, relative MSE "
            f"{comparison.relative_mse:.1e}, non-finite vectors {comparison.non_finite}",
            f"expected at least {TOLERANCES['fp32'].min_cosine} and at most {TOLERANCES['fp32'].max_relative_mse}",
            "the export is wrong for this model: please report it",
        )
    return comparison
