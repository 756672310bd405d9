"""What a forked process must not share with its parent: connections, pools, locks, and random numbers to come.

Two processes on one connection read each other's answers. A lock that another thread of the parent holds is never released in
the child. Two children with the same random numbers make the same ids. Owns the list of all that, and its renewal in a child.
Python's own ``os.fork()`` renews it at once. After a fork in C that runs no hook of Python, as uWSGI's by default,
:func:`follow` renews it, wherever it is called next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from weakref import WeakSet

import psycopg
import uuid_utils
from psycopg.pq import PGconn
from sqlalchemy import Engine, Pool

FORK_WAIT_S: Final = 1.0
"""How long a fork waits at most for work that it must not cut in two."""

Driver = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class ProcessLock:
    """A lock between the threads of one process: a child begins with it released, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _PROCESS.locks.add(self)

    @property
    def own(self) -> threading.Lock:
        """The lock itself, for a ``with`` statement in a thread that signals can interrupt.

        Python handles a signal before each function of its own. So an interrupt could come after :meth:`__enter__` has acquired the lock and
        before the block begins, which would release it. It cannot where the statement acquires the lock itself.
        """
        follow()
        return self._lock

    def acquire(self, *, blocking: bool = True) -> bool:
        """Acquire it, and say whether it was acquired."""
        follow()
        return self._lock.acquire(blocking=blocking)

    def release(self) -> None:
        """Release it."""
        self._lock.release()

    def renew(self) -> None:
        """Begin anew, released."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class _Unforked:
    """Work that no fork may cut in two: OpenSSL has locks of its own, which a child inherits locked, and waits for without end.

    Python's ``os.fork()`` waits until nobody is at such work, but at most :data:`FORK_WAIT_S`: who waits for a server for longer than
    that holds no lock meanwhile.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_work = self._forks = 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forks, FORK_WAIT_S)
            self._at_work += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._at_work = max(0, self._at_work - 1)  # in a child, nobody is known to be
            self._changed.notify_all()

    def before(self) -> None:
        """Wait until a fork may begin, and let no work begin."""
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._at_work, FORK_WAIT_S)

    def after_in_parent(self) -> None:
        """Let work begin again."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def renew(self) -> None:
        """Begin anew in a child."""
        self._changed = threading.Condition()
        self._at_work = self._forks = 0


UNFORKED: Final = _Unforked()
"""Entered for the time of work that must not be cut in two by a fork."""


class _Process:
    """What this process has, all by weak references.

    Attributes:
        pid: Its id, as of the last renewal.
        since: Time (as of ``time.time()``) at which it was first seen here; whatever is older may be its parent's.
        connections: The connections that it opened, or that were found to be its own.
        engines: The engines whose pools hold such connections.
        locks: Its locks.
        inherited: The sockets that were open when it was forked, by device and inode.
        renewing: Held by the thread that renews all of this.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.since = time.time()
        self.connections: WeakSet[Driver] = WeakSet()
        self.engines: WeakSet[Engine] = WeakSet()
        self.locks: WeakSet[ProcessLock] = WeakSet()
        self.inherited: frozenset[tuple[int, int]] = frozenset()
        self.renewing = threading.Lock()

    def renew(self) -> None:
        """Make a child's of what was inherited: dead connections, empty pools, released locks, other random numbers."""
        uuid_utils.reseed_rng()
        self.inherited = _open_sockets()
        for lock in list(self.locks):
            lock.renew()
        for connection in list(self.connections):
            sever(connection)
        self.connections.clear()
        engines = [(engine, engine.pool) for engine in list(self.engines)]
        pools: dict[Pool, Pool] = {}  # engines that shared a pool go on doing so
        for engine, pool in engines:
            if pool not in pools:
                pools[pool] = pool.recreate()
            engine.pool = pools[pool]
        self.since = time.time()
        self.pid = os.getpid()  # the last step: other threads wait for it


_PROCESS: Final = _Process()


def own(connection: Driver) -> None:
    """Remember a connection that this process opened, and that no child of it may use."""
    _PROCESS.connections.add(connection)


def guard(engine: Engine) -> None:
    """Give an engine an empty pool in each child."""
    _PROCESS.engines.add(engine)


def may_be_inherited(opened: float) -> bool:
    """Say whether something that nobody remembered at the time may have been opened by another process.

    Args:
        opened: When it was opened, as of ``time.time()``.
    """
    return opened <= _PROCESS.since


def is_inherited(connection: Driver) -> bool:
    """Say whether a connection that somebody else opened, and that is new to us, was open when this process was forked."""
    with contextlib.suppress(psycopg.Error, OSError):
        return _identity(connection.pgconn.socket) in _PROCESS.inherited
    return False


def follow() -> None:
    """Renew what was inherited, if this process was forked without Python's hooks and this is the first call in it."""
    if os.getpid() != _PROCESS.pid:
        with _PROCESS.renewing:
            if os.getpid() != _PROCESS.pid:
                _PROCESS.renew()


def sever(connection: Driver) -> None:
    """Make a connection unusable in this process, without a byte to its server, so that its owner can go on.

    Its descriptor becomes a socket whose other end is closed, so nothing that still has libpq's connection reaches the server:
    no cursor, no Terminate of a ``close()``, no end of TLS. The driver then finds that its connection is closed, which every use
    of it checks first. Nothing waits for its lock, which another thread of the parent may hold.
    """
    with contextlib.suppress(psycopg.Error, OSError):
        dead, other_end = socket.socketpair()
        other_end.close()
        with dead:
            os.dup2(dead.fileno(), connection.pgconn.socket, inheritable=False)
    connection.pgconn = _closed()
    if isinstance(connection, psycopg.Connection):
        connection.lock = threading.Lock()
    else:
        connection.lock = asyncio.Lock()


def is_severed(connection: object) -> bool:
    """Say whether a connection belongs to another process."""
    return getattr(connection, "pgconn", None) is _closed()


def _open_sockets() -> frozenset[tuple[int, int]]:
    found: set[tuple[int, int] | None] = set()
    with contextlib.suppress(OSError):
        for each in Path("/dev/fd").iterdir():
            with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                found.add(_identity(int(each.name)))
    return frozenset(each for each in found if each is not None)


def _identity(descriptor: int) -> tuple[int, int] | None:
    """Return what tells a socket from every other one; None for another kind of file."""
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _closed() -> Any:
    if not _CLOSED:
        pgconn = PGconn.connect_start(b"none")  # not a connection string: nothing is connected to
        pgconn.finish()
        _CLOSED.append(pgconn)
    return _CLOSED[0]


_CLOSED: Final[list[Any]] = []


def _in_child() -> None:
    UNFORKED.renew()
    _PROCESS.renewing = threading.Lock()
    _PROCESS.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=UNFORKED.before, after_in_parent=UNFORKED.after_in_parent, after_in_child=_in_child)
