"""Nothing waits without a word, and no worker's fault is a batch's: whole processes under faults."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from contract.engine import EngineSpec
from contract.job import load_job
from contract.jobs import latest_job
from contract.redis.heartbeat import computing
from contract.redis.messages import CELERY_VARIABLES
from contract.settings import settings
from contract.store import location
from embedmill.processes import celery_worker, free_port, process, redis_server
from producer.reasons import workers_line
from producer.view import view_of
from tests.commands import called, run, wait_until
from tests.conftest import JARGON, build_engine
from tests.contract.samples import WholeLedger

ROOT = str(JARGON.parent.parent)
COMMAND = ("producer", "--dataset", JARGON, "--text-column", "text")
WORKER = [sys.executable, "-m", "celery", "-A", "worker", "worker"]


@contextmanager
def producing(log: Path, *options: object, env: dict[str, str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", *map(str, COMMAND), *map(str, options)]
    with process(command, log, env=env) as producer:
        yield producer


def slow(seconds: float) -> dict[str, str]:
    return {"CHAOS_SECONDS": str(seconds), "PYTHONPATH": ROOT}


def kill_tree(parent: "subprocess.Popen[bytes]") -> None:
    """With SIGKILL, the parent first, so that it can put nothing back."""
    children = psutil.Process(parent.pid).children(recursive=True)
    for one in [psutil.Process(parent.pid), *children]:
        one.kill()


@pytest.mark.parametrize("replaced", [False, True], ids=["beside another worker", "alone, then replaced"])
def test_a_killed_workers_batch_is_elsewhere_soon_and_the_producer_says_what_it_waits_for(
    replaced: bool, tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    timeout = 4.0
    told, ledger = tmp_path / "producer.log", WholeLedger(patience=5)
    env = {"EMBEDMILL_HEARTBEAT_TIMEOUT": str(timeout)}
    with ExitStack() as stack:
        first = stack.enter_context(celery_worker(tmp_path / "0.log", app="bench.chaos.haunted", env=slow(300)))
        producer = stack.enter_context(producing(told, "--limit", 60, "--batch-rows", 20, env=env))
        wait_until(lambda: any(one.batch is not None for one in ledger.heartbeats()))
        time.sleep(0.5)  # the last heartbeat is a whole one
        kill_tree(first)
        killed = time.monotonic()
        if replaced:
            wait_until(lambda: "o worker is alive; start one: celery -A worker worker" in told.read_text(), 30)
        stack.enter_context(celery_worker(tmp_path / "1.log"))
        assert producer.wait(60) == 0, told.read_text()
        took = time.monotonic() - killed
    assert latest_job().committed() == {0, 1, 2}
    assert took < (30 if replaced else timeout + 20)  # and not the 600 s of the visibility timeout
    lines = [line for line in told.read_text().splitlines() if line.startswith("No new shard")]
    assert len(lines) == len(set(lines))
    assert redis.Redis.from_url(redis_url).hlen("unacked") == 0


@pytest.mark.slow
def test_two_good_workers_do_what_bad_ones_leave_to_them_and_no_attempt_is_counted(
    tiny: EngineSpec, tiny_model: Path, redis_url: str, tmp_path: Path
) -> None:
    other, empty, no_module = tmp_path / "other", tmp_path / "empty", tmp_path / "no-module"
    empty.mkdir()
    no_module.mkdir()
    (no_module / "onnxruntime.py").write_text("raise ImportError('no onnxruntime here')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDMILL_ENGINES", str(other))
        settings.cache_clear()
        build_engine(tiny_model, "tiny", "cls")  # another fingerprint
    settings.cache_clear()
    bad = {
        "another fingerprint": {"EMBEDMILL_ENGINES": str(other)},
        "no engine": {"EMBEDMILL_ENGINES": str(empty)},
        "no module": {"PYTHONPATH": str(no_module)},
    }
    told = tmp_path / "producer.log"
    with ExitStack() as stack:
        for name, env in bad.items():
            command = [*WORKER, "-n", f"{name.replace(' ', '-')}@%h"]
            stack.enter_context(process(command, tmp_path / f"{name}.log", env=env, patience=1))
        for number in range(2):
            options = ("-n", f"{number}@%h")
            stack.enter_context(
                celery_worker(tmp_path / f"{number}.log", *options, app="bench.chaos.haunted", env=slow(0.2))
            )
        wait_until(lambda: len(computing(WholeLedger(patience=5).heartbeats())) == 5)
        producer = stack.enter_context(producing(told, "--limit", 250, "--batch-rows", 10))
        attempts = every_attempt(producer, redis.Redis.from_url(redis_url))
        assert producer.wait(5) == 0, told.read_text()
    job = latest_job()
    assert job.committed() == set(range(25))
    assert attempts == {b"1"}
    assert "has fingerprint" in (tmp_path / "another fingerprint.log").read_text()
    assert "waits for its engine: no engine" in (tmp_path / "no engine.log").read_text()
    assert "a Python package is missing (no onnxruntime here)" in (tmp_path / "no module.log").read_text()


def every_attempt(producer: "subprocess.Popen[bytes]", client: "redis.Redis") -> set[bytes]:
    """Each value that the attempts of a batch had on Redis until the producer ended."""
    found: set[bytes] = set()
    while producer.poll() is None:
        for key in client.scan_iter("embedmill:*:attempts"):
            found |= set(map(os.fsencode, client.hvals(os.fsdecode(key))))
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take a folder away from one process")
def test_two_good_workers_do_what_those_without_a_right_or_space_leave_to_them(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    called(*COMMAND, "--limit", 250, "--batch-rows", 10, "--detach")
    job = latest_job()
    assert isinstance(job.folder, Path)
    staging = job.folder / "staging"
    for folder in (job.folder, *(one for one in job.folder.iterdir() if one.is_dir())):
        os.chown(folder, 12345, 12345)
    full = f'mount -t tmpfs -o size=4k tmpfs {staging} && cp {JARGON} {staging}/x; exec "$@"'
    bad = {
        "no right": ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"],
        "full disk": ["unshare", "--mount", "sh", "-c", full, "sh"],
    }
    with ExitStack() as stack:
        for name, prefix in bad.items():
            command = [*prefix, *WORKER, "-n", f"{name.replace(' ', '-')}@%h"]
            stack.enter_context(process(command, tmp_path / f"{name}.log", patience=5))
        wait_until(lambda: len([one for one in WholeLedger(patience=5).heartbeats() if one.refuses]) == 2)
        seen = workers_line(view_of(job, WholeLedger(patience=5), frozenset()))
        producer = stack.enter_context(producing(tmp_path / "producer.log", "--limit", 250, "--batch-rows", 10))
        for number in range(2):
            options = ("-n", f"{number}@%h")
            stack.enter_context(
                celery_worker(tmp_path / f"{number}.log", *options, app="bench.chaos.haunted", env=slow(0.2))
            )
        attempts = every_attempt(producer, redis.Redis.from_url(redis_url))
        assert producer.wait(5) == 0, (tmp_path / "producer.log").read_text()
    assert job.committed() == set(range(25))
    assert attempts == {b"1"}
    for name, reason in (("no right", "Permission denied"), ("full disk", "No space left on device")):
        assert f"{reason}: {staging}" in (tmp_path / f"{name}.log").read_text()
        assert f"1 cannot serve this job: {reason}" in seen


def test_where_no_worker_can_serve_a_job_it_says_why_stays_whole_and_goes_on_once_one_can(
    tiny: EngineSpec, redis_url: str, session_engines: Path, tmp_path: Path
) -> None:
    """The worker is there before its engine is."""
    engines, told, log = tmp_path / "engines", tmp_path / "producer.log", tmp_path / "worker.log"
    with (
        process(WORKER, log, env={"EMBEDMILL_ENGINES": str(engines)}) as worker,
        producing(told, "--limit", 40, "--batch-rows", 20) as producer,
    ):
        wait_until(lambda: "1 worker waits for its engine: no engine tiny in" in told.read_text(), 60)
        assert worker.poll() is None
        engines.symlink_to(session_engines)
        assert producer.wait(60) == 0, told.read_text()
    assert latest_job().committed() == {0, 1}
    assert log.read_text().count("waits for its engine") == 1


def test_detached_without_a_worker_it_says_so(tiny: EngineSpec, redis_url: str) -> None:
    told = called(*COMMAND, "--limit", 40, "--batch-rows", 40, "--detach").stdout
    assert "Published; 0 of 1 shard there: " in told
    assert "No worker is alive; start one: celery -A worker worker." in told


def test_a_job_is_cancelled_and_its_producer_ends_and_another_job_is_not_touched(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    told, client = tmp_path / "producer.log", redis.Redis.from_url(redis_url)
    called(*COMMAND, "--limit", 30, "--name", "other", "--detach")
    with producing(told, "--limit", 400, "--batch-rows", 10, "--name", "mine") as producer:
        wait_until(lambda: any(b":mine-" in key for key in client.scan_iter("*:queue")))
        listed = called("producer", "list").stdout
        assert listed.count("under way") == 2
        assert "Cancelled mine-" in called("producer", "cancel", "mine").stdout
        assert producer.wait(30) == 1
    assert re.search(r"job mine-\w+ was cancelled; 0 of 40 shards there; run the same command again", told.read_text())
    assert not [key for key in client.scan_iter("*mine*") if not key.endswith((b":cancelled", b":rows"))]
    assert called("producer", "list").stdout.count("cancelled") == 1
    with celery_worker(tmp_path / "worker.log"):
        assert "30 of 30" in called(*COMMAND, "--limit", 30, "--name", "other").stdout
    client.zadd("embedmill:jobs", {latest_job().key: 0})  # as a detached job leaves it
    assert "1 job cleaned" in called("producer", "clean").stdout
    assert client.zcard("embedmill:jobs") == 0


def test_two_detached_jobs_of_one_dataset_into_two_outputs_get_all_their_shards(
    tiny: EngineSpec, redis_url: str, tmp_path: Path
) -> None:
    outputs = [tmp_path / "first", tmp_path / "second"]
    for output in outputs:
        called(*COMMAND, "--limit", 40, "--batch-rows", 10, "--output", output, "--detach")
    jobs = [load_job(location(next(output.glob("*")))) for output in outputs]
    with celery_worker(tmp_path / "worker.log"):
        wait_until(lambda: all(len(job.committed()) == 4 for job in jobs))


def test_a_small_job_does_not_wait_for_a_large_one(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    with celery_worker(tmp_path / "worker.log", app="bench.chaos.haunted", env=slow(0.5)):
        called(*COMMAND, "--limit", 300, "--batch-rows", 10, "--name", "large", "--detach")
        called(*COMMAND, "--limit", 1, "--name", "small")
        assert len(latest_job().committed()) == 1
        large = next(path for path in settings().output.iterdir() if path.name.startswith("large-"))
        assert len(load_job(large).committed()) < 30


def test_celerys_own_variables_are_ignored_and_told(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    with redis_server() as elsewhere, pytest.MonkeyPatch.context() as patch:
        for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL"):
            patch.setenv(name, elsewhere)
        with celery_worker(tmp_path / "worker.log"):
            told = run(*COMMAND, "--limit", 40)
        assert "40 of 40" in told.stdout
        assert redis.Redis.from_url(elsewhere).keys() == []
    for text in (told.stderr, (tmp_path / "worker.log").read_text()):
        for name in ("CELERY_BROKER_URL", "CELERY_BROKER_WRITE_URL", "CELERY_BROKER_READ_URL"):
            assert f"{name} is ignored: EMBEDMILL_REDIS_URL says" in " ".join(text.split())


def test_every_variable_that_celery_reads_is_ignored_or_harmless() -> None:
    import celery

    harmless = {
        "CELERY_RDB_HOST", "CELERY_RDB_PORT", "CELERY_TRACE_APP", "CELERY_SKIP_CHECKS", "CELERY_BENCH",
        "CELERY_BENCH_EVERY", "CELERY_LOG_FILE", "CELERY_LOG_LEVEL", "CELERY_LOG_REDIRECT", "CELERY_LOG_REDIRECT_LEVEL",
    }  # fmt: skip
    found = set()
    for file in Path(celery.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r"environ[^\n]*?['\"](CELERY_[A-Z_]+)", file.read_text(encoding="utf-8")))
    assert len(found) > 8
    assert found - harmless == set(CELERY_VARIABLES) & found
    assert found - harmless <= set(CELERY_VARIABLES)


@pytest.mark.parametrize("pool", ["threads", "custom"])
def test_a_pool_without_processes_is_refused_with_the_reason(pool: str, tiny: EngineSpec, redis_url: str) -> None:
    env = os.environ | ({"CELERY_CUSTOM_WORKER_POOL": "celery.concurrency.thread:TaskPool"} if pool == "custom" else {})
    told = subprocess.run([*WORKER, "-P", pool], env=env, capture_output=True, text=True, timeout=60)
    assert told.returncode == 1
    assert "Error: the pool thread shares one process among batches; expected prefork or solo" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_worker_in_a_solo_pool_does_the_job(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    with celery_worker(tmp_path / "worker.log", "-P", "solo"):
        assert "40 of 40" in called(*COMMAND, "--limit", 40, "--batch-rows", 10).stdout


def test_a_worker_whose_first_children_die_at_once_goes_on(tiny: EngineSpec, redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with process(WORKER, log) as worker:
        parent, killed = psutil.Process(worker.pid), set[int]()
        until = time.monotonic() + 60
        while len(killed) < 3 and time.monotonic() < until:
            for child in parent.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # it was killed, and its parent has seen that
                    child.kill()  # within milliseconds of its birth
                    killed.add(child.pid)
        assert len(killed) == 3
        assert "40 of 40" in called(*COMMAND, "--limit", 40).stdout
        assert worker.poll() is None
    assert "Could not start worker processes" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_in_time_while_redis_is_gone(
    number: signal.Signals, tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    log = tmp_path / "worker.log"
    with redis_server(port=port):
        worker = subprocess.Popen(WORKER, stdout=log.open("wb"), stderr=subprocess.STDOUT)
        wait_until(lambda: " loaded: " in log.read_text())
    time.sleep(1)
    began = time.monotonic()
    worker.send_signal(number)
    assert worker.wait(60) == (130 if number == signal.SIGINT else 0)
    assert time.monotonic() - began < settings().stop_seconds + 1
    assert log.read_text().count("The worker stops: ") == 1


def test_a_cluster_is_refused_at_once_by_all(tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = next(port for port in iter(free_port, None) if port <= 55_535)  # a cluster's second one is 10,000 higher
    with redis_server(tmp_path, "--cluster-enabled", "yes", port=port) as url:
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        monkeypatch.setenv("EMBEDMILL_REDIS_PATIENCE", "60")
        began = time.monotonic()
        for command in ((*COMMAND, "--limit", 5), ("celery", "-A", "worker", "worker"), ("producer", "clean")):
            told = run(*command, expect=1)
            assert told.stderr.splitlines()[-1].startswith(f"Error: Redis at {url} is a Redis Cluster (")
            assert "cluster mode off" in told.stderr
            assert "Traceback" not in told.stderr
        assert time.monotonic() - began < 50
    assert not settings().output.exists()


def test_what_is_advised_for_a_password_works(tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as url:
        redis.Redis.from_url(url).config_set("requirepass", "grain")
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        told = called("producer", "clean", expect=1).stderr
        advised = re.search(r"set EMBEDMILL_REDIS_URL to (\S+)", told)
        assert advised
        assert advised[1].startswith("redis://")
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", advised[1].replace("PASSWORD", "grain"))
        called("producer", "list")
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url.replace("redis:", "rediss:"))
        told = called("producer", "clean", expect=1).stderr
        assert "does not speak TLS" in told
        assert "redis://" in told


@pytest.mark.parametrize("place", ["s3:/bucket/prefix", "s3:bucket", "gs:/bucket", "file:/tmp/x"])
def test_an_address_with_a_slash_too_few_makes_no_folder(place: str, tiny: EngineSpec, redis_url: str) -> None:
    told = called(*COMMAND, "--limit", 5, "--output", place, expect=2).stderr
    assert "expected s3://bucket/prefix, gs://bucket/prefix or a path" in " ".join(told.replace("│", "").split())
    assert not list(Path().iterdir())
