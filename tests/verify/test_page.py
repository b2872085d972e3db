"""``report.html``: of good jobs and of harmed ones, as text and in a browser."""

import re
import shutil
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest
from click.testing import CliRunner

import verify.page
from contract.engine import EngineSpec
from contract.job import Job
from tests.browser import CHROMIUM, look
from tests.conftest import build_engine
from tests.verify.jobs import TEXTS, finished_job, rewrite, save_texts, with_column, with_element
from verify.command import main

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)>"'}}{{ 7 * 7 }}</td></table><style>*{display:none}"""

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


def report_of(job: Job, status: int = 0) -> str:
    """The page that the command writes."""
    result = CliRunner().invoke(main, [str(job.folder)])
    assert result.exit_code == status, result.output
    file = job.folder / "report.html"
    assert f"Report: {file}\n" in result.stdout
    assert not list(job.folder.glob(".report*"))
    return file.read_text(encoding="utf-8")


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<body>") :]).split())


def test_a_good_jobs_page_has_the_verdict_the_pictures_and_where_it_all_came_from(job: Job, tiny: EngineSpec) -> None:
    page = report_of(job)
    text = plain(page)
    assert "<title>Verified: " in page
    assert "48 rows accounted for (2 truncated, 2 without a text), 46 recomputed" in text
    assert page.count("<svg ") == 4
    assert "FAIL" not in text
    assert "46 rows with a text" in text
    assert "Truncated: 2 rows (4.3 %)" in text
    assert "from when each shard was computed (3 shards)" in text
    assert TEXTS[44] is not None
    for fact in (
        job.id,
        job.revision,
        job.fingerprint,
        tiny.model,
        "(exported to ONNX, fp32)",
        "embedmill 0.1.0",
        "torch 2.",
    ):
        assert fact in text
    assert len(page) < 2_000_000


def test_a_harmed_jobs_page_says_what_is_wrong_and_how_to_mend_it(job: Job) -> None:
    rewrite(job, 1, with_element(4, 7, 0.5))
    rewrite(job, 0, with_element(3, 7, float("nan")))
    job.shard(2).unlink()
    page = report_of(job, status=1)
    text = plain(page)
    assert "<title>Not verified: " in page
    assert "Not verified (shards, rows, finite, fp32 vectors)" in text
    assert "At fault: train-00000-of-00003.parquet, train-00001-of-00003.parquet" in text
    assert "missing: 1 (train-00002-of-00003.parquet)" in text
    assert "✗ NaN or infinity in 1 of 1 vector" in text
    assert "Not drawn, having no error that is a number: 1 row." in text
    worst = text[text.index("The worst of the sampled rows") :]
    assert worst.index("✗ NaN") < worst.index("✗ cosine")
    assert page.count("<svg ") == 4


def test_a_job_without_a_shard_has_a_page_too(job: Job) -> None:
    shutil.rmtree(str(job.data))
    page = report_of(job, status=1)
    assert "0 of 48" in page
    assert "<svg " not in page


def test_a_job_whose_dataset_is_gone_has_a_page_if_its_shards_give_a_verdict(job: Job, dataset: Path) -> None:
    shutil.rmtree(dataset)
    job.shard(2).unlink()
    page = report_of(job, status=1)
    assert "There are no pictures" in page
    assert f"no dataset {dataset}" in page


def test_lengths_and_footers_out_of_range_are_drawn_or_left_out(job: Job) -> None:
    rewrite(job, 0, lambda table: with_column(table, "n_tokens", table["n_tokens"].combine_chunks().fill_null(-5)))
    rewrite(job, 1, lambda table: table, seconds=9e8, finished="9999-12-31T23:59:59Z")
    rewrite(job, 2, lambda table: table, seconds=0)
    assert report_of(job).count("<svg ") == 4


def test_a_checkout_that_is_not_installed_gives_a_page_too(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = verify.page.LIBRARIES
    monkeypatch.setattr(verify.page, "LIBRARIES", ("embedmill-as-if-not-installed", *libraries[1:]))
    page = plain(report_of(job))
    assert "verified by torch" in page
    assert "embedmill-as-if" not in page


def test_token_vectors_have_a_page(tiny_model: Path, dataset: Path) -> None:
    job = finished_job(build_engine(tiny_model, "tokens", "tokens"), dataset)
    page = report_of(job)
    assert page.count("<svg ") == 4
    assert "pooling tokens" in page


@pytest.fixture
def hostile(tiny: EngineSpec, workplace: Path) -> Job:
    """A dozen rows, so that each of them is among the worst twenty."""
    return finished_job(tiny, save_texts(workplace / "<i>hostile", [HOSTILE, "\0\x1b[31m\u202e", *TEXTS[:10]]))


def test_a_rows_text_is_text(hostile: Job) -> None:
    page = report_of(hostile)
    assert "<script" not in page
    assert "<img" not in page
    assert "<i>hostile" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"[\0\x1b\u202e]", page)


def test_the_page_refers_to_nothing_outside_itself(job: Job) -> None:
    page = report_of(job)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"|@import|url\((?!#)', page)
    assert "default-src 'none'" in page


def page_of(job: Job) -> Path:
    return Path(str(job.folder), "report.html")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_chromium_shows_the_page_without_a_complaint(
    job: Job, tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    rewrite(job, 1, with_element(4, 7, 0.5))
    report_of(job, status=1)
    picture = tmp_path / "page.png"
    seen = look(page_of(job), width=width, scheme=scheme, screenshot=picture)
    assert seen.complaints == []
    assert seen.requests == [page_of(job).as_uri()]
    assert seen.width == width, "it scrolls sideways"
    assert "Not verified" in seen.text
    assert picture.stat().st_size > 50_000


@needs_chromium
def test_chromium_runs_nothing_of_a_hostile_row(hostile: Job) -> None:
    report_of(hostile)
    page = page_of(hostile)
    page.write_text(page.read_text(encoding="utf-8").replace("<details", "<details open"), encoding="utf-8")
    seen = look(page)
    assert (seen.complaints, len(seen.requests)) == ([], 1)
    assert "<script>alert(1)</script>" in seen.text


def test_the_folder_keeps_the_old_page_where_the_new_one_cannot_be_written(job: Job) -> None:
    (job.folder / "report.html").mkdir()
    result = CliRunner().invoke(main, [str(job.folder)])
    assert result.exit_code == 1
    assert f"{job.folder / 'report.html'} cannot be written" in result.stderr
    assert not list(job.folder.glob(".report*"))


@pytest.mark.parametrize("harm", ["none", "a value that is not finite", "another width", "no shard"])
def test_one_row_is_said_in_the_singular(harm: str, tiny: EngineSpec, workplace: Path) -> None:
    job = finished_job(tiny, save_texts(workplace / "one", ["A single row."]), columns=("text",))
    if harm == "a value that is not finite":
        rewrite(job, 0, with_element(0, 7, float("nan")))
    elif harm == "another width":
        narrow = pa.list_(pa.float32(), 1)
        rewrite(job, 0, lambda table: table.set_column(1, "embedding", pa.array([[0.5]], narrow)))
    elif harm == "no shard":
        job.shard(0).unlink()
    told = CliRunner().invoke(main, [], env={"COLUMNS": "200"})
    assert told.exit_code == (harm != "none"), told.output
    for name in ("report.html", "verify.json"):
        said = told.output + (job.folder / name).read_text(encoding="utf-8")
        # Not the 80.1 rows/s of the throughput.
        wrong = r"(?<![.\d])1 (?:sampled )?(?:rows|batches|shards|texts|vectors|files|values|elements|tokens)\b(?!/s)"
        assert not re.findall(wrong, said)
