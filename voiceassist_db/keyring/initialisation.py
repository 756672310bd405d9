"""The first use of a key store and of a database: keys are created where there are none, and never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.decision import Command, Refusal, decide
from voiceassist_db.errors import KeysNotFoundError, KeyStoreConflictError, VoiceAssistDBError, WrongKeyError
from voiceassist_db.keyring.observation import explained, fetched, observe, refused
from voiceassist_db.keyring.registry import RegisteredKey, prove, register, registered_keys
from voiceassist_db.keys import Key, KeyProvider, KeySet, Scheme


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was done.

    Attributes:
        created: Names of the keys that were made: ``key``, ``index_key``.
        registered: Key versions that this database did not know before.
        version: The current key version.
        scheme: How it is used.
    """

    created: tuple[str, ...]
    registered: tuple[int, ...]
    version: int
    scheme: Scheme


def initialise_keys(provider: KeyProvider, connection: Connection, *, scheme: Scheme = Scheme.BOUND) -> Initialised:
    """Make sure that the key store has keys and that the database has registered them; safe to repeat at any time.

    Args:
        provider: The key store.
        connection: A connection in a transaction, which the caller commits.
        scheme: How versions are used that the database does not know yet.

    Raises:
        KeysNotFoundError: The store is empty, but the database has encrypted rows' keys registered: this is the wrong store,
            or its secret was lost. A new key would not open the rows.
        WrongKeyError: The store's keys are not those that the database has registered.
    """
    created: tuple[str, ...] = ()
    found, tables = fetched(provider), []
    known = registered_keys(connection)
    if (
        not known
    ):  # only then does it matter here what rows are under: the newest registered version must be held anyway
        tables = encrypted_tables(connection)
    action = decide(observe(connection, found, tables), Command.INIT_KEYS)
    if isinstance(action, Refusal):
        raise _refused(action, provider, found, connection, known)
    keys = found
    if keys is None:
        keys, created = _create(provider)
    prove(connection, keys)  # before anything is written to a secret that may be another database's
    if keys.index_key is None:
        keys, created = _add_index_key(provider, keys)
    registered = register(connection, keys, scheme)
    return Initialised(created, tuple(registered), keys.version, registered_keys(connection)[keys.version].scheme)


def _refused(
    refusal: Refusal,
    provider: KeyProvider,
    keys: KeySet | None,
    connection: Connection,
    known: Mapping[int, RegisteredKey],
) -> VoiceAssistDBError:
    if keys is None and known:
        return KeysNotFoundError(
            f"the key store is empty, but this database has key version {max(known)} registered: a new key would not open "
            "its rows. Check VAULT_ADDR, VAULT_NAMESPACE and VOICEASSIST_DB_VAULT_PATH, or restore the secret."
        )
    if keys is None:
        return refused(refusal, provider, keys, connection)
    return WrongKeyError(explained(refusal, provider, keys, connection), version=keys.version)


def _create(provider: KeyProvider) -> tuple[KeySet, tuple[str, ...]]:
    try:
        provider.create(KeySet.generate())
    except KeyStoreConflictError:
        return provider.fetch(), ()  # somebody else was first, and theirs are the keys
    return provider.fetch(), ("key", "index_key")


def _add_index_key(provider: KeyProvider, keys: KeySet) -> tuple[KeySet, tuple[str, ...]]:
    try:
        provider.replace(keys, replace(keys, index_key=Key.generate()))
    except KeyStoreConflictError:
        if (now := provider.fetch()).index_key is None:
            raise
        return now, ()
    return provider.fetch(), ("index_key",)
