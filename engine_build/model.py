"""What of a model is exported: its encoder, one pooling, and what comes after that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dropout, Normalize, Pooling as PoolingModule
from torch import Tensor

from contract.engine import Choice, Pooling
from contract.weights import model_sha256
from worker.runtime.head import Head


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in the parts that are exported, and what the user chose of them."""

    encoder: transformers.PreTrainedModel
    pooling: Pooling
    head: Head
    normalize: bool
    chosen: tuple[Choice, ...]
    include_prompt: bool
    reference: SentenceTransformer
    """Whose ``encode()``, with ``encode_options``, gives the vectors that the engine must give."""

    @property
    def truncate_dim(self) -> int | None:
        return self.head.truncate_dim

    @property
    def per_token(self) -> bool:
        """Whether a row has a vector for each of its tokens instead of one."""
        return self.pooling == "tokens"

    @property
    def encode_options(self) -> dict[str, Any]:
        """Of ``encode()``."""
        if self.per_token:
            return {"output_value": "token_embeddings"}
        return {"normalize_embeddings": self.head.normalize}

    @property
    def hidden(self) -> int:
        """Width of a vector as it comes out."""
        return self.head.width(self.encoder.config.hidden_size)


def parts_of(model: SentenceTransformer, pooling: Pooling | None, normalize: bool | None) -> Parts:
    """Take a model apart.

    Args:
        model: from ``engine_build.opened.open_folder``.
        pooling: the user's choice; None for the model's own. With ``tokens`` nothing of what the model does after its
            encoder is left.
        normalize: the user's choice; None for the model's own.
    """
    modules: list[Any] = list(model)
    transformer, own_pooling, *after = modules
    steps = [module for module in after if not isinstance(module, Dropout)]  # which does nothing in evaluation
    own = bool(steps) and isinstance(steps[-1], Normalize)
    chosen: list[Choice] = []
    if pooling not in (None, own_pooling.pooling_mode):
        chosen.append("pooling")
    pooling = pooling or own_pooling.pooling_mode
    per_token = pooling == "tokens"
    if per_token:
        steps, own = [], False
    wanted = own if normalize is None else normalize
    width = None if per_token else model.truncate_dim
    # What truncate_dim leaves of a vector has not norm 1 any more: who asks for that by name gets it.
    if wanted != own or (normalize and width is not None):
        chosen.append("normalize")
    again = "normalize" in chosen and wanted
    while not wanted and steps and isinstance(steps[-1], Normalize):
        steps.pop()
    kept: list[Any] = [transformer]
    if per_token:
        kept += [Normalize(module_input_name="token_embeddings")] if wanted else []
    else:
        same = pooling == own_pooling.pooling_mode
        kept += [own_pooling if same else PoolingModule(own_pooling.embedding_dimension, pooling), *steps]
    return Parts(
        encoder=transformer.auto_model,
        pooling=pooling,
        head=_head(steps, width, again),
        normalize=wanted,
        chosen=tuple(chosen),
        include_prompt=per_token or own_pooling.include_prompt,
        reference=SentenceTransformer(modules=kept, device="cpu", truncate_dim=width),
    )


def _head(modules: Sequence[Any], truncate_dim: int | None, normalize: bool) -> Head:
    """A head of sentence-transformers' modules, with copies of their weights."""
    head = Head([(type(module).__name__, module.get_config_dict()) for module in modules], truncate_dim, normalize)
    for step, module in zip(head.steps, modules, strict=True):
        step.load_state_dict(module.state_dict())
    return head.eval()


def longest(model: transformers.PreTrainedModel) -> int:
    """The most tokens that the model has positions for."""
    padding = position_pad_id(model)
    return model.config.max_position_embeddings - (0 if padding is None else padding + 1)


def position_pad_id(model: transformers.PreTrainedModel) -> int | None:
    """See ``EngineSpec.position_pad_id``."""
    counts = model.config.model_type in ("camembert", "roberta", "xlm-roberta")
    return model.config.pad_token_id if counts else None


def linear_weights(model: transformers.PreTrainedModel) -> int:
    """The elements of the weight matrices that every token is multiplied with."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def weights_sha256(model: SentenceTransformer) -> str:
    """``contract.weights.model_sha256`` of a model as it was opened."""
    every: list[Any] = list(model)
    transformer, *modules = every
    described = [(type(module).__name__, module.get_config_dict()) for module in modules]
    settings = transformer.auto_model.config.to_dict()
    return model_sha256(settings, described, {name: values.numpy() for name, values in model.state_dict().items()})


def hidden_states(
    model: transformers.PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> Tensor:
    """The last hidden state, ``[rows, length, hidden]``.

    Args:
        model: an encoder.
        input_ids: ``[rows, length]``, int32 or int64.
        attention_mask: ``[rows, length]``, or an additive one, ``[rows, 1, 1, length]``.
        token_type_ids: ``[rows, length]``; left out where the architecture has none.
    """
    types = {} if model.config.model_type == "distilbert" else {"token_type_ids": token_type_ids}
    return model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


def pooled(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Vectors from hidden states: ``[rows, hidden]``, or ``[rows, length, hidden]`` where pooling is ``tokens``.

    The formulas of sentence-transformers' Pooling module.

    Args:
        hidden: ``[rows, length, hidden]``.
        attention_mask: ``[rows, length]``; no row of it may be empty.
        pooling: ``mean`` over the real tokens, ``cls`` for the first one, ``tokens`` for all.
    """
    if pooling == "mean":
        weight = attention_mask.to(hidden.dtype)[:, :, None]
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    return hidden[:, 0] if pooling == "cls" else hidden
