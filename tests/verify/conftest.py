from pathlib import Path

import pytest

from contract.engine import EngineSpec
from contract.job import Job
from tests.verify.jobs import TEXTS, finished_job, save_texts


@pytest.fixture
def dataset(workplace: Path) -> Path:
    return save_texts(workplace / "texts", TEXTS)


@pytest.fixture
def job(tiny: EngineSpec, dataset: Path) -> Job:
    """48 rows in three shards, as they should be."""
    return finished_job(tiny, dataset)
