import contextlib
import logging
import socket
import socketserver
import threading
import time
from pathlib import Path

import psutil
import pytest
import redis

from contract.errors import UserError
from contract.job import JobKey
from contract.settings import settings
from embedmill.processes import free_port, process, redis_server
from tests.contract.samples import WholeLedger

J = JobKey("j")


def test_an_unreachable_redis_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://miller:grain@127.0.0.1:{(port := free_port())}/2")
    settings.cache_clear()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as caught:
        WholeLedger(patience=0.6).begin_attempt(J, 0)
    assert 0.5 < time.monotonic() - began < 10
    message = caught.value.format_message()
    assert f"no answer from Redis at redis://127.0.0.1:{port}/2" in message
    assert "EMBEDMILL_REDIS_URL" in message
    assert "does not answer" in caplog.text
    assert "grain" not in message + caplog.text
    assert "miller" not in message + caplog.text


def test_a_wrong_password_is_refused_and_is_not_shown(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.Redis.from_url(redis_url).config_set("requirepass", "right")
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", redis_url.replace("//", "//:grain@"))
    settings.cache_clear()
    with pytest.raises(UserError, match="refuses this user") as caught:
        WholeLedger(patience=0).queued(J)
    assert "grain" not in str(caught.value)


def test_a_redis_that_comes_back_within_the_patience_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    settings.cache_clear()
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(WholeLedger(patience=None).begin_attempt(J, 0)))
    waiting.start()
    time.sleep(0.2)
    with redis_server(port=port):
        waiting.join(20)
    assert answers == [1]


class Relay(socketserver.BaseRequestHandler):
    """Hands bytes on to the Redis at ``port``, from an address that Redis does not take for its own machine's."""

    port: int

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), source_address=("127.0.0.2", 0)) as there:
            threading.Thread(target=self._hand_on, args=(self.request, there), daemon=True).start()
            self._hand_on(there, self.request)

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


def test_protected_mode_is_named_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the option --bind, which redis_server gives, Redis protects itself.
    with redis_server(tmp_path) as url:
        executable = psutil.Process(int(redis.Redis.from_url(url).info()["process_id"])).exe()
    port = free_port()
    command = [executable, "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    monkeypatch.setattr(Relay, "port", port, raising=False)
    with (
        process(command, tmp_path / "protected.log"),
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay,
    ):
        relay.daemon_threads = True
        for _ in range(200):
            with contextlib.suppress(redis.ConnectionError):
                redis.Redis(port=port).ping()
                break
            time.sleep(0.05)
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        monkeypatch.setenv("EMBEDMILL_REDIS_URL", f"redis://127.0.0.1:{relay.server_address[1]}/0")
        settings.cache_clear()
        for ask in (WholeLedger(patience=30).jobs, WholeLedger(patience=30).connection.ping):
            began = time.monotonic()
            with pytest.raises(
                UserError, match=f":{relay.server_address[1]}/0 is in protected mode.*protected-mode no"
            ):
                ask()
            assert time.monotonic() - began < 10
        relay.shutdown()
