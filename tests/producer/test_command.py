import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contract.engine import EngineSpec
from contract.job import Job
from contract.jobs import latest_job
from contract.settings import settings
from producer.command import main
from tests.contract.samples import WholeLedger


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "mills.csv"
    path.write_text("id,text,body\n" + "".join(f"{row},the mill number {row},grain\n" for row in range(10)))
    return path


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "producer", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(done: subprocess.CompletedProcess[str], *shown: str) -> None:
    """One line, status 1, no traceback, and nothing left behind."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    for part in shown:
        assert part in line
    assert "Traceback" not in done.stderr
    assert not settings().output.exists()


@pytest.mark.parametrize(
    ("file", "content", "options", "shown"),
    [
        ("mills.csv", "id,text\n1,a\n", ["--text-column", "body"], ["no text-column 'body'", "id, text"]),
        ("mills.jsonl", "", [], ["mills.jsonl is empty or cannot be read"]),
        (None, "", [], ["no dataset", "mills.none", "expected a Hub id, a file or a folder"]),
    ],
    ids=["missing column", "empty", "missing file"],
)
def test_a_dataset_that_cannot_be_embedded_is_refused(
    file: str | None, content: str, options: list[str], shown: list[str], tiny: EngineSpec, tmp_path: Path
) -> None:
    if file:
        (tmp_path / file).write_text(content)
    done = command("--dataset", tmp_path / (file or "mills.none"), *options)
    assert_refused(done, *shown)
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_an_engine_the_command_that_builds_one_is_named(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "none"))
    settings.cache_clear()
    assert_refused(command("--dataset", dataset), "no engine in", "python -m engine_build --model bert-base-cased")


def test_without_a_redis_it_is_waited_for_and_then_named(dataset: Path, tiny: EngineSpec) -> None:
    done = command("--dataset", dataset)
    assert_refused(done, "no answer from Redis at redis://127.0.0.1:1/0", "EMBEDMILL_REDIS_URL")
    assert "separator ','" in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[1].startswith("Batches of 64 rows, less than 500 tokens each: at least 40 batches")
    assert "does not answer" in done.stderr.splitlines()[2]


def test_the_output_of_a_job_is_no_place_for_another(redis_url: str, dataset: Path, tiny: EngineSpec) -> None:
    assert run("--dataset", dataset, "--detach").exit_code == 0
    job = latest_job()
    before = sorted(settings().output.rglob("*"))
    done = run("--dataset", dataset, "--detach", "--output", str(job.folder))
    assert done.exit_code == 1
    assert done.stderr.strip().endswith(f"try --output {settings().output}")
    assert sorted(settings().output.rglob("*")) == before

    other = Job.create(job.folder.parent, **(job.model_dump(exclude={"id", "folder"}) | {"rows": 3}))
    (job.folder / "job.json").write_text(other.model_dump_json())
    done = run("--dataset", dataset, "--detach")
    assert (done.exit_code, "rows is 3 there and 10 here" in done.stderr) == (1, True)


@pytest.mark.parametrize("output", ["file", "file/inside"])
def test_an_output_that_is_no_folder_is_refused(
    output: str, redis_url: str, dataset: Path, tiny: EngineSpec, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = run("--dataset", dataset, "--output", tmp_path / output)
    assert done.exit_code in (1, 2)
    assert "Error: " in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_detached_it_publishes_the_whole_job_and_leaves(redis_url: str, dataset: Path, tiny: EngineSpec) -> None:
    done = run("--dataset", dataset, "--batch-rows", 4, "--limit", 9, "--prefix", "of ", "--detach")
    assert (done.exit_code, done.exception) == (0, None)
    job = latest_job()
    assert "0 of 3 shards there" in done.stdout
    assert "9 rows of " in done.stderr
    assert "in 3 batches of 4 rows, engine tiny" in done.stderr
    assert str(job.folder) in done.stdout
    assert (job.rows, job.batches, job.limit, job.prefix, job.text) == (9, 3, 9, "of ", "{text}")
    assert (job.dataset, job.engine, job.fingerprint) == (str(dataset), "tiny", tiny.fingerprint)
    assert WholeLedger(patience=1).queued(job.key) == 3
    assert WholeLedger(patience=1).job(job.key) == job


def test_the_same_command_is_the_same_job(redis_url: str, dataset: Path, tiny: EngineSpec) -> None:
    for _ in range(2):
        assert run("--dataset", dataset, "--detach").exit_code == 0
    assert len(list(settings().output.iterdir())) == 1
    assert WholeLedger(patience=1).queued(latest_job().key) == 1
    for options in (["--limit", 5], ["--prefix", "x"], ["--batch-rows", 5], ["--text-column", "body"]):
        assert run("--dataset", dataset, "--detach", *options).exit_code == 0
    assert len(list(settings().output.iterdir())) == 5


def test_a_limit_above_the_rows_there_are_takes_them_all(redis_url: str, dataset: Path, tiny: EngineSpec) -> None:
    assert run("--dataset", dataset, "--detach", "--limit", 1000).exit_code == 0
    assert latest_job().rows == 10


def test_the_engines_prompt_is_the_prefix_unless_another_is_given(
    redis_url: str, dataset: Path, tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((tiny.folder / "engine.json").read_text()) | {"name": "prompted", "prefix": "Text: "}
    copied = tmp_path / "engines" / "prompted"
    copied.mkdir(parents=True)
    (copied / "tokenizer").symlink_to(tiny.folder / "tokenizer")
    (copied / "engine.json").write_text(json.dumps(record))
    monkeypatch.setenv("EMBEDMILL_ENGINES", str(tmp_path / "engines"))
    settings.cache_clear()
    for options, prefix in (([], "Text: "), (["--prefix", ""], ""), (["--prefix", "Q: "], "Q: ")):
        assert run("--dataset", dataset, "--detach", "--engine", "prompted", *options).exit_code == 0
        assert latest_job().prefix == prefix


def read_like_others() -> None:
    """Before a program starts: root, too, is to read only what it was given. See capabilities(7) and prctl(2)."""
    drop, dac_override, dac_read_search = 24, 1, 2
    if os.geteuid() == 0:
        for capability in (dac_override, dac_read_search):
            if ctypes.CDLL(None, use_errno=True).prctl(drop, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")


def test_what_nobody_may_read_is_an_error_or_in_nobodys_way(redis_url: str, dataset: Path, tiny: EngineSpec) -> None:
    assert run("--dataset", dataset, "--detach").exit_code == 0
    closed = settings().output / "lost+found"
    closed.mkdir()
    (closed / "rows.csv").write_text("text\na\n")
    closed.chmod(0)

    def producer(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "producer", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=read_like_others)

    try:
        assert producer("status").returncode == 0
        for arguments in (
            ("status", closed / "job"),
            ("--dataset", dataset, "--output", closed / "there"),
            ("--dataset", closed / "rows.csv"),
            ("--dataset", closed.parent),
        ):
            told = producer(*arguments)
            assert told.returncode == 1, told
            assert told.stderr.splitlines()[-1].startswith("Error: ")
            assert "Traceback" not in told.stderr
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize("name", [b"mill\xff.csv", b"m" * 300])
def test_a_name_that_is_none_is_refused(name: bytes, tmp_path: Path, tiny: EngineSpec) -> None:
    told = command("--dataset", os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    assert told.returncode in (1, 2)
    assert "Traceback" not in told.stderr
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/mill\xff.csv", "w") as file:
        file.write("text\na\n")
    assert_refused(command("--dataset", folder), "cannot be read", "names in UTF-8")


@pytest.mark.parametrize("options", [["--limit", "0"], ["--batch-rows", "0"], ["--batch-rows", "many"]])
def test_a_number_that_makes_no_sense_is_refused_by_its_option(options: list[str], dataset: Path) -> None:
    done = run("--dataset", dataset, *options)
    assert done.exit_code == 2
    assert options[0] in done.stderr


def test_the_help_mentions_each_option() -> None:
    text = run("--help").output
    for parameter in main.params:
        for option in parameter.opts:
            assert option in text
    assert "python -m producer --dataset imdb" in text
