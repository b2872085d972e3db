"""Faults planted in one row of 2,500: the default run finds each, whichever rows its sample has."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from contract.engine import EngineSpec
from contract.job import Job
from tests.verify.jobs import finished_job, plant, save_texts, scaled, with_column, with_element, with_value
from verify.command import main

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS, BATCH_ROWS = 2500, 256


def exchanged(table: pa.Table) -> pa.Table:
    order = np.arange(len(table))
    order[[40, 41]] = [41, 40]
    return with_column(table, "embedding", table["embedding"].combine_chunks().take(order))


def nudged(table: pa.Table) -> pa.Table:
    value = table["embedding"][40].as_py()[7]
    return with_element(40, 7, value + 0.01)(table)


def lengths_shifted(table: pa.Table) -> pa.Table:
    """+1 and -1, so that the sums stay what the footer says."""
    tokens = table["n_tokens"].to_pylist()
    return with_value("n_tokens", 41, tokens[41] - 1)(with_value("n_tokens", 40, tokens[40] + 1)(table))


PLANTED: dict[str, tuple[Callable[[pa.Table], pa.Table], set[str]]] = {
    "two vectors exchanged": (exchanged, {"digests"}),
    "one float changed by 0.01": (nudged, {"digests"}),
    "one vector all zeros": (scaled(40, 0.0), {"digests", "norms"}),
    "one vector doubled": (scaled(40, 2.0), {"digests"}),
    "two n_tokens changed by +1 and -1": (lengths_shifted, {"digests"}),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = np.random.default_rng(5)
    words = ["mill", "corn", "flour", "sieve", "stone", "wheel", "water", "sack"]
    texts = [" ".join(chance.choice(words, chance.integers(3, 12))) for _ in range(ROWS)]
    return save_texts(tmp_path_factory.mktemp("planted") / "texts", list(texts))


@pytest.fixture
def job(tiny: EngineSpec, texts: Path) -> Job:
    return finished_job(tiny, texts, batch_rows=BATCH_ROWS)


def failed(job: Job) -> set[str]:
    checks = json.loads((job.folder / "verify.json").read_text())["checks"]
    return {check["name"] for check in checks if not check["passed"]}


def test_each_planted_fault_is_caught_by_the_default_run(job: Job) -> None:
    assert CliRunner().invoke(main, []).exit_code == 0
    whole = job.shard(4).read_bytes()
    for number, (name, (change, due)) in enumerate(PLANTED.items()):
        plant(job, 4, change)
        result = CliRunner().invoke(main, ["--seed", str(number)])  # the default size, another sample each time
        assert result.exit_code == 1, name
        assert due <= failed(job), name
        assert json.loads((job.folder / "verify.json").read_text())["at_fault"] == [job.shard(4).name], name
        job.shard(4).write_bytes(whole)


def test_all_rows_may_be_computed_again(job: Job) -> None:
    assert CliRunner().invoke(main, ["--sample", "all"]).exit_code == 0
    told = json.loads((job.folder / "verify.json").read_text())
    assert (told["compared"], told["sample"]) == (ROWS, ROWS)
