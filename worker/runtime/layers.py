"""The layers of an encoder, which ``torch.compile`` compiles one by one: all of one kind share what was compiled."""

from collections.abc import Callable
from typing import Any

from torch import nn


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """An encoder's layers, in order; itself where it has no list of them."""
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    return max((list(one) for one in lists), key=len, default=[encoder])


def compile_layers(encoder: nn.Module, backend: Callable[..., Any], *, dynamic: bool) -> None:
    """Have ``torch.compile`` compile each layer once it is computed.

    Args:
        encoder: the layers' module.
        backend: of ``torch.compile``.
        dynamic: whether what is compiled serves rows of any number and length. Else it is for the shape that it was
            compiled for.
    """
    for layer in layers_of(encoder):
        layer.compile(dynamic=dynamic, backend=backend)


def leave_uncompiled(encoder: nn.Module) -> None:
    """Undo ``compile_layers``."""
    for layer in layers_of(encoder):
        layer._compiled_call_impl = None
