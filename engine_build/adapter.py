"""A LoRA adapter is merged into the model: what is exported, packed or saved has the weights of both."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from contract.compare import TOLERANCES, compare
from contract.errors import UserError
from engine_build.model import Parts
from engine_build.source import adapter_of

_TEXTS = ("a", "The miller's stone turns slowly, and the flour falls through the sieve.", "日本語 and numbers 3.14")


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that cannot be merged here.

    Raises:
        UserError: peft, which does that, is not installed.
    """
    if adapter_of(folder) and not importlib.util.find_spec("peft"):
        raise UserError(
            f"{folder} is an adapter of {adapter_of(folder)['base_model_name_or_path']}, and there is no peft",
            "peft merges the two",
            "install it: pip install 'embedmill[peft]'",
        )


def check_layers(encoder: Any) -> None:
    """Refuse an adapter that has more than layers whose weights can be added to the model's.

    Raises:
        UserError: it has a part of another kind.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # here: most models need no peft
    from peft.utils.other import AuxiliaryTrainingWrapper

    parts = list(encoder.modules())
    others = {type(part).__name__ for part in parts if isinstance(part, AuxiliaryTrainingWrapper)}
    if others or not any(isinstance(part, BaseTunerLayer) for part in parts):
        raise UserError(
            f"the model's adapter has {', '.join(sorted(others)) or 'no layer'}", "expected LoRA layers alone"
        )


def merge_adapter(parts: Parts) -> None:
    """Merge the adapter's weights into the encoder's, in place.

    Raises:
        UserError: the merged model gives other vectors.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # here: as above

    encoder: Any = parts.encoder
    before = np.concatenate(parts.encode(_TEXTS))
    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            encoder.set_submodule(name, module.get_base_layer())
    # save_pretrained() would write the adapter alone.
    encoder._hf_peft_config_loaded = False
    del encoder.peft_config
    comparison = compare(np.concatenate(parts.encode(_TEXTS)), before)
    if not comparison.within(TOLERANCES["fp32"]):
        raise UserError(f"the model gives other vectors once its adapter is merged: {comparison}")
