"""What a build says of an engine whose rows may be long: where its attention takes memory by the square of a row."""

from contract.words import count
from engine_build.prepare import Prepared
from engine_build.tiers import Made
from worker.runtime.interface import LONG_ROW


def long_rows_line(model: Prepared, made: Made) -> str:
    """On one line; empty where no row is long, or memory grows with its length alone."""
    if model.max_length <= LONG_ROW:
        return ""
    square = f"memory by the square of a row's length, here of up to {count(model.max_length, 'token')}"
    if made.fields["onnx_sha256"]:
        others = made.fields["torch_sha256"] or made.fields["modules_sha256"]
        instead = "On a CPU PyTorch computes this engine where it is installed: " if others else ""
        return f"{instead}ONNX Runtime's attention takes {square}."
    # A static model has no attention; T5's and DeBERTa's have a bias for each two tokens of a row.
    own = made.fields["modules_sha256"] and model.parts.encoder is not None
    return f"This model's own attention may take {square}." if own else ""
