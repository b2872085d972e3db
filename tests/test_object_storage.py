"""A job in a bucket, by workers that share nothing but Redis and the bucket."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from bench.buckets import BUCKET, a_user, client, credentials, s3_server
from contract.engine import EngineSpec
from contract.jobs import latest_job
from contract.settings import settings
from contract.shard import open_file
from contract.store import client as store_client
from embedmill.processes import celery_worker, free_port, process
from tests.commands import called, wait_until
from tests.conftest import JARGON
from tests.contract.samples import WholeLedger
from tests.hub import WRITER, Hub
from tests.test_reuse import computed, earlier, run, same, work_of
from tests.verify.jobs import TEXTS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_client_of_another_test() -> Iterator[None]:
    """A client keeps the server's address that the environment had when it was made."""
    store_client.store_of.cache_clear()
    yield
    store_client.store_of.cache_clear()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(tmp_path) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        yield url


def command(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], expect: int = 0) -> str:
    told, _ = process.communicate(timeout=200)
    assert process.returncode == expect, told
    return told


def listening(url: str) -> int:
    """The number of the process that listens on this URL's port."""
    port = int(url.rpartition(":")[2])
    return next(
        one.pid or 0
        for one in psutil.net_connections("tcp4")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    )


def machine(folder: Path, tiny: EngineSpec, output: str) -> dict[str, str]:
    """A folder with its own copy of the engine, and the environment of the processes there."""
    shutil.copytree(tiny.folder, folder / "engines" / "tiny")
    return {
        "EMBEDMILL_ENGINES": str(folder / "engines"),
        "EMBEDMILL_OUTPUT": output,
        "EMBEDMILL_VISIBILITY_TIMEOUT": "3",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
def test_two_machines_share_redis_and_a_bucket_and_one_of_them_dies(
    bucket: str, tiny: EngineSpec, redis_url: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_OUTPUT", f"s3://{BUCKET}/jobs")
    monkeypatch.setenv("EMBEDMILL_VISIBILITY_TIMEOUT", "3")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    settings.cache_clear()
    here = tmp_path / "here"
    here.mkdir()
    slow = {"CHAOS_SECONDS": "0.3"}
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    # A machine need not know of the bucket beforehand: the job says where it lies.
    one, two = (machine(tmp_path / name, tiny, str(tmp_path / name / "output")) for name in ("one", "two"))
    monkeypatch.chdir(tmp_path / "one")
    with celery_worker(logs[0], app="bench.chaos.haunted", env=one | slow) as killed:
        monkeypatch.chdir(tmp_path / "two")
        with celery_worker(logs[1], app="bench.chaos.haunted", env=two | slow):
            producer = command(
                *("-m", "producer", "--dataset", JARGON, "--text-column", "text"),
                *("--limit", 300, "--batch-rows", 10),
                cwd=here,
            )
            while b" rows, " not in logs[0].read_bytes() or len(latest_job().committed()) < 5:
                assert producer.poll() is None
                time.sleep(0.05)
            for process in [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]:
                process.send_signal(signal.SIGKILL)
            assert "300 of 300" in ended(producer)
    assert logs[1].read_text().count(" rows, ") < 30  # the other one made some before it died
    job = latest_job()
    assert str(job.folder).startswith(f"s3://{BUCKET}/jobs/jargon-train-")
    monkeypatch.chdir(here)
    told = called("verify", "--sample", 30)
    assert "Verified: 300 rows accounted for" in told.output
    assert str(job.folder) in told.output
    assert "cosine" in ended(command("-m", "embedmill", "search", "junk mail", cwd=here))
    # In the bucket is the job and nothing else, and nothing of it is on a disk.
    assert sorted(job.folder.names()) == ["data", "job.json", "report.html", "verify.json"]
    assert len(job.data.names()) == job.batches == 30
    assert not client(bucket).list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    assert [path.name for name in ("one", "two") for path in (tmp_path / name).iterdir()] == ["engines", "engines"]
    # From the bucket to the Hub, shard by shard.
    pushed = called("producer", "push", "--to", "mill/vectors").stdout
    assert f"Pushed: {hub.url}/datasets/mill/vectors" in pushed
    head = hub.repos["datasets", "mill/vectors"].head
    assert {path: data for path, data in head.items() if path.startswith("data/")} == {
        f"data/{job.shard(batch).name}": job.shard(batch).read_bytes() for batch in range(job.batches)
    }
    # A damaged shard is found, named and made again.
    broken = job.shard(3)
    broken.put(broken.read_bytes()[:-9])
    told = called("verify", expect=1)
    assert f"python -m producer retry {job.folder}\n" in told.output
    assert f"At fault: {broken.name}\n" in told.output


def test_a_bucket_that_does_not_answer_is_waited_for_by_the_worker(
    tiny: EngineSpec, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    for name, value in credentials(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EMBEDMILL_OUTPUT", f"s3://{BUCKET}/jobs")
    settings.cache_clear()
    produce = ("producer", "--dataset", JARGON, "--text-column", "text", "--limit", 40, "--batch-rows", 20)
    log = tmp_path / "worker.log"
    with s3_server(tmp_path, port):
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        called(*produce, "--detach")
        record = latest_job()
    with celery_worker(log):
        while b"does not answer" not in log.read_bytes():
            time.sleep(0.1)
        with s3_server(tmp_path, port):  # it is back, and has forgotten everything but what the test puts there again
            record.save()
            assert "40 of 40" in called(*produce).stdout
            with open_file(record.shard(1)) as shard:
                assert shard.read(columns=["row_id"])["row_id"].to_pylist() == list(range(20, 40))
    assert "given up" not in log.read_text()


@pytest.mark.slow
def test_two_good_workers_do_what_one_without_credentials_leaves_to_them(
    tiny: EngineSpec, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EMBEDMILL_OUTPUT", f"s3://{BUCKET}/jobs")
    settings.cache_clear()
    rows = ("--dataset", JARGON, "--text-column", "text", "--limit", 250, "--batch-rows", 10)
    without = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-n", "without@%h"]
    with ExitStack() as stack:
        url = stack.enter_context(s3_server(tmp_path, checked=True))
        for name, value in (credentials(url) | a_user(url)).items():
            monkeypatch.setenv(name, value)
        log = tmp_path / "without.log"
        stack.enter_context(process(without, log, env=credentials(url), patience=5))
        wait_until(lambda: " loaded: " in log.read_text())
        producer = command("-m", "producer", *rows, cwd=tmp_path)
        wait_until(lambda: "cannot serve job" in log.read_text(), 60)
        for number in range(2):
            stack.enter_context(celery_worker(tmp_path / f"{number}.log", "-n", f"{number}@%h"))
        assert "250 of 250" in ended(producer)
        assert latest_job().committed() == set(range(25))
    assert "given up" not in "".join(file.read_text() for file in tmp_path.glob("*.log"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_in_time_while_the_bucket_does_not_answer(
    number: signal.Signals, tiny: EngineSpec, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("EMBEDMILL_OUTPUT", f"s3://{BUCKET}/jobs")
    settings.cache_clear()
    log = tmp_path / "worker.log"
    with s3_server(tmp_path) as url:
        for name, value in credentials(url).items():
            monkeypatch.setenv(name, value)
        server = psutil.Process(listening(url))
        called("producer", "--dataset", JARGON, "--text-column", "text", "--detach")
        server.suspend()  # it takes connections, and never answers
        try:
            with log.open("wb") as output:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "worker", "worker"], stdout=output, stderr=output
                )
            wait_until(lambda: any(one.batch is not None for one in WholeLedger(patience=5).heartbeats()))
            began = time.monotonic()
            worker.send_signal(number)
            assert worker.wait(60) == (130 if number == signal.SIGINT else 0)
            assert time.monotonic() - began < settings().stop_seconds + 1
        finally:
            server.resume()
    assert log.read_text().count("The worker stops: ") == 1


def test_a_job_takes_the_vectors_of_an_earlier_one_that_lies_in_a_bucket(
    bucket: str, tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDMILL_OUTPUT", f"s3://{BUCKET}/jobs")
    settings.cache_clear()
    first = run(work_of(tiny, tmp_path / "a", TEXTS))
    assert str(first.folder).startswith("s3://")
    monkeypatch.setenv("EMBEDMILL_OUTPUT", str(tmp_path / "output"))
    settings.cache_clear()
    changed = ["a new one", *TEXTS]
    job = run(work_of(tiny, tmp_path / "b", changed, reuse=earlier(first)))
    assert (str(job.folder).startswith(str(tmp_path)), computed(job)) == (True, 1)
    same(job, run(work_of(tiny, tmp_path / "b", changed)))
