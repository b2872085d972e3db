"""What follows a model's pooling: dense layers, normalization, the elements that are kept. PyTorch alone, so that a
worker needs no sentence-transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contract.errors import UserError


class Dense(nn.Module):
    """sentence-transformers' module of this name: a linear layer, its activation, and perhaps the input added again.

    Weights have its names. Arguments are those of its ``config.json``; others of that file name inputs and outputs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation_function: str = "torch.nn.modules.linear.Identity",
        use_residual: bool = False,
        **_: object,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = _activation(activation_function)
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.activation(self.linear(vectors))
        if not self.use_residual:
            return found
        return found + (self.residual(vectors) if hasattr(self, "residual") else vectors)


def _activation(name: str) -> nn.Module:
    """Such as ``torch.nn.modules.activation.Tanh``: a module of PyTorch's, made without arguments."""
    kind = getattr(nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.") else None
    if kind is None:
        raise UserError(
            f"the model has a Dense module with the activation {name}",
            "expected one of torch.nn's modules",
            "choose another model",
        )
    made: nn.Module = kind()
    return made


class LayerNorm(nn.Module):
    """sentence-transformers' module of this name."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.norm(vectors)
        return found


class Normalize(nn.Module):
    """Vectors of Euclidean norm 1."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, vectors: Tensor) -> Tensor:
        # As nn.functional.normalize, which would leave an exported graph without a fixed width of its output.
        return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


_KINDS: Mapping[str, type[nn.Module]] = {kind.__name__: kind for kind in (Dense, LayerNorm, Normalize)}

Step = tuple[str, Mapping[str, Any]]
"""A module's class name and configuration, as sentence-transformers has them."""


class Head(nn.Module):
    """From pooled vectors to those that come out: float32 ``[…, width]`` to ``[…, hidden]``.

    Args:
        steps: of the modules that follow the pooling. Their weights are random: load them with ``load_state_dict``.
        truncate_dim: elements that are kept after them; None for all.
        normalize: scale what is left to Euclidean norm 1.
    """

    def __init__(self, steps: Sequence[Step], truncate_dim: int | None, normalize: bool) -> None:
        super().__init__()
        self.described = {"steps": list(steps), "truncate_dim": truncate_dim, "normalize": normalize}
        """The arguments, for JSON."""
        self.steps = nn.ModuleList(_KINDS[name](**config) for name, config in steps)
        self.truncate_dim, self.normalize = truncate_dim, normalize
        self._scale = Normalize()

    def forward(self, vectors: Tensor) -> Tensor:
        for step in self.steps:
            vectors = step(vectors)
        if self.truncate_dim is not None:
            vectors = vectors[..., : self.truncate_dim]
        return self._scale(vectors) if self.normalize else vectors

    def width(self, width: int) -> int:
        """Elements of a vector that comes out for a pooled one of ``width``."""
        with torch.inference_mode():
            made: Tensor = self(torch.ones(1, width))
        return made.shape[-1]
