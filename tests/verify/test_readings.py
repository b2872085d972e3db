"""A producer that reads a text otherwise than it stands in the file: the second reader tells, with both values."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from contract.engine import EngineSpec
from contract.job import Job
from producer.dataset import open_dataset
from producer.texts import DatasetSource
from tests.verify.jobs import finished_job
from verify.command import main

ROWS = [f"row {number}, in quotes" for number in range(12)]


@pytest.fixture
def misread(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A csv, and the file in the cache that the producer takes its rows from."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(workplace / "cache"))
    file = workplace / "rows.csv"
    file.write_text("text\n" + "".join(f'"{row}"\n' for row in ROWS))
    open_dataset(DatasetSource(str(file)))
    (cached,) = (workplace / "cache").rglob("*.arrow")
    return file, cached


def put(cached: Path, texts: list[str]) -> None:
    with pa.OSFile(str(cached), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": texts}))


def verified() -> tuple[int, str, set[str]]:
    told = CliRunner().invoke(main, [], env={"COLUMNS": "200"})
    (job,) = Path("output").iterdir()
    checks = json.loads((job / "verify.json").read_text())["checks"]
    return told.exit_code, told.output, {check["name"] for check in checks if not check["passed"]}


def job_of(file: Path, spec: EngineSpec) -> Job:
    return finished_job(spec, file, batch_rows=5)


def test_a_job_whose_texts_both_read_alike_passes(misread: tuple[Path, Path], tiny: EngineSpec) -> None:
    job_of(misread[0], tiny)
    status, output, failed = verified()
    assert (status, failed) == (0, set())
    assert "12 rows and 12 sampled texts, by Python's csv" in output


def test_a_text_that_was_read_otherwise_fails_the_job_and_both_values_are_shown(
    misread: tuple[Path, Path], tiny: EngineSpec
) -> None:
    put(misread[1], [*ROWS[:3], "another text", *ROWS[4:]])
    job_of(misread[0], tiny)
    status, output, failed = verified()
    assert (status, failed) == (1, {"source", "fp32 vectors", "lengths", "hashes"})
    assert "row 3, text: 'another text', by Python's csv 'row 3, in quotes'" in " ".join(output.split())
    assert "look at the rows named above" in output


@pytest.mark.parametrize("rows", [ROWS[:-1], [*ROWS, "one more"]])
def test_another_number_of_rows_fails_the_job(rows: list[str], misread: tuple[Path, Path], tiny: EngineSpec) -> None:
    put(misread[1], rows)
    job_of(misread[0], tiny)
    status, output, failed = verified()
    assert status == 1
    assert "source" in failed
    assert f"12 rows and {min(len(rows), 12)} sampled texts, by Python's csv; the job has {len(rows)} rows" in output
