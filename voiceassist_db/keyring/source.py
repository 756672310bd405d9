"""A process's keyring, kept fresh."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection

from voiceassist_db.errors import (
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreError,
    KeyStoreForbiddenError,
    MalformedKeyError,
    WrongKeyError,
)
from voiceassist_db.forks import ProcessLock
from voiceassist_db.keyring.keyring import Keyring
from voiceassist_db.keyring.registry import assemble
from voiceassist_db.keys import KeyProvider, KeySet

logger = logging.getLogger(__name__)

DEFAULT_TTL_S: Final = 300.0
RETRY_AFTER_S: Final = 10.0
"""How long a key store that failed, or that lacks a version, is left alone before it is asked for the same again."""

REFUSALS: Final = (
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreAuthenticationError,
    KeyStoreForbiddenError,
    MalformedKeyError,
)
"""A store that answers and says no. Every other failure is an outage, which keys that were fetched before outlast."""

Fetch = Callable[[Callable[[], KeySet]], KeySet]


class KeyringSource:
    """Keeps a process's keyring fresh: fetched again after its time to live, and when a row is under an unknown version.

    Safe for threads and for tasks of one event loop: nothing is locked while the key store or the database is asked. One
    caller renews a keyring that is due, and the others go on with the one that they have.

    Args:
        provider: The key store.
        ttl_s: Age in seconds after which the keyring is fetched again.
        fetch: How to call the provider; on an event loop, in a thread.
    """

    def __init__(
        self, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S, fetch: Fetch = lambda fetch: fetch()
    ) -> None:
        self.provider = provider
        self._ttl_s = ttl_s
        self._call = fetch
        self._renewing = ProcessLock()
        self._keyring: Keyring | None = None
        self._due = 0.0
        self._failure: tuple[float, type[KeyStoreError], str] | None = None
        self._missing: dict[int, float] = {}

    def keyring(self, connection: Connection) -> Keyring:
        """Return the keyring, fetched through this connection where it is due.

        Raises:
            KeyStoreError: The store refuses; or it cannot be reached, and there is no keyring from before.
            WrongKeyError, KeyNotRegisteredError: The store's keys are not this database's.
        """
        known = self._keyring
        if known is None:
            return self._load(connection)
        if time.monotonic() < self._due or not self._renewing.acquire(blocking=False):
            return known
        try:
            return self._load(connection)
        except REFUSALS:
            self._keyring = None
            raise
        except KeyStoreError as error:
            logger.warning("%s; going on with the keys that were fetched before", error)
            self._due = time.monotonic() + RETRY_AFTER_S
            return known
        finally:
            self._renewing.release()

    def refresh(self, connection: Connection, wanted: int) -> Keyring:
        """Return a keyring that has a version which the one before lacked, where the store has it.

        Raises:
            KeyStoreError: The store cannot be asked.
        """
        known = self._keyring
        now = time.monotonic()
        if known is not None and (known.scheme(wanted) or now < self._missing.get(wanted, 0.0)):
            return known
        if self._failure is not None and now < self._failure[0]:
            raise self._failure[1](self._failure[2])
        loaded = self._load(connection)
        if loaded.scheme(wanted) is None:
            self._missing[wanted] = time.monotonic() + RETRY_AFTER_S
        return loaded

    def renew(self, connection: Connection, stale: Keyring) -> Keyring:
        """Return a keyring after one that the database's registry has left behind.

        Raises:
            KeyStoreError: The store cannot be asked.
        """
        known = self._keyring
        if known is not None and known is not stale:
            return known
        if self._failure is not None and time.monotonic() < self._failure[0]:
            raise self._failure[1](self._failure[2])
        return self._load(connection)

    def forget(self) -> None:
        """Fetch the keyring at its next use, whatever its age."""
        self._due = 0.0

    def _load(self, connection: Connection) -> Keyring:
        try:
            fetched = self._call(self.provider.fetch)
        except KeyStoreError as error:
            # Not the error itself: raised again and again it would gather the frames of every request that met it.
            self._failure = (time.monotonic() + RETRY_AFTER_S, type(error), str(error))
            raise
        try:
            loaded = assemble(connection, fetched)
        except WrongKeyError:
            # A rotation may have registered its key between the two looks.
            again = self._call(self.provider.fetch)
            if again.revision == fetched.revision:
                raise
            fetched = again
            loaded = assemble(connection, fetched)
        known = self._keyring
        # A connection with an old snapshot cannot see the newest version's registration; others must not step back for it.
        if known is None or not loaded.current.version < known.current.version <= fetched.version:
            self._keyring = loaded
            self._due = time.monotonic() + self._ttl_s
        return loaded
