"""What an engine directory keeps for one kind of GPU besides TensorRT plans: what PyTorch compiled, and how fast each
runtime was."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

AttentionKernel = Literal["flash_attention_3", "flash_attention_4"]
"""What may compute attention in place of PyTorch's own, as transformers names it."""


class CompiledSpec(BaseModel):
    """PyTorch's compiled graphs of the engine. They serve one version of PyTorch and one compute capability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Relative to the engine's folder; ``worker.runtime.compiled`` writes and reads it."""
    sha256: str
    """Of the file. It holds code: only a file whose hash is recorded is loaded."""
    torch: str
    """PyTorch's version, such as ``2.11.0+cu130``."""
    sm: int
    """The GPU's compute capability, 90 for 9.0."""
    gpu: str
    """The GPU that it was compiled on."""
    attention_kernels: dict[str, AttentionKernel]
    """Of the profiles whose attention another kernel than PyTorch's own computes, as it was measured to be faster:
    which one, such as ``{"132x33792": "flash_attention_3"}``."""
    attention: str
    """What was measured of them, or why nothing was, for people."""
    seconds: float
    """That compiling took."""
    created: str
    """UTC, ISO 8601."""


class Measurement(BaseModel):
    """How fast one runtime computed the engine on one kind of GPU, and how exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: str
    """As the driver names it, such as ``NVIDIA H100 80GB HBM3``."""
    runtime: str
    """As ``EMBEDMILL_RUNTIME`` names it."""
    version: str
    """Such as ``torch 2.11.0+cu130``."""
    tokens_per_second: dict[str, float]
    """Of ``short``, ``mixed`` and ``long`` rows; padding is not counted."""
    min_cosine: float
    """The lowest between a vector and the one that ONNX Runtime computes in FP32."""
    within_tolerance: bool
    """Whether the vectors were as close to those of FP32 as the runtime's precision allows."""
    created: str
    """UTC, ISO 8601."""
