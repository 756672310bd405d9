"""How a signal ends a command that writes: after what is under way, so that nothing is undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from voiceassist_db.cli.output import say


class _Flag(threading.Event):
    """An event that a signal's handler may set, at any moment: it takes no lock. It can be asked, and not waited for.

    The event of ``threading`` takes a lock. A second signal that interrupts its ``set`` would wait for that lock for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False

    def set(self) -> None:
        """Set it."""
        self._is_set = True

    def is_set(self) -> bool:
        """Say whether it is set."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> NoReturn:
        """Refuse: nothing would end the wait."""
        raise NotImplementedError


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one ends the process as it would any other."""
    stop = _Flag()
    before: dict[int, Any] = {}

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)
        say("stopping after the batches that are under way; once more to stop at once", err=True)

    number: int
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
