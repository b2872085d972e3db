"""embedmill as a user gets it: its wheel, in an environment that has nothing else of it."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy

from embedmill.environment import PACKAGES

ROOT = Path(__file__).resolve().parents[1]


def build(tree: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist.

    Args:
        tree: an empty folder for a copy of the repository's tree: a build leaves files there.
        out: where the two are put.
    """
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    code = "from setuptools.build_meta import *; import sys; out = sys.argv[1]; build_wheel(out); build_sdist(out)"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def install(wheel: Path, home: Path) -> Path:
    """The folder of the programs of a new environment, in ``home``, with the wheel and all that it needs."""
    venv.create(home, with_pip=False)
    programs = home / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{Path(numpy.__file__).parent.parent}\n")  # what it needs, but no embedmill
    return programs
