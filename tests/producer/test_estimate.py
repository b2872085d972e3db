"""``--dry-run`` of the producer: no Redis, no folder, and figures that hold."""

import csv
import re
from pathlib import Path

import pytest

from contract.engine import EngineSpec
from producer.estimate import Measured, Plan, estimate, how_far_off, kept_estimate
from producer.pace import START, Pace
from producer.survey import survey
from tests.commands import called
from tests.producer.test_survey import work_of

TEXTS: list[str | None] = ["good " * (1 + row % 50) + " " * (row // 50) for row in range(500)]
"""No two are the same."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    file = tmp_path / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as output:
        csv.writer(output).writerows([["text"], *([text] for text in TEXTS)])
    return file


def test_nothing_is_started(tiny: EngineSpec, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", "redis://127.0.0.1:1/0")  # nothing listens there
    told = called("producer", "--dataset", reviews, "--output", tmp_path / "out", "--dry-run")
    assert "500, exact" in told.stdout
    assert "not known: no run was measured here" in " ".join(re.sub("[│\n]", " ", told.stdout).split())
    assert told.stdout.splitlines()[-1].startswith("Nothing was started.")
    assert not (tmp_path / "out").exists()


def test_the_price_is_for_a_dry_run_alone(tiny: EngineSpec, reviews: Path) -> None:
    told = called("producer", "--dataset", reviews, "--dollars-per-hour", "1", expect=1)
    assert told.stderr == "Error: --dollars-per-hour is for an estimate; add --dry-run\n"


def test_seconds_and_cost_are_those_of_the_last_run(tiny: EngineSpec, reviews: Path, tmp_path: Path) -> None:
    Pace.now(tokens_per_second=10.0, start=2.0, verification=3.0).save(tiny.fingerprint)
    told = called("producer", "--dataset", reviews, "--output", tmp_path, "--dry-run", "--dollars-per-hour", "36")
    tokens = sum(2 + 1 + row % 50 for row in range(500))
    shown = " ".join(re.sub("[│\n]", " ", told.stdout).split())
    assert f"{tokens:,} (every row was read)" in shown
    assert f"seconds {2 + tokens / 10:,.0f} (start 2, vectors {tokens / 10:,.0f})" in shown
    assert f"cost ${(2 + tokens / 10) / 100:,.4f} at $36.00 an hour" in shown


def test_what_is_there_is_not_computed_again(tiny: EngineSpec, tmp_path: Path) -> None:
    work = work_of(tiny, tmp_path, TEXTS)
    found, plan = survey(work), Plan(measured=Measured(100.0, "told"))
    whole = estimate(work, tiny, found, plan, sample=0, calibrates=False)
    assert (whole.batches, whole.there, whole.start) == (8, 0, START)
    assert whole.vectors == pytest.approx(found.tokens.value / 100)
    work.job.data.make_folder()
    for batch in (0, 3):
        work.job.shard(batch).put(b"")
    rest = estimate(work, tiny, found, plan, sample=0, calibrates=False)
    assert rest.there == 2
    assert rest.vectors == pytest.approx(found.tokens.value / 100 * 6 / 8)
    twice = estimate(work, tiny, found, plan, sample=0, calibrates=True)
    assert twice.vectors == pytest.approx((6 / 8 + 1) * found.tokens.value / 100)


def test_bytes_in_redis_are_those_of_all_batches(tiny: EngineSpec, tmp_path: Path) -> None:
    work = work_of(tiny, tmp_path, TEXTS)
    found = estimate(work, tiny, survey(work), Plan(), sample=0, calibrates=False)
    real = sum(len(work.payload(batch)) for batch in range(work.job.batches))
    assert found.redis_bytes == pytest.approx(real, rel=0.1)
    assert found.output_bytes == pytest.approx(500 * (32 * 4 + 20))


def test_an_estimate_is_found_again_by_its_job(tiny: EngineSpec, tmp_path: Path) -> None:
    work = work_of(tiny, tmp_path, TEXTS, dtype="int8", ranges=((-1.0,) * 32, (1.0,) * 32))
    made = estimate(work, tiny, survey(work), Plan(measured=Measured(10.0, "told")), sample=0, calibrates=True)
    made.keep(work.job)
    same = work_of(tiny, tmp_path, TEXTS, dtype="int8", ranges=((-0.5,) * 32, (0.5,) * 32)).job
    assert same.id != work.job.id
    assert kept_estimate(same) == made
    assert kept_estimate(work_of(tiny, tmp_path, TEXTS, limit=3).job) is None
    tokens = round(made.survey.tokens.value)
    line = how_far_off(made, tokens, 30.0, 20.0)
    assert line == f"The dry run estimated tokens {tokens:,} for {tokens:,} (+0.0 %), seconds 30 for 20 (+50.0 %)"
    assert "seconds" not in how_far_off(made, tokens)
