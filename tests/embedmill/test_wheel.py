"""The wheel and the sdist hold what they need. That the installed wheel runs, tests/test_first_job.py shows."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from embedmill.environment import PACKAGES
from tests.wheel import ROOT, build

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wheel, sdist = build(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist"))
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


def test_an_installed_package_has_the_reports_template(built: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(installed := tmp_path / "installed")
    code = "import verify, verify.page as p; print(verify.__file__); p.template('report.html')"
    env = os.environ | {"PYTHONPATH": str(installed)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(installed))


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
