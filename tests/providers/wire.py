"""A server on loopback that answers with any bytes at all: real Vault and OpenBao cannot be made to answer wrongly."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

import trustme

Bytes = Iterable[bytes]

PAUSE_S = 0.02
"""Seconds between two parts of a slow answer."""


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """Return an HTTP answer with the right length, unless another one is given."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    if not any(each.lower().startswith("transfer-encoding") for each in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def slowly(answer: Bytes) -> Bytes:
    """Wait before each part, for as long as a client waits for a single one."""
    for part in answer:
        time.sleep(PAUSE_S)
        yield part


class Wire:
    """Reads one request of each connection, and answers it with the parts that a function gives for it.

    Args:
        answer: The function.
        authority: Signs the server's certificate. None: it does not speak TLS.
        host: Address to listen on.

    Attributes:
        requests: What was received, one item for each connection.
        sent_bytes: How much was sent in all.
        address: URL of the server.
    """

    def __init__(
        self, answer: Callable[[bytes], Bytes], *, authority: trustme.CA | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.sent_bytes = 0
        self._context: ssl.SSLContext | None = None
        if authority is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(host).configure_cert(self._context)
        self._listener = socket.create_server((host, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{'https' if authority else 'http'}://{host}:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._context is not None:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            request = _request(connection)
            self.requests.append(request)
            if request:
                for part in self.answer(request):
                    connection.sendall(part)
                    self.sent_bytes += len(part)


def _request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received and (part := connection.recv(65536)):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
    while left > 0 and (part := connection.recv(65536)):
        received += part
        left -= len(part)
    return received
