"""Leaves a module that a library imports at its start, and hardly ever calls, until it is called."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module of functions."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def call(*arguments: Any, **options: Any) -> Any:
            if sys.modules.get(self.__name__) is self:  # the block has not ended
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return call


@contextlib.contextmanager
def deferred(name: str) -> Iterator[None]:
    """In the ``with`` block, ``from NAME import function`` gives a function that imports the module when it is called.
    After the block the module is imported as usual.

    Args:
        name: the module's; one that is imported already stays as it is.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in = _Deferred(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
