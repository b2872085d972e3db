"""What ``docs/using.md`` shows does what it says: its code runs, block after block, over a job of the real model."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from contract.engine import EngineSpec
from contract.job import Job
from contract.jobs import latest_job
from contract.settings import settings
from embedmill.command import main
from tests.conftest import JARGON
from tests.verify.jobs import finished_job

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(session_engines: Path, _minilm_built: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a job of the first entries of the Jargon File."""
    output = tmp_path_factory.mktemp("finished") / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        patch.setenv("EMBEDMILL_OUTPUT", str(output))
        settings.cache_clear()
        finished_job(_minilm_built, JARGON, batch_rows=25, limit=60)
    settings.cache_clear()
    return output


@pytest.fixture
def job(finished: Path, minilm: EngineSpec, workplace: Path) -> Job:
    """The job, as the page's first two commands would leave it."""
    (workplace / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(finished, workplace / "output")
    return latest_job()


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def executed(code: str) -> tuple[str, dict[str, Any]]:
    """What a page's Python code prints, and its names. In this process, which has imported PyTorch already."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "<page>", "exec"), names)
    return said.getvalue(), names


def test_the_code_runs_and_both_searches_find_the_same(job: Job, workplace: Path) -> None:
    code = blocks("using.md", "python")
    assert len(code) == 6
    told, names = executed("\n".join(code))
    near, matches = json.loads(json.dumps([names["near"], names["matches"]]))
    assert near[0][0] == 3
    assert near[0][2] == pytest.approx(1, abs=1e-5)
    assert [row_id for row_id, _, _ in near] == matches[0]
    terms = [json.loads(line)["term"] for line in JARGON.read_text(encoding="utf-8").splitlines()[: job.rows]]
    assert [term for _, term, _ in near] == [terms[row_id] for row_id, _, _ in near]
    kept = pq.read_table(workplace / "jargon-with-texts.parquet")
    assert kept["term"].to_pylist() == terms
    assert kept["embedding"].null_count == 0
    assert "'num_rows': 60" in told or "num_rows: 60" in told


def test_the_commands_run(job: Job) -> None:
    lines = [line for block in blocks("using.md", "sh") for line in block.splitlines()]
    searches = [shlex.split(line) for line in lines if line.startswith("embedmill search")]
    assert len(searches) == 2
    for _, *arguments in searches:
        told = CliRunner().invoke(main, arguments, prog_name="embedmill", catch_exceptions=False)
        assert told.exit_code == 0, told.output
        assert all(query in told.output for query in arguments if " " in query)


def test_the_query_for_errors_runs(job: Job) -> None:
    (code,) = blocks("resuming.md", "python")
    assert "row_id" in executed(code)[0]
