"""TLS, the users of the ACL, and passwords that are shown nowhere."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import trustme
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer
from redis.backoff import NoBackoff
from redis.retry import Retry

from contract.errors import UserError
from contract.jobs import latest_job
from contract.redis.connection import tls_options
from contract.settings import settings
from embedmill.processes import celery_worker, free_port
from tests.commands import called, run, wait_until
from tests.contract.samples import a_job
from tests.security.station import COMMAND, Station, point_at, tls_before

WORKER = ("celery", "-A", "worker", "worker")


@contextlib.contextmanager
def nowhere_in_a_command_line(*secrets: str) -> Iterator[None]:
    """Meanwhile no process of this machine shows any of these to ``ps``."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = file.read_bytes().decode(errors="replace")
                    seen.update(line for secret in secrets if secret in line)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not seen


def assert_nowhere(secrets: list[str], *told: str | Path) -> None:
    """None of the secrets is in these texts, files and folders' files."""
    paths = [path for one in told if isinstance(one, Path) for path in (one, *one.rglob("*")) if path.is_file()]
    for text in [*told, *(path.read_bytes().decode(errors="replace") for path in paths)]:
        assert not [secret for secret in secrets if secret in str(text)]


@pytest.mark.parametrize("tokenizers", [1, 2])
def test_a_whole_job_runs_over_tls_as_the_two_users_and_shows_no_password(
    tokenizers: int, as_producer: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each tokenizing process has a connection to Redis of its own."""
    monkeypatch.setenv("EMBEDMILL_TOKENIZERS", str(tokenizers))
    station, secrets = as_producer, [as_producer.passwords[user] for user in ("producer", "worker")]
    station.client().acl_log_reset()
    with nowhere_in_a_command_line(*secrets):
        done = run(*COMMAND, "--limit", 100)
        now = called("producer", "status")
        verdict = called("verify", "--sample", 20)
    assert "100 of 100" in done.stdout
    assert re.search(r"workers alive\s*│\s*1", now.stdout)
    assert latest_job().committed() == set(range(5))
    # redis-py tells its name, and takes a refusal; nothing else was asked for that the users may not.
    assert {entry["object"] for entry in station.client().acl_log()} <= {"client", "client|setinfo"}
    assert f"transport:   rediss://worker:**@localhost:{station.tls_port}/0" in station.log.read_text()
    told = [output for one in (done, now, verdict) for output in (one.stdout, one.stderr)]
    assert (latest_job().folder / "verify.json").is_file()
    assert_nowhere(secrets, *told, station.log, station.log.parent / "redis.log", tmp_path)


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_a_user_may_do_nothing_else(user: str, station: Station) -> None:
    station.client().set("other", "1")
    client = station.client(user)
    forbidden = [
        "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "CONFIG REWRITE", "KEYS *", "KEYS embedmill*",
        "SCAN 0", "RANDOMKEY", "SHUTDOWN", "SAVE", "ACL LIST", "ACL SETUSER me on", "CLIENT LIST", "CLIENT KILL ID 1",
        "MONITOR", "DEBUG SLEEP 0", "MODULE LIST", "REPLICAOF NO ONE", "SWAPDB 0 1", "EVAL return 0",
        "GET other", "SET other 2", "DEL other", "LPUSH celery x", "HGETALL other", "RENAME embedmill other",
        "PUBLISH other x", "PSUBSCRIBE *", "SUBSCRIBE other",
    ]  # fmt: skip
    for command in forbidden:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    digest = client.script_load("return redis.call('get', 'other')")
    with pytest.raises(redis.ResponseError, match="can't access at least one of the keys"):
        client.evalsha(digest, 0)
    assert station.client().get("other") == b"1"


def test_nobody_comes_in_without_a_user(station: Station) -> None:
    for credentials in ({}, {"password": ""}, {"username": "default", "password": "x"}, {"username": "worker"}):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=station.port, retry=Retry(NoBackoff(), 0), **credentials).ping()  # type: ignore[arg-type]


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_a_user_may_do_all_that_kombu_does_with_a_message(user: str, station: Station) -> None:
    """Also what it does only after a mishap: give back, restore what was held too long, clear away."""
    url = f"redis://{user}:{station.passwords[user]}@localhost:{station.port}/0"
    with Connection(url, transport_options={"visibility_timeout": 0}) as connection:
        channel = connection.default_channel
        queue = Queue("embedmill-test", channel=channel)
        queue.declare()
        sender = Producer(channel)
        sender.publish({"n": 1}, exchange="", routing_key=queue.name)
        queue.get().requeue()
        held = queue.get()
        channel._restore(held)
        held = queue.get()
        time.sleep(0.01)
        channel.qos.restore_visible()  # takes the lock, and puts back what has been held for longer than 0 s
        assert channel._size(queue.name) == 1
        queue.get().ack()
        assert (channel._size(queue.name), station.client().hlen("unacked")) == (0, 0)
        sender.publish({"n": 2}, exchange="", routing_key=queue.name)
        assert queue.purge() == 1
        queue.delete()
        channel.sweep_bindings()


@pytest.mark.parametrize("wrong", ["authority", "host name"])
def test_a_server_that_is_not_who_it_should_be_is_refused(
    wrong: str, as_producer: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    station = as_producer
    monkeypatch.setenv("EMBEDMILL_REDIS_PATIENCE", "60")
    signer = trustme.CA() if wrong == "authority" else station.authority
    name = "localhost" if wrong == "authority" else "redis.example.org"
    with tls_before(station.port, signer.issue_cert(name)) as port:
        point_at(monkeypatch, station.url("producer", port=port), station.ca)
        # Kombu by itself, as Celery calls it in the producer and in the worker.
        celery = Celery(broker=settings().redis_url, set_as_current=False)
        celery.conf.broker_use_ssl = tls_options()
        with celery.connection() as connection, pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            connection.connect()
        began = time.monotonic()
        with ThreadPoolExecutor() as both:
            refusals = list(both.map(lambda command: run(*command, expect=1), (COMMAND, WORKER)))
    assert time.monotonic() - began < 50  # of the 60 s of patience
    for refusal in refusals:
        line = refusal.stderr.strip().splitlines()[-1]
        assert line.startswith(f"Error: Redis at rediss://localhost:{port}/0 is not trusted (")
        assert ("unable to get local issuer" if wrong == "authority" else "Hostname mismatch") in line
        assert "EMBEDMILL_REDIS_CA" in line
        assert "Traceback" not in refusal.stderr
    assert refusals[0].stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "query", ["?ssl_cert_reqs=none", "?ssl_check_hostname=false", "?ssl_ca_certs=/tmp/x", "#x", ";redis://localhost"]
)
def test_an_address_cannot_switch_the_checks_off(query: str, station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, station.url("producer") + query, station.ca)
    with pytest.raises(UserError, match="nothing after it") as refusal:
        settings()
    assert station.passwords["producer"] not in str(refusal.value)


def test_a_worker_does_not_start_with_an_address_that_switches_the_checks_off(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, station.url("worker") + "?ssl_cert_reqs=none", station.ca)
    told = run(*WORKER, expect=1)
    assert "Traceback" not in told.stderr
    assert "nothing after it" in told.stderr
    assert station.passwords["worker"] not in told.stdout + told.stderr


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:123/gra in@localhost/0", "redis://:g\nrain@localhost:x/0", "redis://u:12/grain@localhost/0",
        "redis://u:gra#in@localhost/0", "redis://u:g?rain@h/0", "redis://u:[grain@h/0", "http://u:grain@localhost",
    ],
)  # fmt: skip
def test_a_password_that_makes_no_address_is_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, url)
    with pytest.raises(UserError) as refusal:
        settings()
    assert not re.search("gra|rain|123|12/", str(refusal.value))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["wrong password", "Redis down"])
def test_a_job_that_fails_shows_no_password(
    case: str, as_producer: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "Gr/ain @2:mill"
    port = as_producer.tls_port if case == "wrong password" else free_port()
    point_at(monkeypatch, f"rediss://producer:{quote(secret, safe='')}@localhost:{port}/0", as_producer.ca)
    a_job(tmp_path / "output").save()
    secrets = [secret, quote(secret, safe=""), quote(secret)]
    log = tmp_path / "worker.log"
    with nowhere_in_a_command_line(*secrets), ThreadPoolExecutor() as both:
        told = both.map(lambda command: run(*command, expect=1), (COMMAND, ("producer", "status")))
        if case == "wrong password":
            log.write_text("".join([(refused := run(*WORKER, expect=1)).stdout, refused.stderr]))
            assert "refuses this user" in log.read_text().splitlines()[-1]
        else:
            with celery_worker(log) as worker:  # it waits for ever, without work
                wait_until(lambda: log.read_text().count("Cannot connect to rediss://producer:**@localhost") > 1)
                worker.kill()
    for one in told:
        assert one.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in one.stderr
        assert_nowhere(secrets, one.stdout, one.stderr)
    assert_nowhere(secrets, tmp_path)
