"""A proxy in front of a real key store, which counts the requests that reach it, and answers in its place when told to."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

HEALTHY: Final = "healthy"
SLOW: Final = "slow"
FAILING: Final = "failing"
FORBIDDEN: Final = "forbidden"
HANGING: Final = "hanging"

SLOW_S: Final = 0.3
_INSTEAD: Final = {
    FAILING: (500, b'{"errors":["internal error"]}'),
    FORBIDDEN: (403, b'{"errors":["permission denied"]}'),
}


class Counted:
    """The proxy.

    Attributes:
        state: One of the five above; what is forbidden is to read the secret.
        arrived: When each request came, as of ``time.monotonic()``.
        on_arrival: Called at each request, before it is answered.
        is_over: Set when nothing hangs any longer.
    """

    def __init__(self, upstream: str, server: ThreadingHTTPServer) -> None:
        self.address = f"http://127.0.0.1:{server.server_port}"
        self.state = HEALTHY
        self.arrived: list[float] = []
        self.on_arrival: Callable[[], object] = lambda: None
        self.is_over = threading.Event()
        self._upstream = urlsplit(upstream)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Return status and body for one request."""
        self.arrived.append(time.monotonic())
        self.on_arrival()
        state = self.state
        if state == SLOW:
            time.sleep(SLOW_S)
        if state == HANGING:
            self.is_over.wait()
        if state == FAILING or (state == FORBIDDEN and "/data/" in path):
            return _INSTEAD[state]
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def counted(upstream: str) -> Iterator[Counted]:
    """Start a proxy for a key store."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
            status, answer = made.answer(self.command, self.path, kept, body)
            with suppress(ConnectionError):  # the client has given up
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _handle

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Counted(upstream, server)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            made.is_over.set()
            server.shutdown()
            thread.join()
