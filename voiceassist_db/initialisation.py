"""The first use of a key store and of a database: keys are created where there are none, and never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from sqlalchemy import Connection

from voiceassist_db.adoption import require_schemes
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.decision import Command, Refusal, Remedy, decide
from voiceassist_db.errors import (
    ConfigurationError,
    KeysNotFoundError,
    KeyStoreConflictError,
    VoiceAssistDBError,
    WrongKeyError,
)
from voiceassist_db.execution import require_writable
from voiceassist_db.keyring import KeyVersion
from voiceassist_db.keyring.history import completed
from voiceassist_db.keyring.listing import ATTEMPTS
from voiceassist_db.keyring.members import Here, joined, members
from voiceassist_db.keyring.observation import explained, fetched, observe, refused
from voiceassist_db.keyring.registry import RegisteredKey, prove, register, registered_keys
from voiceassist_db.keys import Key, KeyProvider, KeySet, Scheme
from voiceassist_db.models import EncryptedTable

CREATED: Final = ("key", "index_key")


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was done.

    Attributes:
        created: Names of the keys that were made: ``key``, ``index_key``.
        registered: Key versions that this database did not know before.
        version: The current key version.
        scheme: How it is used.
        database: This database's identity.
        databases: Names of all databases that use the keys, by identity; none where the key store keeps no list.
    """

    created: tuple[str, ...]
    registered: tuple[int, ...]
    version: int
    scheme: Scheme
    database: UUID
    databases: Mapping[UUID, str]


def initialise_keys(
    provider: KeyProvider, connection: Connection, *, scheme: Scheme = Scheme.BOUND, join: bool = False
) -> Initialised:
    """Make sure that the key store has keys and lists this database, which has registered them; safe to repeat at any time.

    Args:
        provider: The key store.
        connection: A connection in a transaction, which the caller commits. The database's identity is committed before, over a
            connection of its own: the key store never lists a database that does not know so itself.
        scheme: How versions are used that the database does not know yet.
        join: Whether the keys may be those of other databases, to be shared with them.

    Raises:
        KeysNotFoundError: The store is empty, but the database has encrypted rows' keys registered: this is the wrong store,
            or its secret was lost. A new key would not open the rows.
        WrongKeyError: The store's keys are not those that the database has registered, or that its rows are under.
        ConfigurationError: They are those of other databases, and ``join`` is not given; or rows of a version that the database does
            not know yet are written with the other scheme.
    """
    require_writable(connection)
    known = registered_keys(connection)
    # Rows matter while no key is registered: later the newest registered version must be held anyway.
    tables = [] if known else encrypted_tables(connection)
    keys, created, here = _agreed(provider, connection, tables, scheme=scheme, join=join)
    registered = register(connection, keys, scheme)
    return Initialised(
        created,
        tuple(registered),
        keys.version,
        registered_keys(connection)[keys.version].scheme,
        here.id,
        {each: member.name for each, member in members(keys).items()},
    )


def _agreed(
    provider: KeyProvider,
    connection: Connection,
    tables: list[EncryptedTable],
    *,
    scheme: Scheme,
    join: bool,
) -> tuple[KeySet, tuple[str, ...], Here]:
    """Return the keys of a store that lists this database, which of them were made for it, and who it is."""
    conflict: KeyStoreConflictError | None = None
    for _ in range(ATTEMPTS):
        found = fetched(provider)
        action = decide(observe(connection, provider, found, tables), Command.JOIN if join else Command.INIT_KEYS)
        if isinstance(action, Refusal):
            raise _refused(action, provider, found, connection, registered_keys(connection))
        try:
            if found is None:
                here = _identified(connection)
                provider.create(joined(replace(KeySet.generate(), databases=""), here))
                return provider.fetch(), CREATED, here
            # Before anything is written to a secret that may be another database's.
            prove(connection, found)
            _require_schemes(connection, found, scheme, tables)
            here = _identified(connection)
            wanted = found if found.index_key else replace(found, index_key=Key.generate())
            wanted = joined(completed(provider, wanted), here)
            if wanted == found:
                return found, (), here
            provider.replace(found, wanted)  # what was decided for, or nothing
            return provider.fetch(), () if found.index_key else ("index_key",), here
        except KeyStoreConflictError as error:
            conflict = error  # somebody else wrote it just now, and what they wrote is looked at
    assert conflict is not None  # there is at least one attempt
    raise conflict


def _identified(connection: Connection) -> Here:
    """Return who this database is. A new identity stays when the caller's transaction is rolled back: the key store may list it."""
    return Here.of(connection) or Here.known(connection.engine)


def _require_schemes(connection: Connection, keys: KeySet, scheme: Scheme, tables: list[EncryptedTable]) -> None:
    known = registered_keys(connection)
    new = [KeyVersion(version, scheme, key) for version, key in keys.versions().items() if version not in known]
    if new:
        require_schemes(connection, new, tables or encrypted_tables(connection))


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
    if refusal.remedy is Remedy.JOIN:
        return ConfigurationError(refusal.happened)
    if keys is None:
        return refused(refusal, provider, keys, connection)
    return WrongKeyError(explained(refusal, provider, keys, connection), version=keys.version)
