"""By which packages tests reach CUDA's driver."""

import sys

import pytest

from worker.runtime.gpus import CUDA_BINDINGS, PYCUDA, missing

PACKAGES = (PYCUDA, CUDA_BINDINGS)


def take(package: str, patch: pytest.MonkeyPatch) -> None:
    """Have this process take a package; the test is skipped where it is not installed."""
    if lacks := missing(package):
        pytest.skip(lacks)
    if package == CUDA_BINDINGS:
        patch.setitem(sys.modules, PYCUDA, None)  # it is not found then


def only(package: str) -> str:
    """The first lines of a program that is to take a package."""
    return "import sys\nsys.modules['pycuda'] = None\n" if package == CUDA_BINDINGS else ""
