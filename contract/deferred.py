"""Leaves a module that a library imports at its start, and hardly ever calls, until it is called."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """Stands for a module of functions."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # Python imports submodules of a module that has one, and asks _Submodules for them

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def call(*arguments: Any, **options: Any) -> Any:
            self.leave()
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return call

    def leave(self) -> None:
        """Make room for the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Submodules(MetaPathFinder, Loader):
    """Imports the module itself once a submodule is imported: there is more to it than functions then."""

    def __init__(self, stand_in: _Deferred) -> None:
        self._stand_in = stand_in

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = self._stand_in.__name__
        if not fullname.startswith(f"{name}.") or sys.modules.get(name) is not self._stand_in:
            return None
        self._stand_in.leave()
        importlib.import_module(fullname)
        self._module = sys.modules.pop(fullname)  # Python would execute again what it finds there
        self._spec = self._module.__spec__
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # it was executed when it was imported


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
    sys.meta_path.insert(0, submodules := _Submodules(stand_in))
    try:
        yield
    finally:
        if sys.meta_path:  # it is None where the process ends in the block
            sys.meta_path.remove(submodules)
            stand_in.leave()
