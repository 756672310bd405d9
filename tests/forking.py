"""Forked children for tests: what each returned or raised, or that it hung."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 60
"""After so many seconds a child counts as hung; it needs less than one."""


BEGINS_S = 5
"""After so many seconds a child that has not begun counts as unable to."""

FORKS = 10


class HungError(Exception):
    """A child did not end in time."""


class ChildError(Exception):
    """A child raised something; the message is its traceback."""


def fork_in_c() -> int:
    """Fork without Python's hooks, as uWSGI does.

    Such a fork copies the interpreter's lock as it is. If another thread asked for the lock at that moment, the child waits for ever
    until that thread, which it does not have, has taken it. That is Python's, and comes before any work: such a child is replaced.

    Raises:
        HungError: No child began.
    """
    for _ in range(FORKS):
        reader, writer = os.pipe()
        pid = int(ctypes.PyDLL(None).fork())
        if pid == 0:
            os.close(reader)  # the first call that releases the lock
            os.write(writer, b"1")
            os.close(writer)
            return 0
        os.close(writer)
        has_begun = bool(select.select([reader], [], [], BEGINS_S)[0])
        os.close(reader)
        if has_begun:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise HungError


class Child:
    """A forked child that runs one function and ends.

    Args:
        work: The function. What it returns must be picklable.
        fork: How to fork.
    """

    def __init__(self, work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> None:
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python 3.12: of forks beside threads, which are tried here
            self.pid = fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(work, writer)
        os.close(writer)

    def result(self) -> Any:
        """Return what the function returned.

        Raises:
            ChildError: It raised.
            HungError: It did not return in time.
        """
        answer = self._answer()
        os.waitpid(self.pid, 0)
        os.close(self._reader)
        if answer is None:
            raise HungError
        if not answer:
            raise ChildError("it ended without an answer")
        value, problem = pickle.loads(answer)  # noqa: S301  # of a child of this process
        if problem:
            raise ChildError(problem)
        return value

    def _answer(self) -> bytes | None:
        give_up, answer = time.monotonic() + TIMEOUT_S, b""
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, give_up - time.monotonic()))
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                return None
            part = os.read(self._reader, 1 << 16)
            if not part:
                return answer
            answer += part


def _run(work: Callable[[], Any], writer: int) -> None:
    """Run the function in the child, and end the process without any of the test runner's own ends."""
    try:
        try:
            answer = pickle.dumps((work(), ""))
        except BaseException:  # noqa: BLE001  # the parent raises it
            answer = pickle.dumps((None, traceback.format_exc()))
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)
