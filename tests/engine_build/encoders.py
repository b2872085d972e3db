"""What several of these tests open."""

from pathlib import Path
from typing import Any

from engine_build.opened import open_folder


def encoder_of(folder: Path) -> Any:
    """The encoder of a model's folder, in FP32."""
    model: Any = open_folder(folder)
    return model[0].auto_model
