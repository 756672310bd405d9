"""A process's keyring, kept fresh."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from sqlalchemy import Connection

from voiceassist_db.errors import KeyStoreError, KeyStoreSealedError, KeyStoreUnavailableError
from voiceassist_db.keyring.keyring import Keyring
from voiceassist_db.keyring.registry import assemble
from voiceassist_db.keys import KeyProvider, KeySet

logger = logging.getLogger(__name__)

DEFAULT_TTL_S: Final = 300.0
RETRY_AFTER_S: Final = 10.0
"""How long an unreachable key store is left alone, while keys that were fetched before stay in use."""


class KeyringSource:
    """Keeps a process's keyring fresh: fetched again after its time to live, and when a row is under an unknown version.

    Thread-safe. One thread fetches; the others go on with the keyring that they have. While the key store cannot be reached,
    keys that were fetched before stay in use, with a warning; a store that answers and refuses is an error.

    Args:
        provider: The key store.
        ttl_s: Age in seconds after which the keyring is fetched again.
    """

    def __init__(self, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self.provider = provider
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._keyring: Keyring | None = None
        self._fetched: KeySet | None = None
        self._due = 0.0

    def is_due(self) -> bool:
        """Say whether the next use will ask the key store."""
        return self._fetched is None and time.monotonic() >= self._due

    def prefetch(self) -> None:
        """Ask the key store now if it is due, so that the next use, perhaps on an event loop, need not wait for it."""
        with self._lock:
            if self.is_due():
                self._fetched = self._fetch()

    def keyring(self, connection: Connection) -> Keyring:
        """Return the keyring, fetched through this connection where it is due."""
        known = self._keyring
        if known is not None and self._fetched is None and time.monotonic() < self._due:
            return known
        if not self._lock.acquire(blocking=known is None):
            assert known is not None  # else the acquisition would have waited
            return known
        try:
            if self._keyring is not None and self._fetched is None and time.monotonic() < self._due:
                return self._keyring
            return self._load(connection)
        finally:
            self._lock.release()

    def refresh(self, connection: Connection, unlike: Keyring) -> Keyring:
        """Return a keyring newer than ``unlike``, which proved to be out of date; asks the store unless another thread did."""
        with self._lock:
            if self._keyring is not None and self._keyring is not unlike:
                return self._keyring
            self._fetched = None
            self._due = 0.0
            return self._load(connection)

    def _load(self, connection: Connection) -> Keyring:
        fetched = self._fetched if self._fetched is not None else self._fetch()
        if fetched is None:
            assert self._keyring is not None  # _fetch raises where there is nothing to fall back on
            return self._keyring
        self._keyring = assemble(connection, fetched)
        self._fetched = None
        self._due = time.monotonic() + self._ttl_s
        return self._keyring

    def _fetch(self) -> KeySet | None:
        try:
            return self.provider.fetch()
        except (KeyStoreUnavailableError, KeyStoreSealedError) as error:
            if self._keyring is None:
                raise
            logger.warning("%s; going on with the keys that were fetched before", error)
            self._due = time.monotonic() + RETRY_AFTER_S
            return None
        except KeyStoreError:
            self._keyring = None
            raise
