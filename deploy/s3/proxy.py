"""An HTTP proxy before an object store, which fails as stores do: a seeded share of requests, or all of some keys."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ANSWERS = {  # status and message, as S3 has them
    "SlowDown": (503, "Please reduce your request rate."),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "AccessDenied": (403, "Access Denied"),
}
# The last two are of the connection: closed when the request is done but not answered, or in the middle of the answer.
TRANSIENT: Sequence[str] = ("SlowDown", "InternalError", "closed", "cut")
_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Proxy(ThreadingHTTPServer):
    """On a loopback port of its own, in threads of this process."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: int, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.lock = upstream, threading.Lock()
        self.share, self.kinds, self.rng = 0.0, TRANSIENT, random.Random(seed)
        self.refused: tuple[str, str] | None = None  # what paths hold that always fail, and how
        self.seen: list[tuple[str, str]] = []  # method and path of each request
        self.faults: Counter[str] = Counter()
        self.watch: Callable[[str, str], None] = lambda method, path: None
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def failing(
        self, share: float = 0.0, kinds: Sequence[str] = TRANSIENT, refused: tuple[str, str] | None = None
    ) -> Iterator[Counter[str]]:
        """For a while; counts the faults."""
        self.faults = Counter()
        self.share, self.kinds, self.refused = share, kinds, refused
        try:
            yield self.faults
        finally:
            self.share, self.refused = 0.0, None

    @contextmanager
    def watched(self, watch: Callable[[str, str], None]) -> Iterator[None]:
        """Tell of each request before it is passed on, for a while."""
        before, self.watch = self.watch, watch
        try:
            yield
        finally:
            self.watch = before

    @contextmanager
    def recording(self) -> Iterator[list[tuple[str, str]]]:
        """The requests of a while."""
        seen = self.seen = []
        yield seen

    def quiet(self, seconds: float = 1.0) -> None:
        """Wait until nobody has asked for anything for some time."""
        n = -1
        while n < len(self.seen):
            n = len(self.seen)
            time.sleep(seconds)

    def fault(self, method: str, path: str) -> str | None:
        with self.lock:
            self.seen.append((method, path))
            if self.refused is not None and self.refused[0] in path:
                found = self.refused[1]
            elif self.rng.random() < self.share:
                found = self.rng.choice(self.kinds)
            else:
                return None
            self.faults[found] += 1
            return found

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy
    upstream: HTTPConnection | None = None

    def pass_on(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command, path)
        if fault in ANSWERS:
            status, message = ANSWERS[fault]
            self._refuse(status, f"<Error><Code>{fault}</Code><Message>{message}</Message></Error>".encode())
            return
        self.server.watch(self.command, path)
        answer = self._asked(body)
        data = answer.read()
        if fault == "closed":
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_PASSED_ON:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        if fault == "cut" and not data:
            self.close_connection = True  # with the headers unsent
            return
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = fault == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def _refuse(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _asked(self, body: bytes) -> HTTPResponse:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
        headers["Content-Length"] = str(len(body))
        for again in (True, False):  # the other side may have closed a connection that was idle
            if self.upstream is None:
                self.upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
            with suppress(*([OSError] if again else [])):
                self.upstream.request(self.command, self.path, body, headers)
                return self.upstream.getresponse()
            self.upstream.close()
            self.upstream = None
        raise ConnectionError("the store is gone")

    def finish(self) -> None:
        super().finish()
        if self.upstream is not None:
            self.upstream.close()

    def log_message(self, format: str, *args: object) -> None:
        """Tests count what they need."""
