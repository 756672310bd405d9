"""A process's keyring, kept fresh."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection

from voiceassist_db.errors import KeyNotRegisteredError, KeyStoreError, WrongKeyError
from voiceassist_db.forks import ProcessLock
from voiceassist_db.keyring.keyring import Keyring
from voiceassist_db.keyring.registry import assemble
from voiceassist_db.keyring.single_flight import REFUSALS, Fetched, SingleFlight, Wait, wait_in_thread
from voiceassist_db.keys import KeyProvider
from voiceassist_db.quantities import require_number

logger = logging.getLogger(__name__)

DEFAULT_TTL_S: Final = 300.0
RETRY_AFTER_S: Final = 10.0
"""How long a key store that failed to renew live keys, or that lacks a version, is left alone before it is asked for the same."""

UNFIT_S: Final = 1.0
"""How long keys that are not this database's count as the store's, before the store is asked again."""


class KeyringSource:
    """Keeps a process's keyring fresh: fetched again after its time to live, and when a row is under an unknown version.

    Safe for threads, for tasks of event loops and for forks: nothing is locked while the key store or the database is asked. All
    callers that need keys share one fetch. One caller renews a keyring that is due, and the others go on with the one that they have.

    Args:
        provider: The key store.
        ttl_s: Age in seconds after which the keyring is fetched again.
        wait: How callers wait for a fetch; on an event loop, without blocking it.

    Attributes:
        is_known: Whether there is a keyring. Where there is none, :meth:`prefetch` comes before a connection is taken.
        deadline: Returns until when a caller that comes now may wait for the key store. A caller asks before it takes a connection, and
            gives it to the methods that follow: callers that wait for connections wait for those who hold them and wait for the store.
    """

    def __init__(self, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S, wait: Wait = wait_in_thread) -> None:
        require_number("ttl_s", ttl_s)
        if not callable(getattr(provider, "fetch", None)):
            raise ValueError(
                f"a {type(provider).__name__} is no key store: give what voiceassist_db.config.key_provider() returns"
            )
        self.provider = provider
        self._ttl_s = ttl_s
        self._flights = SingleFlight(provider, wait)
        self.deadline: Final = self._flights.deadline
        self._renewing = ProcessLock()
        self.is_known = False
        self._keyring: Keyring | None = None
        self._number = 0  # of the fetch that the keyring is of
        self._floor = 0  # a fetch up to this number is forgotten
        self._due = 0.0
        self._missing: dict[object, float] = {}
        self._unfit_until = 0.0

    def keyring(self, connection: Connection, deadline: float | None = None) -> Keyring:
        """Return the keyring, proven through this connection where it was fetched anew.

        Args:
            connection: The connection.
            deadline: Of :attr:`deadline`, before there was a connection.

        Raises:
            KeyStoreError: The store refuses; or it cannot be reached, and there is no keyring from before.
            WrongKeyError, KeyNotRegisteredError: The store's keys are not this database's.
        """
        known = self._keyring
        if known is not None and time.monotonic() < self._due:
            return known
        deadline = self._flights.rest_of(deadline)
        fetched = self._fetched(known, deadline)
        if fetched is None:
            assert known is not None  # it is what the process goes on with
            return known
        return self._proven(connection, fetched, deadline)

    def prefetch(self, deadline: float) -> None:
        """Fetch the keys where there are none, so that nobody waits for them with a connection in hand.

        Args:
            deadline: As for :meth:`keyring`.

        Raises:
            KeyStoreError: The store refuses or cannot be reached. A caller that took a connection now could wait again, with it in hand.
        """
        self._fetched(None, deadline)

    def refresh(self, connection: Connection, wanted: int, deadline: float | None = None) -> Keyring:
        """Return a keyring that has a version which the one before lacked, where the store has it.

        Args:
            connection: The connection.
            wanted: The version.
            deadline: As for :meth:`keyring`.

        Raises:
            KeyStoreError: The store cannot be asked.
        """
        return self._newer(connection, wanted, lambda keyring: keyring.scheme(wanted) is not None, deadline)

    def renew(
        self, connection: Connection, stale: Keyring, deadline: float | None = None, *, waits: bool = True
    ) -> Keyring:
        """Return a keyring after one that the database's registry has left behind.

        Args:
            connection: The connection.
            stale: The keyring that was left behind.
            deadline: As for :meth:`keyring`.
            waits: False: while the store is away, do not wait until it is back.

        Raises:
            KeyStoreError: The store cannot be asked.
        """
        held = _content(stale)
        return self._newer(connection, held, lambda keyring: _content(keyring) != held, deadline, waits=waits)

    def forget(self) -> None:
        """Fetch the keyring at its next use, whatever its age."""
        self._floor = self._flights.begun
        self._due = 0.0

    def _fetched(self, known: Keyring | None, deadline: float) -> Fetched | None:
        """Return the store's keys; None: another caller renews the keyring that is known, or the store is away."""
        if known is None:
            return self._recent() or self._flights.fetch(after=self._floor, deadline=deadline)
        if not self._renewing.acquire(blocking=False):
            return None
        try:
            return self._recent() or self._flights.fetch(after=self._floor, deadline=deadline)
        except REFUSALS:
            self._keyring, self.is_known = None, False
            raise
        except KeyStoreError as error:
            logger.warning("%s; going on with the keys that were fetched before", error)
            self._due = time.monotonic() + RETRY_AFTER_S
            return None
        finally:
            self._renewing.release()

    def _recent(self) -> Fetched | None:
        """Return what was fetched within the time to live, such as by :meth:`prefetch`."""
        last = self._flights.last(after=self._floor)
        return last if last is not None and time.monotonic() < last.at + self._ttl_s else None

    def _newer(
        self,
        connection: Connection,
        wanted: object,
        fits: Callable[[Keyring], bool],
        deadline: float | None,
        *,
        waits: bool = True,
    ) -> Keyring:
        """Return a keyring that fits, from the store as it is now; the newest one where none does.

        A fetch that was under way when this was called may have read the store before the key got there. So only one that began
        later says that the store lacks it.
        """
        known, begun = self._keyring, self._flights.begun
        if known is not None and (fits(known) or time.monotonic() < self._missing.get(wanted, 0.0)):
            return known
        deadline = self._flights.rest_of(deadline)
        number = self._number
        while True:
            fetched = self._flights.last(after=number) or self._flights.fetch(
                after=number, deadline=deadline, waits=waits
            )
            loaded = self._proven(connection, fetched, deadline, fits)
            if fits(loaded):
                return loaded
            number = fetched.number
            if number > begun:
                self._flights.pause()
                now = time.monotonic()
                self._missing = {each: until for each, until in self._missing.items() if until > now}
                self._missing[wanted] = now + RETRY_AFTER_S
                return loaded

    def _proven(
        self,
        connection: Connection,
        fetched: Fetched,
        deadline: float,
        fits: Callable[[Keyring], bool] = lambda _: True,
    ) -> Keyring:
        """Return the keyring of fetched keys, and keep it for the other callers; one of theirs, if they were faster and it fits."""
        known = self._keyring
        if known is not None and self._number >= fetched.number and fits(known):
            return known
        try:
            loaded = assemble(connection, fetched.keys)
        except (WrongKeyError, KeyNotRegisteredError):
            # A rotation may have registered its key between the two looks, or an operator may have corrected the secret.
            if time.monotonic() < self._unfit_until:
                raise
            again = self._flights.fetch(after=fetched.number, deadline=deadline)
            if again.keys.revision == fetched.keys.revision:
                self._unfit_until = time.monotonic() + UNFIT_S
                raise
            fetched = again
            loaded = assemble(connection, fetched.keys)
        known = self._keyring
        # A connection with an old snapshot cannot see the newest version's registration; others must not step back for it.
        if known is None or (
            fetched.number >= self._number
            and not loaded.current.version < known.current.version <= fetched.keys.version
        ):
            self._keyring, self.is_known, self._number = loaded, True, fetched.number
            self._due = fetched.at + self._ttl_s
        return loaded


def _content(keyring: Keyring) -> tuple[Any, ...]:
    """Return what tells a keyring from one before or after it."""
    return keyring.current.version, keyring.previous and keyring.previous.version, keyring.index_checks
