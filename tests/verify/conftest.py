from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.engine import EngineSpec
from contract.job import Job
from tests.verify.jobs import TEXTS, finished_job, save_texts
from verify import pictures


@pytest.fixture
def dataset(workplace: Path) -> Path:
    return save_texts(workplace / "texts", TEXTS)


@pytest.fixture
def job(tiny: EngineSpec, dataset: Path) -> Job:
    """48 rows in three shards, as they should be."""
    return finished_job(tiny, dataset)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report's pictures are plotted, but not drawn as SVG: that is a third of the command's CPU time, and what it
    draws is seen by test_pictures and test_page."""

    def plotted(name: str, draw: Callable[[Any], None]) -> str:
        draw(pictures.Figure().add_subplot())
        return f"<svg>{name}</svg>"

    monkeypatch.setattr(pictures, "svg", plotted)
