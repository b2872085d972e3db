"""Where embedmill's packages are, and how to start another Python process that finds the same ones."""

import importlib.util
import os
import sys
from pathlib import Path

from contract.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
"""The folder that has embedmill's packages: site-packages, or a clone."""

PACKAGES = ("contract", "embedmill", "engine_build", "producer", "verify", "worker")
"""Every top-level package that is installed."""


def check_packages() -> None:
    """Check that each top-level package is embedmill's. Their names are common words: a file ``worker.py`` in the
    current folder, or another project's package, may come first on Python's path.

    Raises:
        UserError: Python finds another module of one of these names.
    """
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        where = Path(found.origin).resolve() if found and found.origin else None
        if where != ROOT / name / "__init__.py":
            raise UserError(
                f"Python's module {name} is {where or 'nowhere'}",
                f"expected embedmill's, {ROOT / name}",
                "rename that file, or run embedmill in another folder, or in a virtual environment of its own",
            )


def python(*arguments: str) -> list[str]:
    """A Python command that does not look for modules in the folder that it runs in."""
    return [sys.executable, "-P", *arguments]


def python_path() -> dict[str, str]:
    """The environment variables with which such a command finds embedmill's packages; empty where embedmill is
    installed."""
    if not (ROOT / "pyproject.toml").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
