"""Finished jobs pushed to a Hub on the loopback interface."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

import producer.command
import verify.command
from contract.engine import EngineSpec
from contract.job import Job, load_job
from contract.settings import settings
from contract.store import location
from producer import push as push_module
from tests.commands import called
from tests.hub import READER, WRITER, Files, Hub, Refusal
from tests.verify.jobs import TEXTS, finished_job, rewrite, save_texts, with_element


@pytest.fixture(scope="module")
def finished(_tiny_built: EngineSpec, session_engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """48 rows in three shards, verified. Each test has a copy: to make it takes longer than most tests."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(session_engines))
        patch.setenv("EMBEDMILL_OUTPUT", str(folder / "output"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        settings.cache_clear()
        job = verified(finished_job(_tiny_built, save_texts(folder / "texts", TEXTS)))
    settings.cache_clear()
    return job


@pytest.fixture
def job(finished: Job, tiny: EngineSpec, workplace: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A finished job in this test's output folder; the user has logged in."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    shutil.copytree(str(finished.folder), workplace / "output" / finished.id)
    return load_job(location(workplace / "output" / finished.id))


def verified(job: Job, *, passes: bool = True) -> Job:
    told = CliRunner().invoke(verify.command.main, [str(job.folder), "--sample", "20"])
    assert told.exit_code == (0 if passes else 1), told.output
    return job


def push(job: Job, *options: str, to: str = "mill/vectors") -> Result:
    return CliRunner().invoke(producer.command.main, ["push", str(job.folder), "--to", to, *options])


def pushed(job: Job, *options: str) -> str:
    done = push(job, *options)
    assert done.exit_code == 0, done.output
    return done.output


def refused(done: Result, *shown: str) -> None:
    assert done.exit_code == 1, done.output
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    for part in shown:
        assert part in line


def shards(job: Job) -> Files:
    return {f"data/{file.name}": file.read_bytes() for file in job.data.iterdir()}


def data(files: Files) -> Files:
    return {path: content for path, content in files.items() if path.startswith("data/")}


def front_matter(files: Files) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    return found


def test_what_was_pushed_loads_with_the_rows_of_the_job(job: Job, hub: Hub) -> None:
    told = pushed(job)
    assert f"Pushed: {hub.url}/datasets/mill/vectors" in told
    loaded = datasets.load_dataset("mill/vectors", split="train").with_format("arrow")[:]
    local = pq.read_table(job.data)
    assert loaded.column_names == local.column_names
    assert loaded.to_pylist() == local.to_pylist()
    assert len(loaded) == 48


def test_the_repository_holds_the_shards_and_a_card_and_nothing_else(job: Job, hub: Hub) -> None:
    pushed(job)
    repo = hub.repos["datasets", "mill/vectors"]
    assert set(repo.head) == {".gitattributes", "README.md", *shards(job)}
    assert data(repo.head) == shards(job)
    assert len(repo.commits) == 2  # the empty repository, and all at once
    assert not repo.private
    card = repo.head["README.md"].decode()
    for part in ("texts", "mean", "48", "pass", "lowest cosine", "Verified on", "mill/vectors", "onnxruntime"):
        assert part in card
    assert "/" + str(Path(job.dataset).parent).strip("/") not in card  # where it lay is nobody's business


def test_a_new_repository_is_private_if_that_is_asked(job: Job, hub: Hub) -> None:
    pushed(job, "--private")
    assert hub.repos["datasets", "mill/vectors"].private


def test_the_same_again_uploads_and_changes_nothing(job: Job, hub: Hub) -> None:
    pushed(job)
    repo = hub.repos["datasets", "mill/vectors"]
    before = dict(repo.commits)
    hub.requests.clear()
    pushed(job)
    assert repo.commits == before
    assert hub.asked("^PUT") == []


def test_what_a_person_wrote_into_the_front_matter_stays(job: Job, hub: Hub) -> None:
    pushed(job)
    repo = hub.repos["datasets", "mill/vectors"]
    card = repo.head["README.md"].decode().replace("---\n", "---\nlicense: mit\nlanguage:\n- en\n", 1)
    repo.commit({**repo.head, "README.md": card.encode(), "picture.png": b"png"})
    verified(job)
    pushed(job)
    found = front_matter(repo.head)
    assert (found["license"], found["language"]) == ("mit", ["en"])
    assert repo.head["picture.png"] == b"png"


def test_another_job_takes_the_place_of_the_first_only_if_that_is_asked(
    job: Job, hub: Hub, tiny: EngineSpec, workplace: Path
) -> None:
    pushed(job)
    repo = hub.repos["datasets", "mill/vectors"]
    repo.commit({**repo.head, "README.md": repo.head["README.md"].replace(b"---\n", b"---\nlicense: mit\n", 1)})
    other = verified(finished_job(tiny, Path(job.dataset), batch_rows=40))
    before = dict(repo.commits)
    refused(push(other), f"mill/vectors holds {job.id}", other.id, "--replace")
    assert repo.commits == before
    pushed(other, "--replace")
    assert data(repo.head) == shards(other)
    assert len(repo.commits) == len(before) + 1
    assert "license" not in front_matter(repo.head)  # of the other


def test_files_of_somebody_else_are_not_mixed_with(job: Job, hub: Hub) -> None:
    hub.add("datasets", "mill/vectors", {"data/train.csv": b"text\na\n", "README.md": b"---\nlicense: mit\n---\nMine"})
    refused(push(job), "mill/vectors holds data/train.csv", "--replace")
    assert data(hub.repos["datasets", "mill/vectors"].head) == {"data/train.csv": b"text\na\n"}


def test_a_job_that_is_not_complete_stays_here(job: Job, hub: Hub) -> None:
    job.shard(1).unlink()
    refused(push(job, "--unverified"), "2 of 3 shards", "python -m producer")
    assert hub.repos == {}


def test_a_job_without_a_verdict_needs_a_flag_and_its_card_says_so(job: Job, hub: Hub) -> None:
    (job.folder / "verify.json").unlink()
    refused(push(job), "it has not been verified", f"python -m verify {job.folder}", "--unverified")
    assert hub.repos == {}
    pushed(job, "--unverified")
    assert b"**Not verified**: it has not been verified." in hub.repos["datasets", "mill/vectors"].head["README.md"]


def test_a_job_that_failed_needs_a_flag_and_its_card_says_what(job: Job, hub: Hub) -> None:
    rewrite(job, 0, with_element(3, 5, 9.0))
    verified(job, passes=False)
    refused(push(job), "the verifier found fault (fp32 vectors)")
    pushed(job, "--unverified")
    card = hub.repos["datasets", "mill/vectors"].head["README.md"].decode()
    assert "**Not verified**: the verifier found fault (fp32 vectors)." in card
    assert "| fp32 vectors | **fail** |" in card
    assert "Verified on" not in card


def test_a_verdict_older_than_a_shard_does_not_count(job: Job) -> None:
    later = (job.folder / "verify.json").stat().st_mtime_ns + 10**9
    os.utime(str(job.shard(2)), ns=(later, later))
    refused(push(job), "it was verified before its last shard was made")


def test_a_verdict_on_another_job_does_not_count(job: Job) -> None:
    file = job.folder / "verify.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": "other"}))
    refused(push(job), "its verify.json is another job's")
    file.write_text("{}")
    refused(push(job), "verify.json is no verdict", "python -m verify")


def test_more_shards_than_a_folder_takes_are_refused(job: Job, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "_MOST_SHARDS", 2)
    refused(push(job), "3 shards", "push_to_hub")
    assert hub.repos == {}


@pytest.mark.parametrize("token", [None, READER, "hf_wrong"])
def test_without_the_right_to_write_nothing_is_written(
    token: str | None, job: Job, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    refused(push(job), "does not let this user write to mill/vectors", "HF_TOKEN")
    assert hub.repos == {}


def test_a_name_that_is_none_is_refused(job: Job, hub: Hub) -> None:
    refused(push(job, to="mill//vectors"), "is no name of a repository", "expected user/name")
    refused(push(job, to="somebody-else/vectors"), "does not let this user write to somebody-else/vectors")
    assert hub.repos == {}


def at(pattern: str, act: Callable[[], None]) -> Callable[[str, str], None]:
    """A gate that acts once, at the first request of this beginning."""
    waiting = [act]

    def gate(method: str, path: str) -> None:
        if f"{method} {path}".startswith(pattern) and waiting:
            waiting.pop()()

    return gate


def fail() -> None:
    raise Refusal(400, "", "not today")


@pytest.mark.parametrize("where", ["PUT /lfs", "POST /api/datasets/mill/vectors/commit"])
def test_a_hub_that_refuses_on_the_way_leaves_the_repository_as_it_was(where: str, job: Job, hub: Hub) -> None:
    hub.gate = at(where, fail)
    done = push(job)
    refused(done, "not today", "mill/vectors is what it was", "same command again")
    assert set(hub.repos["datasets", "mill/vectors"].head) == {".gitattributes"}
    pushed(job)
    assert data(hub.repos["datasets", "mill/vectors"].head) == shards(job)


def test_a_commit_of_somebody_else_in_between_is_kept(job: Job, hub: Hub) -> None:
    def meanwhile() -> None:
        hub.repos["datasets", "mill/vectors"].commit({"README.md": b"hello"})

    hub.gate = at("POST /api/datasets/mill/vectors/commit", meanwhile)
    refused(push(job), "somebody else has changed mill/vectors meanwhile")
    assert hub.repos["datasets", "mill/vectors"].head == {"README.md": b"hello"}


@pytest.mark.parametrize("where", ["PUT /lfs", "POST /api/datasets/mill/vectors/commit"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_is_ended_leaves_the_old_or_the_new(
    where: str, number: signal.Signals, job: Job, hub: Hub, tiny: EngineSpec
) -> None:
    pushed(job)
    old = hub.repos["datasets", "mill/vectors"].head
    other = verified(finished_job(tiny, Path(job.dataset), batch_rows=40))
    reached, released = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        released.wait(30)

    hub.gate = at(where, hold)
    command = [sys.executable, "-m", "producer", "push", str(other.folder), "--to", "mill/vectors", "--replace"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as pushing:
        assert reached.wait(60)
        pushing.send_signal(number)
        if number == signal.SIGKILL:
            pushing.wait(30)
        assert hub.repos["datasets", "mill/vectors"].head == old
        released.set()
        told = pushing.communicate(timeout=60)[1]
    assert pushing.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1), told
    assert "Traceback" not in told
    assert number == signal.SIGKILL or "run the same command again" in told
    new = hub.repos["datasets", "mill/vectors"].head
    assert data(new) in (shards(job), shards(other))  # the commit's request may have arrived before the end
    hub.gate = lambda method, path: None
    hub.requests.clear()
    called(*command[2:])
    assert data(hub.repos["datasets", "mill/vectors"].head) == shards(other)
    if "commit" in where:
        assert hub.asked("^PUT /lfs") == []  # all of it had been uploaded
