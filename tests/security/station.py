"""A Redis with users and TLS, and a worker behind it."""

import asyncio
import contextlib
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import redis
import trustme
from celery import Celery

from contract.engine import EngineSpec
from contract.job import Job
from contract.redis.keys import JOBS, queue_of
from contract.redis.messages import TASK, direct_queue
from contract.settings import settings
from tests.commands import wait_until
from tests.conftest import JARGON
from tests.contract.samples import a_job

ROOT = Path(__file__).parents[2]


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


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, ca: Path | None = None) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
    if ca:
        monkeypatch.setenv("EMBEDMILL_REDIS_CA", str(ca))
    else:
        monkeypatch.delenv("EMBEDMILL_REDIS_CA", raising=False)
    settings.cache_clear()


COMMAND = ("producer", "--dataset", JARGON, "--text-column", "text", "--batch-rows", 20)


def open_job(station: Station, spec: EngineSpec, folder: Path) -> Job:
    """A job whose queue the worker takes messages from, announced by whoever may write into Redis."""
    job = a_job(folder, engine=spec.name, fingerprint=spec.fingerprint)
    job.save()
    station.client().set(f"embedmill:{job.key}:job", job.model_dump_json())
    station.client().zadd(JOBS, {job.key: 0})
    return job


def send(station: Station, job: Job, *arguments: object) -> None:
    """A message in this job's queue."""
    with Celery(broker=f"redis://admin:admin@localhost:{station.port}/0", set_as_current=False) as celery:
        celery.send_task(TASK, args=arguments, queue=direct_queue(queue_of(job.key)))
