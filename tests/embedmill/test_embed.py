"""``embedmill embed`` with real processes: a model's folder and a csv, and nothing that was started before."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

import embedmill
from contract.engine import EngineSpec
from contract.job import load_job
from contract.store import location
from contract.verdict import Verdict
from tests.conftest import JARGON, keep_engine
from tests.left import processes_of, wait_until
from tests.verify.jobs import plant, with_value

ROWS = 50

BATCHES = 300
"""Of a job that is interrupted once it has a shard or two: so many take seconds."""


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the user's cache is."""
    return tmp_path / "home"


@pytest.fixture
def environment(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A user's, with nothing of embedmill set. Whatever is started has ``tmp_path`` in its environment."""
    for name in [name for name in os.environ if name.startswith("EMBEDMILL_")]:
        monkeypatch.delenv(name)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    for name, value in {"XDG_CACHE_HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def model(session_engines: Path, _tiny_built: EngineSpec, tiny_model: Path, home: Path) -> Path:
    """A model's folder, whose engine an earlier run has built."""
    keep_engine(session_engines / "tiny", str(tiny_model), home)
    return tiny_model


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "reviews.csv", ROWS)


def write_csv(file: Path, rows: int) -> Path:
    entries = [json.loads(line) for line in JARGON.read_text(encoding="utf-8").splitlines()[:rows]]
    with file.open("w", newline="", encoding="utf-8") as output:
        writer = csv.writer(output)
        writer.writerow(["title", "body"])
        writer.writerows([entry["term"], entry["text"][:300]] for entry in entries)
    return file


def command(dataset: Path | str, model: Path, *options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "embedmill", "embed", str(dataset), "--model", str(model), *options]


def run(words: list[str], environment: dict[str, str]) -> Done:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
    return Done(done.returncode, done.stdout, done.stderr)


def folder_of(done: Done) -> Path:
    (named,) = re.findall(r"embedmill search --job (\S+)", done.out)
    return Path(named).absolute()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_csv_becomes_verified_vectors_and_the_same_command_goes_on_and_makes_again_what_is_at_fault(
    environment: dict[str, str], home: Path, reviews: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """In int8, and estimated before."""
    words = command(reviews, tiny_model, "--text", "{title}\n{body}", "--batch-rows", "20", "--dtype", "int8")
    estimated = told_by_a_dry_run(words, environment, tmp_path)
    first = run(words, environment)
    assert first.status == 0, first.err
    off = re.search(r"run estimated tokens (\S+) for (\S+) \(\+0\.0 %\), seconds (\S+) for \S+ \(\S+ %\)", first.err)
    assert off, first.err
    assert off[1] == off[2]  # every row was read
    assert (off[1], off[3]) == estimated
    assert not processes_of(tmp_path)
    assert not list((tmp_path / "temporary").glob("embedmill-*"))
    folder = folder_of(first)
    assert folder.parent == tmp_path / "output"
    assert Verdict.model_validate_json((folder / "verify.json").read_bytes()).passed
    assert "Verified: 50 rows accounted for" in first.out
    assert len(first.out.split("Verified: ")[1].splitlines()) == 4  # and three lines of what to do next
    table = pq.read_table(folder / "data")
    assert table["row_id"].to_pylist() == list(range(ROWS))
    assert table["embedding"].null_count == 0

    (engine,) = (home / "embedmill" / "engines").iterdir()
    one, other, whole = sorted((folder / "data").iterdir())
    good, made = (pq.read_table(one), pq.read_table(other)), whole.stat().st_mtime_ns
    one.write_bytes(one.read_bytes()[:-20])  # no shard any more
    plant(load_job(location(str(folder))), 1, with_value("n_tokens", 3, 1))
    found = run(words, environment)
    assert found.status == 1
    assert f"Set aside: {folder / 'aside' / one.name}.1" in found.err
    assert "Or run the same command again" in found.out
    again = run(words, environment)
    assert again.status == 0, again.err
    assert folder_of(again) == folder
    assert f"Set aside: {folder / 'aside' / other.name}.1" in again.err
    assert (pq.read_table(one), pq.read_table(other)) == good
    assert whole.stat().st_mtime_ns == made
    for done in (first, found, again):
        assert "importing PyTorch" not in done.err.split("verification")[0]
    assert list((home / "embedmill" / "engines").iterdir()) == [engine]


def told_by_a_dry_run(words: list[str], environment: dict[str, str], folder: Path) -> tuple[str, str]:
    """The tokens and the seconds that ``--dry-run`` estimates. It builds the engine, and starts nothing."""
    dry = run([*words, "--dry-run", "--dollars-per-hour", "3600"], environment)
    assert dry.status == 0, dry.err
    assert "engine: importing PyTorch" in dry.err
    assert not (folder / "output").exists()
    assert not processes_of(folder)
    shown = " ".join(re.sub("[│\n]", " ", dry.out).split())
    assert "rows 50, exact" in shown
    assert re.search(r"tokens/s [0-9,]+: measured now on [0-9,]+ rows of this dataset, onnxruntime", shown)
    tokens, seconds = (re.search(rf"{name} ([0-9,]+) \(", shown) for name in ("tokens", "seconds"))
    assert tokens
    assert seconds
    return tokens[1], seconds[1]


@pytest.fixture
def interrupted(
    environment: dict[str, str], model: Path, tmp_path: Path
) -> Iterator[tuple[list[str], "subprocess.Popen[bytes]"]]:
    """A job of many batches under way, in a session of its own, and its command."""
    many = write_csv(tmp_path / "many.csv", 2 * BATCHES)
    words = command(many, model, "--text-column", "body", "--batch-rows", "2", "--sample", "4")
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: list(tmp_path.glob("output/*/data/*.parquet")) or started.poll() is not None)
        assert started.poll() is None, (tmp_path / "log").read_text()
        yield words, started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_of_an_interrupted_run_is_left(
    number: signal.Signals, interrupted: tuple[list[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    _, started = interrupted
    ended_by(number, started, tmp_path)
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert re.fullmatch(r"Error: interrupted; \d+ of 300 shards there; no process is left; run .* to go on", last)
    assert not list((tmp_path / "temporary").glob("embedmill-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_where_the_command_was_still_importing_its_libraries(
    number: signal.Signals, environment: dict[str, str], reviews: Path, tiny_model: Path, tmp_path: Path
) -> None:
    words = command(reviews, tiny_model, "--text-column", "body")
    started = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: any("embedmill.child" in one for one in processes_of(tmp_path)))
    os.kill(started.pid, number)
    said = started.communicate(timeout=30)[1].decode()
    assert started.returncode in (128 + signal.SIGINT, 128 + number)
    assert said.splitlines()[-1].endswith(("Interrupted", "to go on")), said
    assert "Traceback" not in said
    wait_until(lambda: not processes_of(tmp_path), seconds=20)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_no_process_of_a_killed_run_is_left_and_it_goes_on(
    interrupted: tuple[list[str], "subprocess.Popen[bytes]"], environment: dict[str, str], tmp_path: Path
) -> None:
    words, started = interrupted
    ended_by(signal.SIGKILL, started, tmp_path)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("output/*/data/*.parquet")}
    done = run(words, environment)
    assert done.status == 0, done.err
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert len(list(folder_of(done).glob("data/*.parquet"))) == BATCHES


def ended_by(number: signal.Signals, started: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Signal a run under way. What it started is there before, and no process of it afterwards."""
    before = processes_of(folder)
    assert any("redis-server" in one for one in before), before
    assert sum("-m embedmill.worker" in one for one in before) > 1, before  # the worker and its child
    os.killpg(started.pid, number) if number == signal.SIGINT else os.kill(started.pid, number)
    assert started.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not processes_of(folder), seconds=20)


@pytest.mark.parametrize(
    ("dataset", "options", "expected"),
    [
        ("nowhere.csv", (), "Error: no dataset nowhere.csv; expected a Hub id, a file or a folder; look: ls ."),
        ("reviews.csv", ("--text-column", "boddy"), "Error: no text-column 'boddy' in .*; there: title, body; .*"),
        ("reviews.csv", ("--text", "{title", "--limit", "3"), "Error: --text .* is no template: .*"),
    ],
)
def test_what_is_wrong_is_one_line_before_an_engine_is_built(
    dataset: str,
    options: tuple[str, ...],
    expected: str,
    environment: dict[str, str],
    home: Path,
    reviews: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    done = run(command(dataset, tiny_model, *options), environment)
    assert done.status == 1
    assert re.fullmatch(expected, done.err.splitlines()[-1]), done.err
    assert not done.out
    assert not list(home.glob("embedmill/engines/*"))
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_worker_that_cannot_compute_ends_the_run(
    dtype: str, environment: dict[str, str], reviews: Path, model: Path, tmp_path: Path
) -> None:
    """There will be no other one, for the job or for the rows that give the ranges of int8."""
    options = ("--text-column", "body", "--limit", "3", "--dtype", dtype)
    done = run(command(reviews, model, *options), environment | {"EMBEDMILL_RUNTIME": "tensorrt"})
    assert done.status == 1
    assert "EMBEDMILL_RUNTIME is tensorrt" in done.err.splitlines()[-1]
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("options", [("--limit", "0"), ("--no-such-option",), ("--dollars-per-hour", "1")])
def test_a_wrong_command_line_leaves_nothing(
    options: tuple[str, ...], environment: dict[str, str], reviews: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """PyTorch is being imported by then."""
    done = run(command(reviews, tiny_model, *options), environment)
    assert done.status in (1, 2)
    assert done.err.splitlines()[-1].startswith("Error: ")
    assert not processes_of(tmp_path)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_model_that_is_none_is_one_line(environment: dict[str, str], reviews: Path, tmp_path: Path) -> None:
    empty = tmp_path / "no-model"
    empty.mkdir()
    done = run(command(reviews, empty, "--text-column", "body"), environment)
    assert done.status == 1
    assert "is no model folder" in done.err.splitlines()[-1]
    assert "importing PyTorch" not in done.err
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_from_python_in_a_thread_with_engines_in_a_folder_that_is_named_from_here(
    environment: dict[str, str],
    reviews: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker runs in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDMILL_ENGINES", "engines")  # where no engine is yet
    found: list[embedmill.Embedded] = []
    asked: dict[str, Any] = dict(text="{title}\n{body}", keep_columns=["title"], limit=20)
    thread = threading.Thread(target=lambda: found.append(embedmill.embed(reviews, model=tiny_model, **asked)))
    thread.start()
    thread.join()
    (job,) = found
    assert job.verdict.passed
    table = job.vectors()
    assert table.column_names == ["row_id", "embedding", "n_tokens", "truncated", "error", "text_hash", "title"]
    assert table["row_id"].to_pylist() == list(range(20))
    assert table["title"].to_pylist() == [row["title"] for row in csv.DictReader(reviews.open(newline=""))][:20]
    assert job.reader().read_all().equals(table)
    assert ", verified, in " in repr(job)
    said = capfd.readouterr().err
    assert "engine: importing PyTorch" in said
    assert "vectors: " in said
    assert not processes_of(tmp_path / "temporary")
    (engine,) = (tmp_path / "engines").iterdir()
    assert (engine / "model.onnx").stat().st_mode & 0o777 == (engine / "engine.json").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dataset": "nowhere.csv"}, "no dataset nowhere.csv"),
        ({"txt_column": "body"}, "No such option: --txt-column|No such option '--txt-column'"),
        ({"limit": 0}, "Invalid value for '--limit'"),
    ],
)
def test_an_error_in_python_is_the_commands_line(
    options: dict[str, Any], line: str, environment: dict[str, str], reviews: Path, tiny_model: Path
) -> None:
    with pytest.raises(embedmill.UserError, match=line):
        embedmill.embed(str(options.pop("dataset", reviews)), model=tiny_model, progress=False, **options)


def test_a_dry_run_from_python(environment: dict[str, str], reviews: Path, model: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = dict(text="{title}\n{body}", dollars_per_hour=3600, output=str(tmp_path / "output"))
    found = embedmill.embed(reviews, model=model, progress=False, dry_run=True, **asked)
    assert (found.survey.rows, found.survey.tokens.error) == (ROWS, 0.0)
    assert found.dollars == pytest.approx(found.seconds)
    assert not (tmp_path / "output").exists()
    assert not processes_of(tmp_path)
