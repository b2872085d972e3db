"""What ``docs/first-job.md`` shows is what its commands print, with the real model, in an empty environment with the
wheel."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from contract.engine import EngineSpec
from tests.conftest import MINILM, keep_engine
from tests.left import processes_of
from tests.test_walkthrough import blocks
from tests.wheel import ROOT, build, install

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

STABLE = (
    *("reviews.csv:", "Batches of", "8 rows of", "vectors: 8 of 8", "verification: passed", "│", "Verified"),
    *("Search it", "Read it", "Look at it", "it makes", "delivery", "8 [0", "Checked", "Open it"),
)
"""How lines begin that are the same in each run."""


@pytest.fixture
def home(minilm: EngineSpec, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's file and the model, whose engine an earlier run has built."""
    built = minilm.folder
    for name in [name for name in os.environ if name.startswith("EMBEDMILL_")] + ["PYTHONPATH"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (file,) = blocks("first-job.md", "csv")
    (workplace / "reviews.csv").write_text(file, encoding="utf-8")
    shutil.copytree(MINILM, workplace / "all-MiniLM-L6-v2")
    keep_engine(built, "all-MiniLM-L6-v2", workplace / "cache")
    return workplace


def plain(text: str, home: Path) -> set[str]:
    """The lines without what differs from run to run: paths, the engine's name, speeds."""
    text = re.sub(r"all-MiniLM-L6-v2-[0-9a-f]{10}", "all-MiniLM-L6-v2-…", text.replace(str(home), "/home/me"))
    text = re.sub(r"\d+ (rows|tokens)/s", r"… \1/s", text)
    return {" ".join(line.split()) for line in text.splitlines()}


def told(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel, _ = build(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist"))
    return install(wheel, tmp_path_factory.mktemp("venv"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_print_what_it_shows(home: Path, programs: Path) -> None:
    lines = [line for block in blocks("first-job.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("embedmill ")]
    assert commands[0] == ["--version"]
    assert told([str(programs / "embedmill"), *commands[0]]) == f"embedmill {PROJECT['version']}\n"
    printed: set[str] = set()
    for words in commands[1:]:
        printed |= plain(told([str(programs / "embedmill"), *words]), home)
    (code,) = blocks("first-job.md", "python")
    printed |= plain(told([str(programs / "python"), "-c", code]), home)  # which goes on with the command's job
    assert len(list((home / "output").iterdir())) == 1
    shown = plain("\n".join(blocks("first-job.md", "text")), home)
    stable = {line for line in shown if line.startswith(STABLE)}
    assert len(stable) > 23
    assert not stable - printed
    assert not processes_of(home)
