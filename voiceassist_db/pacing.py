"""The pace of requests to a server that many processes ask, and that may be in trouble.

Whoever decides when to ask applies a pace; whoever sends the requests waits for its turn. Neither knows the other, and what is sent
outside of a pace is not delayed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

REQUESTS: Final = 2
"""How many requests may begin within :data:`PERIOD_S`."""

PERIOD_S: Final = 1.0


class Pace:
    """Lets at most two requests begin in any second."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=REQUESTS)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply it to the requests that this thread makes in the block."""
        before = _APPLIED.set(self)
        try:
            yield
        finally:
            _APPLIED.reset(before)

    def wait(self) -> None:
        """Sleep until the next request may begin."""
        if len(self._begun) == REQUESTS:
            time.sleep(max(0.0, self._begun[0] + PERIOD_S - time.monotonic()))
        self._begun.append(time.monotonic())


_APPLIED: Final[ContextVar[Pace | None]] = ContextVar("voiceassist_db.pacing", default=None)


def wait_for_turn() -> None:
    """Wait as the pace that is applied to this thread demands; without one, not at all."""
    pace = _APPLIED.get()
    if pace is not None:
        pace.wait()
