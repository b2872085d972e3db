"""A proxy in front of an S3 server that slows, loses or replaces the answers that a test or a fault names."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """By lower-case names."""
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the client gets."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Forward = Callable[[Request], Answer]
"""Asks the server behind the proxy."""

Fault = Callable[[Request, Forward], Answer | None]
"""Answers in the server's place; None closes the connection without an answer."""


def error(status: int, code: str, more: str = "", headers: dict[str, str] | None = None) -> Fault:
    """An error in S3's own form."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>words</Message>{more}</Error>'
    return lambda request, forward: Answer(status, body.encode(), headers or {})


def lose_answer(request: Request, forward: Forward) -> None:
    """The server does what it was asked to do, and nobody hears of it."""
    forward(request)


def lose_request(request: Request, forward: Forward) -> None:
    """The connection breaks before the server has heard anything."""


def delay(seconds: float) -> Fault:
    """The server answers late."""

    def answer(request: Request, forward: Forward) -> Answer:
        time.sleep(seconds)
        return forward(request)

    return answer


@dataclass
class Proxy:
    """What came, and what is to go wrong."""

    url: str
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    """A method, and the fault of the next request with it. Each is used once."""

    def methods(self) -> list[str]:
        return [request.method for request in self.requests]

    def fault_of(self, method: str) -> Fault | None:
        """Take the fault of a request that has just come; None where nothing is to go wrong."""
        for place, (wanted, fault) in enumerate(self.faults):
            if wanted == method:
                del self.faults[place]
                return fault
        return None


@contextlib.contextmanager
def faulty(server: str) -> Iterator[Proxy]:
    """A proxy in front of the server with this URL."""
    with _Server(server) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield listening.proxy
        finally:
            listening.shutdown()


class _Server(ThreadingHTTPServer):
    """Listens on a free port.

    Args:
        behind: the URL of the server that requests are passed on to.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._behind = urlsplit(behind).netloc
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_port}")

    def forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(self._behind, timeout=30)
        with contextlib.closing(connection):
            connection.request(request.method, request.path, request.body, request.headers)
            came = connection.getresponse()
            return Answer(came.status, came.read(), dict(came.getheaders()))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.proxy.requests.append(request)
        fault = self.server.proxy.fault_of(self.command)
        answer = fault(request, self.server.forward) if fault else self.server.forward(request)
        self.close_connection = answer is None
        if answer:
            with contextlib.suppress(OSError):  # the client did not wait
                self.send(answer)

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _PROXYS_OWN}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(answer.body))
        else:
            headers |= {name: size for name, size in answer.headers.items() if name.lower() == "content-length"}
            headers.setdefault("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: ``requests`` has it all."""


_PROXYS_OWN = {"content-length", "transfer-encoding", "connection", "date", "server"}
