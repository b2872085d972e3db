"""Hashes over all that a model computes with, whatever kind of file it came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_INDIFFERENT = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("id2label", "label2id", "problem_type", "gradient_checkpointing", "initializer_range", "tokenizer_class"),
)
"""What an encoder's configuration says that changes no vector, or shows in the weights."""

_UNUSED = ".pooler."
"""In the name of a weight of the pooler that some checkpoints of BERT carry: no vector depends on it."""


def model_sha256(
    encoder: Mapping[str, object],
    modules: Sequence[tuple[str, Mapping[str, object]]],
    weights: Mapping[str, npt.NDArray[np.float32]],
) -> str:
    """SHA-256, in hexadecimal, over a model's weights and the settings that change its vectors.

    Args:
        encoder: the encoder's configuration, as far as it differs from its architecture's defaults: what a later
            version of transformers adds to them changes nothing.
        modules: class name and configuration of each module after the encoder, in order.
        weights: name → values, of the encoder and of all modules.
    """
    decisive = {name: value for name, value in encoder.items() if name not in _INDIFFERENT}
    digest = hashlib.sha256(json.dumps([decisive, modules], sort_keys=True, default=str).encode())
    for name, values in sorted(weights.items()):
        if _UNUSED not in name:
            digest.update(f"{name}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    return digest.hexdigest()


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """SHA-256, in hexadecimal, over a tokenizer's tokens and their ids, added ones among them."""
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()
