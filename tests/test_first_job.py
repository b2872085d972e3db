"""What ``docs/first-job.md`` shows is what its commands print, with the real model."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract.engine import EngineSpec
from tests.conftest import MINILM, keep_engine
from tests.test_walkthrough import blocks

STABLE = (
    *("reviews.csv:", "Batches of", "8 rows of", "vectors: 8 of 8", "verification: passed", "│", "Verified"),
    *("Search it", "Read it", "Look at it", "it makes", "delivery", "8 [0", "Checked", "Open it"),
)
"""How lines begin that are the same in each run."""


@pytest.fixture
def home(minilm: EngineSpec, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's file and the model, whose engine an earlier run has built."""
    built = minilm.folder
    for name in [name for name in os.environ if name.startswith("EMBEDMILL_")]:
        monkeypatch.delenv(name)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_commands_print_what_it_shows(home: Path) -> None:
    lines = [line for block in blocks("first-job.md", "sh") for line in block.splitlines()]
    printed: set[str] = set()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("embedmill ")]
    for words in [*commands, commands[1]]:  # the second one again: it goes on
        printed |= plain(told([sys.executable, "-m", "embedmill", *words]), home)
    (code,) = blocks("first-job.md", "python")
    printed |= plain(told([sys.executable, "-c", code]), home)
    shown = plain("\n".join(blocks("first-job.md", "text")), home)
    stable = {line for line in shown if line.startswith(STABLE)}
    assert len(stable) > 23
    assert not stable - printed
