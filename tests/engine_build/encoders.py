"""What several of these tests open."""

from pathlib import Path
from typing import Any

from engine_build.opened import open_folder
from engine_build.tiers import EXPORTED

FAMILY = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""BERT's, whose graph is known to be fused. The others' attention or activation is made of more nodes."""
OTHERS = tuple(one for one in EXPORTED if one not in FAMILY)


def encoder_of(folder: Path) -> Any:
    """The encoder of a model's folder, in FP32."""
    model: Any = open_folder(folder)
    return model[0].auto_model
