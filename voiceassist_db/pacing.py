"""The pace of requests to a server that many processes ask, and that may be in trouble.

Whoever decides when to ask applies a pace; whoever sends the requests waits for its turn. Neither knows the other, and what is sent
outside of a pace is not delayed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

REQUESTS: Final = 2
"""How many requests may arrive within :data:`PERIOD_S`."""

PERIOD_S: Final = 1.0


class Pace:
    """Lets the server receive at most two requests in any second. The requests must be made one after another.

    A request begins a second after the one before the last ended. Its beginning would not do: the server receives a request some
    time later, and so could receive a third one within the same second.
    """

    def __init__(self) -> None:
        self._ended: deque[float] = deque(maxlen=REQUESTS)

    def free_at(self) -> float:
        """Return from when on :data:`REQUESTS` requests may begin at once, as of ``time.monotonic()``."""
        return self._ended[-1] + PERIOD_S if self._ended else 0.0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply it to the requests that this thread makes in the block."""
        before = _APPLIED.set(self)
        try:
            yield
        finally:
            _APPLIED.reset(before)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Sleep until the next request may begin. The block is the request."""
        if len(self._ended) == REQUESTS and (wait_s := self._ended[0] + PERIOD_S - time.monotonic()) > 0:
            time.sleep(wait_s)
        try:
            yield
        finally:
            self._ended.append(time.monotonic())


_APPLIED: Final[ContextVar[Pace | None]] = ContextVar("voiceassist_db.pacing", default=None)


@contextmanager
def turn() -> Iterator[None]:
    """Wait as the pace that is applied to this thread demands; without one, not at all. The block is the request."""
    pace = _APPLIED.get()
    with nullcontext() if pace is None else pace.turn():
        yield
