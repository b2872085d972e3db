"""The wheel and the sdist hold what they need, and an empty environment with the wheel runs the command."""

import csv
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

from contract.engine import EngineSpec
from embedmill.environment import PACKAGES
from tests.conftest import MINILM, keep_engine
from tests.left import processes_of

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist, made of a copy of the tree: a build leaves files there."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    code = "from setuptools.build_meta import *; import sys; out = sys.argv[1]; build_wheel(out); build_sdist(out)"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def needed() -> set[str]:
    """Every file of the packages."""
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()]
    return {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == needed()
    assert "verify/report.html" in names
    assert {f"{name}/py.typed" for name in PACKAGES} <= names


def test_the_wheels_metadata(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        parts = {name.rpartition("/")[2]: wheel.read(name).decode() for name in wheel.namelist() if "dist-info" in name}
    metadata = email.message_from_string(parts["METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("embedmill", PROJECT["version"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "embedmill = embedmill.__main__:main" in parts["entry_points.txt"]
    assert "LICENSE" in parts
    assert set(parts["top_level.txt"].split()) == set(PACKAGES)


def test_the_sdist_can_be_built_from(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert needed() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_no_extra_names_the_project() -> None:
    """With embedmill[...] in an extra, pip on a Python that is too old searched for 36 minutes."""
    every = [one for extra in PROJECT["optional-dependencies"].values() for one in extra]
    assert not [one for one in (*every, *PROJECT["dependencies"]) if re.match(r"embedmill\b", one)]


@pytest.mark.parametrize(
    ("extra", "held"),
    [
        ("build", "producer"),
        ("build", "cpu"),
        ("local", "build"),
        ("gpu", "cpu"),
        ("torch", "cpu"),
        ("modules", "torch"),
        ("rtx", "cpu"),
        ("demo", "local"),
        ("demo", "minilm"),
        ("dev", "demo"),
        ("dev", "rtx"),
    ],
)
def test_an_extra_holds_what_another_one_has(extra: str, held: str) -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras[held]) <= set(extras[extra])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_command_embeds_a_csv(
    built: dict[str, Path], minilm: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(built["wheel"])], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{Path(numpy.__file__).parent.parent}\n")  # what it needs, but no embedmill
    keep_engine(minilm.folder, str(MINILM), tmp_path / "cache")

    for name in [name for name in os.environ if name.startswith("EMBEDMILL_")] + ["PYTHONPATH"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = str(home / "bin" / "embedmill")
    told = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"embedmill {PROJECT['version']}\n"
    with open("reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([["body"], ["It broke on the first day."], ["The best kettle I have had."]])
    done = subprocess.run([command, "embed", "reviews.csv", "--model", str(MINILM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Verified: 2 rows accounted for" in done.stdout
    found = subprocess.run([command, "search", "kitchen appliance"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert re.search(r"│ 1 │.*The best kettle", found.stdout)
    assert not processes_of(tmp_path)
