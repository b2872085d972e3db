"""A model as PyTorch computes it: transformers' own code, on rows that lie end to end in one sequence.

There is no padding and no mask. ``position_ids`` begin anew with each row, and an attention function, registered with
transformers' attention interface, is told by ``cu_seqlens`` where rows begin and end. Rows of 3 and 2 tokens::

    input_ids     101 7592 102 101 102
    position_ids    0    1   2   0   1
    cu_seqlens      0 3 5

Every architecture whose attention goes through that interface is computed so, without code for each.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from contract.files import as_umask_says
from contract.graph import Pooling
from contract.tuned import AttentionKernel
from worker.runtime.attention import ATTENTION, Unpackable
from worker.runtime.head import Head
from worker.runtime.layers import compile_layers
from worker.runtime.pooling import pool

INPUTS = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens")
"""A packed model's, each int32 ``[tokens]``, but ``cu_seqlens`` ``[rows + 1]``; see ``worker.runtime.layout``."""

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What a GPU computes in, the more exact one first."""


class _LinearGelu(nn.Module):
    """A linear layer and GELU in one product, whose GELU is the one by tanh: it is off by at most 0.0005."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, -2)
        made = torch._addmm_activation(self.bias, flat, self.weight.t(), use_gelu=True)
        return made.unflatten(0, hidden.shape[:-1])


_FEED_FORWARD = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("fc1", "activation_fn"))
"""What transformers calls a layer's first linear module and the activation after it."""
_GELU = ("GELUActivation", "GELU", "NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh", "GELUTanh")


def fuse_gelu(encoder: nn.Module) -> int:
    """Have each GELU behind a linear layer computed by that layer's matrix product.

    Returns:
        How many were.
    """
    fused = 0
    for module in list(encoder.modules()):
        for linear, activation in _FEED_FORWARD:
            first, then = getattr(module, linear, None), getattr(module, activation, None)
            if isinstance(first, nn.Linear) and first.bias is not None and type(then).__name__ in _GELU:
                setattr(module, linear, _LinearGelu(first))
                setattr(module, activation, nn.Identity())
                fused += 1
    return fused


class PackedModel(nn.Module):
    """An encoder, its pooling and its head.

    Args:
        encoder: transformers'; its attention becomes the one of this module.
        pooling: see ``contract.graph``.
        head: what follows it, in FP32.

    Raises:
        Unpackable: the encoder's attention does not go through transformers' attention interface.
    """

    def __init__(self, encoder: transformers.PreTrainedModel, pooling: Pooling, head: Head) -> None:
        super().__init__()
        # transformers leaves the attention of a model that has one of its own as it is, and says so in its log alone.
        if not getattr(encoder, "_supports_attention_backend", False):
            raise Unpackable("its attention does not go through transformers' attention interface")
        encoder.set_attn_implementation(ATTENTION)
        # A decoder would keep each layer's keys and values, for tokens that are never generated, and have each layer
        # compiled by itself.
        encoder.config.use_cache = False
        self.encoder, self.pooling, self.head = encoder.eval(), pooling, head.eval()
        self._compiled = False
        self._takes = inspect.signature(encoder.forward).parameters.keys()

    def compile_layers(self, backend: Callable[..., Any]) -> None:
        """Have ``torch.compile`` compile each layer once it is computed. All of one kind share a graph, which is for a
        number of tokens and serves any number of rows, and any longest one: these two are known to the attention's
        kernel alone, which is no part of a graph."""
        compile_layers(self.encoder, backend, dynamic=False)
        self._compiled = True

    def forward(
        self, inputs: Mapping[str, Tensor], longest: int, skip: int = 0, kernel: AttentionKernel | None = None
    ) -> Tensor:
        """Vectors, float32: ``[rows, hidden]``, or ``[tokens, hidden]`` where pooling is ``tokens``.

        Args:
            inputs: ``INPUTS``. A row of 0 tokens has a vector that is nobody's.
            longest: no row has more tokens.
            skip: tokens at each row's beginning that are left out of the pooling.
            kernel: what computes the attention on a GPU: None for PyTorch's own. Compiled layers have a graph for each.
        """
        hidden = self._hidden_states(inputs, longest, kernel).float()
        vectors: Tensor = self.head(pool(hidden, inputs["cu_seqlens"], self.pooling, skip))
        return vectors

    def _hidden_states(self, inputs: Mapping[str, Tensor], longest: int, kernel: AttentionKernel | None) -> Tensor:
        """``[tokens, width]``, of the last layer."""
        cu_seqlens = inputs["cu_seqlens"]
        size = cu_seqlens.new_empty(longest, 0)
        if self._compiled:
            for tensor in (cu_seqlens, size):
                torch._dynamo.mark_dynamic(tensor, 0)
        made = self.encoder(
            input_ids=inputs["input_ids"][None],
            cu_seqlens=cu_seqlens,
            longest=size,
            kernel=kernel,
            **{name: inputs[name][None] for name in ("token_type_ids", "position_ids") if name in self._takes},
        )
        hidden: Tensor = made.last_hidden_state[0]
        return hidden


def write_model(encoder: transformers.PreTrainedModel, head: Head, path: Path) -> None:
    """Write all that ``read_model`` needs into one safetensors file: weights as they are, configurations as metadata.

    Args:
        encoder: in FP32.
        head: in FP32.
        path: the file.
    """
    weights = {
        f"{part}.{name}": values.contiguous().clone()  # shared weights are written twice
        for part, module in (("encoder", encoder), ("head", head))
        for name, values in module.state_dict().items()
    }
    described = {"encoder": encoder.config.to_json_string(use_diff=False), "head": json.dumps(head.described)}
    save_file(weights, path, described)
    as_umask_says(path)


def _described(path: Path) -> dict[str, Any]:
    """The configurations of ``encoder`` and ``head``."""
    with safetensors.safe_open(path, "pt") as file:
        return {part: json.loads(text) for part, text in file.metadata().items()}


def attention_shape(path: Path) -> tuple[int, int]:
    """The heads of the encoder that ``write_model`` wrote, and the width of each."""
    config = _config(_described(path)["encoder"])
    heads = config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _config(described: Mapping[str, Any]) -> transformers.PreTrainedConfig:
    named = dict(described)
    return transformers.AutoConfig.for_model(named.pop("model_type"), **named)


def read_model(path: Path, dtype: torch.dtype) -> tuple[transformers.PreTrainedModel, Head]:
    """The encoder, in ``dtype``, and the head, in FP32, both on the CPU.

    Raises:
        RuntimeError: the file's weights are not those of its configurations.
    """
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}}
    described = _described(path)
    with safetensors.safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict
            part, _, weight = name.partition(".")
            parts[part][weight] = file.get_tensor(name)
    with no_init_weights():  # they would be random, and are replaced
        encoder = transformers.AutoModel.from_config(_config(described["encoder"]), dtype=dtype)
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    encoder.load_state_dict(parts["encoder"])
    head = Head(**described["head"])
    head.load_state_dict(parts["head"])
    return encoder, head
