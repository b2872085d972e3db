"""The decisions of ``embedmill`` that need no process."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import embedmill
from contract.redis.heartbeat import Heartbeat
from contract.store import location
from embedmill.api import flags_of
from embedmill.child import is_cancelled
from embedmill.clock import Clock
from embedmill.command import PARTS, main
from embedmill.display import Lines, Live, Notebook, Pace
from embedmill.early import is_run
from embedmill.embed_command import main as embed
from embedmill.engines import EngineRequest
from embedmill.environment import PACKAGES
from embedmill.events import STEPS, Event
from producer.pace import START, last_pace
from producer.progress import Progress, ShardTotals
from producer.view import View
from tests.contract.samples import a_job

ROOT = Path(embedmill.__file__).parent.parent


def test_another_model_revision_or_option_is_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    folder = str(tmp_path / "model")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    requests = [
        EngineRequest("org/model"),
        EngineRequest("other/model"),
        EngineRequest("org/model", revision="v2"),
        EngineRequest("org/model", pooling="cls"),
        EngineRequest("org/model", normalize=True),
        EngineRequest("org/model", normalize=False),
        EngineRequest("org/model", max_length=128),
        EngineRequest("org/model", max_length="model"),
        EngineRequest("org/model", gpu=True),
        EngineRequest(folder),
    ]
    names = {request.name for request in requests}
    assert len(names) == len(requests)
    assert all(name.startswith("model-") for name in names)
    assert EngineRequest(folder).name == EngineRequest(os.path.relpath(folder)).name
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    assert EngineRequest(folder).name not in names


def test_a_pace_counts_from_the_first_event() -> None:
    pace = Pace()
    assert pace.of(Event("vectors", done=100, total=300), 10.0) == ""
    told = pace.of(Event("vectors", done=150, total=300, tokens=2000), 20.0)
    assert told == "5 rows/s, 200 tokens/s, 0:00:30 left"
    assert pace.of(Event("vectors", done=300, total=300, ended=True), 50.0) == "5 rows/s"


def test_lines_are_few_where_there_is_no_terminal() -> None:
    told = io.StringIO()
    with Lines(Console(file=told, width=40)) as display:
        display.show(Event("engine", "reading the model"))
        display.show(Event("engine", "exporting to ONNX"))
        display.show(Event("engine", "model-0123456789", ended=True))
        for done in range(0, 51, 10):
            display.show(Event("vectors", "1 worker: 1 computing", done, 50))
    assert told.getvalue().splitlines() == [
        "engine: reading the model",
        "engine: model-0123456789",
        "vectors: 0 of 50 rows, 1 worker: 1 computing",
    ]


def test_a_terminal_shows_every_step_at_once() -> None:
    told = io.StringIO()
    with Live(Console(file=told, force_terminal=True, width=120), STEPS) as display:
        display.show(Event("engine", "model-0123456789", ended=True))
        display.show(Event("vectors", "1 worker", 10, 50))
    last = told.getvalue().split("engine")[-1]
    assert "model-0123456789" in last
    assert "10/50" in last
    assert "verification" in last


def test_a_notebook_has_a_bar_for_each_step_that_began(capfd: pytest.CaptureFixture[str]) -> None:
    with Notebook() as display:
        display.show(Event("vectors", "1 worker", 0, 50))
        display.show(Event("vectors", "1 worker", 50, 50))
        display.show(Event("vectors", ended=True))
    last = capfd.readouterr().err.split("\r")[-1]
    assert "vectors: 100%" in last
    assert "50/50" in last


def test_options_from_python_are_the_commands() -> None:
    options = {"text": "{a}", "keep_columns": ["a", "b"], "no_header": True, "stream": False, "normalize": False}
    assert list(flags_of(options | {"limit": None})) == [
        "--text={a}",
        "--keep-columns=a,b",
        "--no-header",
        "--no-normalize",
    ]


def test_every_command_has_help_with_an_example() -> None:
    told = CliRunner().invoke(main, ["--help"])
    assert told.exit_code == 0, told.output
    for name in PARTS:
        assert f"\n  {name} " in told.output
        shown = CliRunner().invoke(main, [name, "--help"], prog_name="embedmill")
        assert shown.exit_code == 0, shown.output
        assert "Example" in shown.output
        assert f"embedmill {name}" in shown.output


def test_embed_takes_every_option_of_the_producer_and_none_twice() -> None:
    flags = [flag for parameter in embed.params for flag in [*parameter.opts, *parameter.secondary_opts]]
    assert len(flags) == len(set(flags))
    import producer.command

    theirs = {flag for parameter in producer.command.main.params for flag in parameter.opts}
    assert theirs - set(flags) == {"--dataset", "--engine", "--detach", "--priority"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reviews.csv", "--model", "m"], True),
        (["--model=m", "--limit", "3", "reviews.csv"], True),
        (["reviews.csv"], False),
        (["reviews.csv", "--model-revision", "v2"], False),
        (["reviews.csv", "--model", "m", "--dry-run"], False),
        (["reviews.csv", "--model", "m", "--help"], False),
    ],
)
def test_what_may_be_a_run_is_told_by_its_words(words: list[str], *, expected: bool) -> None:
    assert is_run(words) == expected


def test_a_task_is_cancelled_once_its_pipe_is_closed_without_one() -> None:
    reading, writing = os.pipe()
    try:
        assert not is_cancelled(reading)
        os.write(writing, b"[]\n")
        os.close(writing)
        assert not is_cancelled(reading)
        os.read(reading, 10)
        assert is_cancelled(reading)
    finally:
        os.close(reading)


def test_the_version_is_the_distributions() -> None:
    told = CliRunner().invoke(main, ["--version"])
    assert (told.exit_code, told.output) == (0, f"embedmill {embedmill.__version__}\n")


@pytest.mark.parametrize("name", [name for name in PACKAGES if name not in ("contract", "embedmill")])
def test_another_module_of_a_packages_name_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    found = subprocess.run(
        [sys.executable, "-m", "embedmill", "list"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 1
    assert found.stderr.startswith(f"Error: Python's module {name} is {tmp_path / name}.py; expected embedmill's, ")
    assert len(found.stderr.splitlines()) == 1


def test_a_run_tells_the_next_estimate_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = iter([100.0, 104.0, 104.0, 124.0, 140.0])
    job = a_job(location(str(tmp_path)), rows=1000, batch_rows=100)
    clock = Clock(lambda: next(times))  # at 100
    begun = Heartbeat(worker="a:1:2/0", state="computing", beat=1.0, since=1.0, job=job.key, batch=0)
    view = View(job=job.key, now=1.0, timeout=30.0, workers=(begun,))
    clock.see(Progress(job, ShardTotals(), ShardTotals(), last_shard=0.0, view=view))  # at 104
    whole = ShardTotals(shards=10, rows=1000, tokens=40_000)
    clock.see(Progress(job, ShardTotals(), whole, last_shard=0.0))  # at 124
    clock.verified(job, 100)  # at 140: a tenth of the rows is computed again in 2 of the 16 seconds
    pace = last_pace(job.fingerprint)
    assert pace is not None
    assert (pace.start, pace.tokens_per_second, pace.verification) == (4.0, 2000.0, 14.0)


def test_the_build_of_an_engine_is_no_part_of_the_next_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = iter([100.0, 150.0, 150.0, 170.0, 180.0])
    job = a_job(location(str(tmp_path)), rows=1000, batch_rows=100)
    clock = Clock(lambda: next(times))
    clock.builds = True
    clock.see(Progress(job, ShardTotals(), ShardTotals(shards=1, rows=1, tokens=1), last_shard=0.0))  # at 150
    clock.see(Progress(job, ShardTotals(), ShardTotals(shards=10, rows=1000, tokens=40_000), last_shard=0.0))
    clock.verified(job, 100)
    pace = last_pace(job.fingerprint)
    assert pace is not None
    assert pace.start == START
