"""A pool of connections that an interrupt leaves whole, wherever in the pool's own code it comes.

SQLAlchemy's ``QueuePool`` counts its connections up and down. Python runs a signal handler between any two steps, and an exception
that a handler raises between such a step and the one that belongs to it leaves the count wrong for ever: the pool shrinks by one
connection. Its queue can even stay locked, and then all other threads hang. Here nothing is counted and nothing is locked. The
connections of a pool are those that exist, and what an interrupt drops exists no longer.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, QueuePool
from sqlalchemy.util.queue import Empty, QueueCommon

from voiceassist_db.tracebacks import forget_locals

_SLOT: Final = "voiceassist_db.slot"

LOOK_AGAIN_S: Final = 0.1
"""How long a caller that waits for a connection sleeps at most: what an interrupt dropped wakes nobody."""

COLLECT_AFTER_S: Final = 1.0
"""How long a caller waits before it looks for connections in garbage, where an interrupt may have left them."""

COLLECT_EVERY_S: Final = 10.0
"""How often a pool does so at most: it takes the time of a full collection."""


class _Slot:
    """The place of one connection among those that a pool may have. It ends with the entry that has it, whatever ends that."""

    __slots__ = ("__weakref__",)


class _Idle(QueueCommon[ConnectionPoolEntry]):
    """The entries that nobody uses. Each method is one step of C, which no signal handler divides."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self.entries: deque[ConnectionPoolEntry] = deque()
        self.take: Callable[[], ConnectionPoolEntry] = self.entries.pop if use_lifo else self.entries.popleft

    def qsize(self) -> int:
        return len(self.entries)

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        """Take an entry, without waiting for one: for ``dispose``."""
        try:
            return self.take()
        except IndexError:
            raise Empty from None


class WholePool(QueuePool):
    """A ``QueuePool`` that has all of its connections after any interrupt. It takes the same arguments."""

    _queue_class = _Idle
    _pool: _Idle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Weak references, in the order in which the slots began. One step of C adds one, and another one removes it.
        self._slots: dict[weakref.ref[_Slot], None] = {}
        self._waiting: deque[threading.Lock] = deque()
        self._collected_at = 0.0

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out. If that fails, the traceback keeps no entry alive."""
        ambient = sys.exception()
        try:
            return super().connect()
        except BaseException as error:
            forget_locals(error, ambient=ambient)
            raise

    def overflow(self) -> int:
        """Return how many connections there are beyond the pool's size; below zero, how many more it would keep."""
        return len(self._slots) - self.size() if self.size() else 0

    def checkedout(self) -> int:
        """Return how many connections are in use."""
        return len(self._slots) - self.checkedin()

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._pool.take()
        except IndexError:
            pass
        return self._made() or self._awaited()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        idle = self._pool
        idle.entries.append(record)
        del record
        if 0 < idle.maxsize < len(idle.entries):
            with contextlib.suppress(Empty):
                idle.get().close()
        if self._waiting:
            self._wake()

    def _made(self) -> ConnectionPoolEntry | None:
        """Return a new entry; None where there are as many as there may be."""
        slot = _Slot()
        mine = weakref.ref(
            slot, self._slots.pop
        )  # called by Python's memory management, which no signal handler interrupts
        self._slots[mine] = None
        if self._max_overflow > -1:
            most = self.size() + self._max_overflow
            # Of several threads that come at once, the first ones stay.
            if len(self._slots) > most and mine not in list(self._slots)[:most]:
                return None
        try:
            record = self._create_connection()
        except BaseException:
            del slot  # the traceback would keep it
            raise
        info = record.record_info
        assert info is not None  # an entry has one
        info[_SLOT] = slot
        return record

    def _awaited(self) -> ConnectionPoolEntry:
        """Wait until an entry comes back, or there is room for a new one."""
        began = time.monotonic()
        gate = threading.Lock()
        gate.acquire()
        is_listed = False
        try:
            while True:
                if not is_listed:
                    self._waiting.append(gate)
                    is_listed = True
                with contextlib.suppress(Empty):
                    return self._pool.get()
                if (made := self._made()) is not None:
                    return made
                left_s = began + self._timeout - time.monotonic()
                if self._collects(began, left_s):
                    continue
                if left_s <= 0:
                    raise PoolTimeoutError(
                        f"QueuePool limit of size {self.size()} overflow {self.overflow()} reached, connection timed out, timeout "
                        f"{self._timeout:0.2f}",
                        code="3o7r",
                    )
                is_listed = not gate.acquire(timeout=min(left_s, LOOK_AGAIN_S))
        finally:
            try:
                self._waiting.remove(gate)
            except ValueError:
                self._wake()  # what woke this caller is for the next one: this one has another connection, or none

    def _collects(self, began: float, left_s: float) -> bool:
        """Collect garbage where a caller waits for long, or else would fail; say whether that was done."""
        now = time.monotonic()
        if (left_s > 0 and now < began + COLLECT_AFTER_S) or now < self._collected_at + COLLECT_EVERY_S:
            return False
        self._collected_at = now
        gc.collect()
        return True

    def _wake(self) -> None:
        with contextlib.suppress(IndexError):
            self._waiting.popleft().release()
