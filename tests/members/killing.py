"""A process that dies at a chosen step: after it, nothing reaches the database or the key store any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, event

from tests.members.conftest import Clinic
from voiceassist_db.keys import KeyHistory, KeyProvider, KeySet


class Killed(BaseException):
    """The process is dead."""


class Death:
    """Counts steps, which are commits, and reads and writes of the key store; at the last one the process dies.

    Args:
        at: The number of the step that does not happen; each write of the key store counts before and after it.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        self._thread = threading.current_thread()

    def step(self) -> None:
        """Go on, or die; the heartbeat's thread dies with the process, and its steps do not count."""
        if threading.current_thread() is self._thread:
            self._left -= 1
        if self._left <= 0:
            raise Killed

    @property
    def came(self) -> bool:
        """Whether the process died."""
        return self._left <= 0


class MortalProvider:
    """The key store of such a process."""

    def __init__(self, provider: KeyProvider, death: Death) -> None:
        assert isinstance(provider, KeyHistory)
        self._provider = provider
        self._history = provider
        self._death = death

    def fetch(self) -> KeySet:
        self._death.step()
        return self._provider.fetch()

    def create(self, keys: KeySet) -> None:
        self._death.step()
        self._provider.create(keys)
        self._death.step()

    def replace(self, old: KeySet, new: KeySet) -> None:
        self._death.step()
        self._provider.replace(old, new)
        self._death.step()

    def earlier(self, revision: int) -> KeySet | None:
        """Read what the key store kept; a death there is one before the next step."""
        return self._history.earlier(revision)

    def restoring(self, revision: int) -> str:
        return self._history.restoring(revision)

    def adding(self, revision: int, field: str, version: int) -> str:
        return self._history.adding(revision, field, version)


@contextmanager
def mortal(clinic: Clinic, at: int) -> Iterator[tuple[Clinic, Death]]:
    """Give a database as a process sees it that dies at a step. Its lease ends with it."""
    death = Death(at)

    def on_commit(_connection: Connection) -> None:
        death.step()

    hook = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        """Let the heartbeat end with the process: on a busy machine one falls due after the death."""
        if args.exc_type is not Killed:
            hook(args)

    event.listen(clinic.engine, "commit", on_commit)
    threading.excepthook = quiet
    try:
        yield Clinic(clinic.number, clinic.url, clinic.engine, MortalProvider(clinic.provider, death)), death
    except Killed:
        pass
    finally:
        event.remove(clinic.engine, "commit", on_commit)
        threading.excepthook = hook
    if death.came:
        clinic.end_leases()
