"""An encoder's hidden states, and how an exported graph pools them."""

import inspect

import transformers
from torch import Tensor

from contract.graph import Pooling


def has_segments(model: transformers.PreTrainedModel) -> bool:
    """Whether the encoder has an embedding for each of a text's segments."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and (getattr(model.config, "type_vocab_size", 0) or 0) > 0


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
    types = {"token_type_ids": token_type_ids} if has_segments(model) else {}
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
