"""The keys that a process may use now: what the key store holds, proven against what the database has registered.

Owns the registry of key versions (``encryption_keys``, ``index_keys``), the immutable :class:`Keyring`, and
:class:`KeyringSource`, which keeps one fresh. Writes no ciphertext and no key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select, update

from voiceassist_db.errors import (
    KeyNotRegisteredError,
    KeyStoreError,
    KeyStoreSealedError,
    KeyStoreUnavailableError,
    MissingKeyError,
    WrongKeyError,
)
from voiceassist_db.execution import execute
from voiceassist_db.keys import Key, KeyProvider, KeySet, Scheme
from voiceassist_db.models import EncryptionKeyRow, IndexKeyRow

logger = logging.getLogger(__name__)

DEFAULT_TTL_S: Final = 300.0
RETRY_AFTER_S: Final = 10.0
"""How long an unreachable key store is left alone, while keys that were fetched before stay in use."""


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One live version of the encryption key."""

    version: int
    scheme: Scheme
    key: Key


@dataclass(frozen=True, slots=True, eq=False)
class Keyring:
    """The live keys of one moment. Immutable: a statement takes all its keys and versions from one keyring.

    Attributes:
        current: The version that new rows are written under.
        previous: The version before it, while rows may still be under it.
        index_keys: Roots of the blind-index keys, the one to write with first; empty where the store holds none.
    """

    current: KeyVersion
    previous: KeyVersion | None = None
    index_keys: tuple[Key, ...] = ()
    _column_keys: dict[tuple[int, str], Key] = field(default_factory=dict, repr=False)
    _index_column_keys: dict[str, tuple[Key, ...]] = field(default_factory=dict, repr=False)

    def scheme(self, version: int) -> Scheme | None:
        """Return the scheme of a live version; None where the version is not live."""
        if version == self.current.version:
            return self.current.scheme
        if self.previous is not None and version == self.previous.version:
            return self.previous.scheme
        return None

    def column_key(self, version: KeyVersion, context: str) -> Key:
        """Return the key that one column is encrypted with under a version."""
        if version.scheme is Scheme.DIRECT:
            return version.key
        known = self._column_keys.get((version.version, context))
        if known is None:
            known = self._column_keys[version.version, context] = version.key.derive(context)
        return known

    def index_column_keys(self, context: str) -> tuple[Key, ...]:
        """Return the keys of one column's blind index, the one to write with first.

        Raises:
            MissingKeyError: The key store holds no index key.
        """
        if not self.index_keys:
            raise MissingKeyError(
                "the key store holds no index_key, without which nothing can be searched or kept unique: run "
                "`voiceassist-db init-keys`, which adds it beside the key"
            )
        known = self._index_column_keys.get(context)
        if known is None:
            known = self._index_column_keys[context] = tuple(key.derive(context) for key in self.index_keys)
        return known


@dataclass(frozen=True, slots=True)
class RegisteredKey:
    """A row of ``encryption_keys``."""

    version: int
    scheme: Scheme
    state: str
    check_value: bytes
    created_at: datetime
    replaced_at: datetime | None
    retired_at: datetime | None


def registered_keys(connection: Connection) -> dict[int, RegisteredKey]:
    """Read the registry of key versions."""
    table = EncryptionKeyRow.__table__
    rows = execute(connection, select(table).order_by(table.c.version), table=table.name)
    return {
        row.version: RegisteredKey(
            row.version,
            Scheme(row.scheme),
            row.state,
            row.check_value,
            row.created_at,
            row.replaced_at,
            row.retired_at,
        )
        for row in rows
    }


def register(connection: Connection, keys: KeySet, scheme: Scheme = Scheme.BOUND) -> list[int]:
    """Record the check values of a store's keys that the database does not know yet; the newest becomes the current one.

    Args:
        connection: A connection in a transaction, which the caller commits.
        keys: What the store holds.
        scheme: How new versions are used.

    Returns:
        The versions that were added.

    Raises:
        WrongKeyError: A version is registered already, with another key.
    """
    known = registered_keys(connection)
    added = []
    table = EncryptionKeyRow.__table__
    for version, key in keys.versions().items():
        if version in known:
            _prove(version, key, known)
            continue
        state = "current" if version == keys.version else "previous"
        values = {"version": version, "scheme": scheme.value, "state": state, "check_value": key.check_value()}
        execute(connection, insert(table).values(values), table=table.name)
        added.append(version)
    if keys.version in added:
        demote = update(table).where(table.c.version < keys.version, table.c.state == "current")
        execute(connection, demote.values(state="previous", replaced_at=func.now()), table=table.name)
    _register_index_keys(connection, keys)
    return added


def _index_keys(keys: KeySet) -> tuple[Key, ...]:
    return tuple(key for key in (keys.index_key, keys.previous_index_key) if key is not None)


def _register_index_keys(connection: Connection, keys: KeySet) -> None:
    table = IndexKeyRow.__table__
    known = _registered_index_keys(connection)
    for key in _index_keys(keys):
        if key.check_value() in known:
            continue
        if known and keys.previous_index_key is None:
            raise _wrong_index_key()
        execute(connection, insert(table).values(check_value=key.check_value()), table=table.name)


def _registered_index_keys(connection: Connection) -> set[bytes]:
    table = IndexKeyRow.__table__
    return {row.check_value for row in execute(connection, select(table.c.check_value), table=table.name)}


def _prove(version: int, key: Key, known: Mapping[int, RegisteredKey]) -> None:
    if key.check_value() != known[version].check_value:
        raise WrongKeyError(
            f"the key store's key of version {version} is not the key that this database was encrypted with. Nothing was "
            "read or written. Check VAULT_ADDR, VAULT_NAMESPACE and VOICEASSIST_DB_VAULT_PATH, and DATABASE_URL; if the "
            "secret was overwritten, restore its earlier version (`vault kv rollback`).",
            version=version,
        )


def _wrong_index_key() -> WrongKeyError:
    return WrongKeyError(
        "the key store's index_key is not the one that this database's blind indexes were made with: searches would find "
        "nothing and duplicates would go unseen. Restore the secret's earlier version (`vault kv rollback`).",
        version=0,
    )


def assemble(connection: Connection, keys: KeySet) -> Keyring:
    """Prove a store's keys against the registry, and return them as a keyring.

    A version that is in the store but not registered yet (a rotation has just begun, or died right there) is left out, so
    that nothing is ever written under a key that the database does not know.

    Raises:
        WrongKeyError: A key is not the one that is registered for its version.
        KeyNotRegisteredError: None of the store's versions is registered.
    """
    known = registered_keys(connection)
    live = []
    for version, key in keys.versions().items():
        if version in known:
            _prove(version, key, known)
            live.append(KeyVersion(version, known[version].scheme, key))
    if not live:
        raise KeyNotRegisteredError(
            f"key version {keys.version} is not registered in this database: run `voiceassist-db init-keys` once"
            + (f" (it knows {', '.join(map(str, known))}: is this the right key store?)" if known else ""),
            version=keys.version,
        )
    index_keys = _index_keys(keys)
    registered = _registered_index_keys(connection) if index_keys else set()
    if any(key.check_value() not in registered for key in index_keys):
        raise _wrong_index_key()
    return Keyring(live[0], live[1] if len(live) > 1 else None, index_keys)


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
