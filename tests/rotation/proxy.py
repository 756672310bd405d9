"""A TCP proxy on loopback that cuts a connection where a client's own words say so: what a broken network does, to the byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CHUNK_BYTES = 1 << 16


@dataclass
class Point:
    """A message of a client: what has happened to the server when it comes there, or what becomes of its connection.

    Attributes:
        words: What the message holds; empty for any.
        is_answer: Whether a message of the server is meant. Something must happen then, before the client has it.
        after: What an earlier message on the same connection must have held; empty for none.
        skipped: How many such messages are let through before.
        happens: Called before the message is forwarded; then it is forwarded, and answered.
        is_forwarded: Where nothing happens, whether the message reaches the server before the connection is cut.
        met: The message, once it came.
    """

    words: bytes = b""
    after: bytes = b""
    skipped: int = 0
    happens: Callable[[], None] | None = None
    is_forwarded: bool = False
    is_answer: bool = False
    is_past: bool = False
    met: bytes = b""


class Proxy:
    """Forwards connections to a server, up to a point.

    Args:
        host: The server's address.
        port: The server's port.
        listens_on: An address of this machine.

    Attributes:
        port: Where it listens.
        point: The point that is waited for; None to forward all.
    """

    def __init__(self, host: str, port: int, *, listens_on: str = "127.0.0.1") -> None:
        self._server = (host, port)
        self._listener = socket.create_server((listens_on, 0))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        self.point: Point | None = None
        self._threads: list[threading.Thread] = []
        self._in_thread(self._accept)

    def close(self) -> None:
        """Cut all connections, and listen no more."""
        _shut(self._listener)
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for each in self._sockets:
                _shut(each)

    def _in_thread(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    self._sockets += [client, server]
                is_mute = threading.Event()
                self._in_thread(self._ask, client, server, is_mute)
                self._in_thread(self._answer, client, server, is_mute)

    def _ask(self, client: socket.socket, server: socket.socket, is_mute: threading.Event) -> None:
        said = b""
        for message in _messages(client):
            said += message
            if (point := self._is_at_point(message, said)) is not None:
                if point.happens is not None:
                    point.happens()
                elif point.is_forwarded:
                    is_mute.set()
                else:
                    break
            with contextlib.suppress(OSError):
                server.sendall(message)
        _shut(client)
        _shut(server)

    def _answer(self, client: socket.socket, server: socket.socket, is_mute: threading.Event) -> None:
        for message in _messages(server):
            if is_mute.is_set():
                break
            if (point := self._is_at_point(message, message, is_answer=True)) is not None and point.happens is not None:
                point.happens()
            with contextlib.suppress(OSError):
                client.sendall(message)
        _shut(client)
        _shut(server)

    def _is_at_point(self, message: bytes, said: bytes, *, is_answer: bool = False) -> Point | None:
        with self._lock:
            point = self.point
            if point is None or point.is_past or point.is_answer is not is_answer:
                return None
            if point.words not in message or point.after not in said:
                return None
            point.skipped -= 1
            if point.skipped >= 0:
                return None
            point.is_past, point.met = True, message
            return point


def _messages(connection: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while message := connection.recv(CHUNK_BYTES):
            yield message


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy to a server."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
