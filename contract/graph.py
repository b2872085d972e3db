"""What a model's graph takes and gives, and how its tokens' vectors become one of the row."""

from typing import Annotated

from pydantic import Field

from contract.plan import PACKED_INPUTS

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Of pooling, as sentence-transformers names them."""

_MODE = f"({'|'.join(MODES)})"

Pooling = Annotated[str, Field(pattern=rf"^({_MODE}(\+{_MODE})*|tokens|sparse|own)$")]
"""One of ``MODES``; several whose vectors are joined, such as ``cls+mean``; ``tokens`` for a vector for each token;
``sparse`` for one that is mostly zeros, with an element for each entry of a vocabulary; ``own`` where the model's
modules give a vector in a way of their own."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The graph's inputs, each int32 ``[rows, length]``."""

OUTPUT = "embedding"
"""The graph's output, float32: ``[rows, hidden]``, or ``[rows, length, hidden]`` where pooling is ``tokens``; of the
packed graph then ``[tokens, hidden]``."""


def packed_inputs(pooling: Pooling) -> tuple[str, ...]:
    """Those of ``PACKED_INPUTS`` that the packed graph with this pooling has: it needs each token's row for means
    alone."""
    return tuple(name for name in PACKED_INPUTS if name != "row_of_token" or pooling == "mean")
