"""One hash over all that a model computes with, whatever kind of file it came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_DECISIVE = ("model_type", "num_attention_heads", "hidden_act", "activation", "layer_norm_eps", "pad_token_id")
"""What an encoder's configuration says that changes the vectors and does not show in the weights' shapes."""

_UNUSED = ".pooler."
"""In the name of a weight of the pooler that some checkpoints of BERT carry: no vector depends on it."""


def model_sha256(
    encoder: Mapping[str, object],
    modules: Sequence[tuple[str, Mapping[str, object]]],
    weights: Mapping[str, npt.NDArray[np.float32]],
) -> str:
    """SHA-256, in hexadecimal, over a model's weights and the settings that change its vectors.

    Args:
        encoder: the encoder's configuration.
        modules: class name and configuration of each module after the encoder, in order.
        weights: name → values, of the encoder and of all modules.
    """
    settings = [[str(encoder.get(name)) for name in _DECISIVE], modules]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, values in sorted(weights.items()):
        if _UNUSED not in name:
            digest.update(f"{name}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    return digest.hexdigest()
