"""The database's registry of key versions: which there are, how each is used, and proof of which key each is.

Owns the tables ``encryption_keys`` and ``index_keys``. Holds no key longer than a call, and stores none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, insert, select, text, update

from voiceassist_db.commands import PLAN
from voiceassist_db.errors import KeyNotRegisteredError, WrongKeyError
from voiceassist_db.execution import execute, require_transactions
from voiceassist_db.keyring.keyring import Keyring, KeyVersion
from voiceassist_db.keyring.members import registered_as as _index_check_value
from voiceassist_db.keys import Key, KeySet, Scheme
from voiceassist_db.models import EncryptionKeyRow, IndexKeyRow, table_of
from voiceassist_db.moments import moment_as_text
from voiceassist_db.waits import one_at_a_time

_KEYS: Final = table_of(EncryptionKeyRow)
_INDEX_KEYS: Final = table_of(IndexKeyRow)


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
    """Read the registry of key versions, under any DateStyle: this can happen in the midst of the application's transaction."""
    others = (_KEYS.c.version, _KEYS.c.scheme, _KEYS.c.state, _KEYS.c.check_value)
    dates = (_KEYS.c.created_at, _KEYS.c.replaced_at, _KEYS.c.retired_at)
    moments = (moment_as_text(each).label(each.key) for each in dates)
    rows = execute(connection, select(*others, *moments).order_by(_KEYS.c.version), table=_KEYS.name)
    return {
        row.version: RegisteredKey(
            row.version,
            Scheme(row.scheme),
            row.state,
            row.check_value,
            datetime.fromisoformat(row.created_at),
            row.replaced_at and datetime.fromisoformat(row.replaced_at),
            row.retired_at and datetime.fromisoformat(row.retired_at),
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
    # Processes that start together may all initialise: the second waits here, and then finds the first one's rows.
    require_transactions(connection)
    one_at_a_time(connection, _KEYS)
    # Whoever registers goes on to write under the key: a crash of the server must not undo the one and keep the other.
    execute(connection, text("SET LOCAL synchronous_commit = on"), table=_KEYS.name)
    known = registered_keys(connection)
    prove(connection, keys)
    added = []
    for version, key in keys.versions().items():
        if version in known:
            continue
        state = "current" if version == keys.version else "previous"
        values = {
            "version": version,
            "scheme": scheme.value,
            "state": state,
            "check_value": _check_value(version, key, scheme),
        }
        execute(connection, insert(_KEYS).values(values), table=_KEYS.name)
        added.append(version)
    if keys.version in added:
        demote = update(_KEYS).where(_KEYS.c.version < keys.version, _KEYS.c.state == "current")
        execute(connection, demote.values(state="previous", replaced_at=func.now()), table=_KEYS.name)
    _register_index_keys(connection, keys)
    return added


def _index_keys(keys: KeySet) -> tuple[Key, ...]:
    return tuple(key for key in (keys.index_key, keys.previous_index_key) if key is not None)


def prove(connection: Connection, keys: KeySet) -> None:
    """Prove that a store's keys are this database's: those that it knows are the same, and it knows one of them at least.

    A database without any registered key accepts all.

    Raises:
        WrongKeyError: They are another database's.
    """
    known = registered_keys(connection)
    for version, key in keys.versions().items():
        if version in known:
            _prove(version, key, known)
    if known and not known.keys() & keys.versions().keys():
        raise WrongKeyError(
            f"the key store holds key version {keys.version}, and this database was encrypted with version "
            f"{', '.join(map(str, known))}: nothing was changed. Check VAULT_ADDR, VAULT_NAMESPACE and "
            "VOICEASSIST_DB_VAULT_PATH, and DATABASE_URL, or restore the secret's earlier version (`vault kv rollback`).",
            version=keys.version,
        )
    index_keys = registered_index_keys(connection)
    if index_keys and not any(_index_check_value(key) in index_keys for key in _index_keys(keys)):
        raise _wrong_index_key()


def proves(keys: KeySet, known: Mapping[int, RegisteredKey], *, raises: bool = True) -> bool:
    """Prove the versions of a store that are registered, whether the database knows any of them or not.

    Raises:
        WrongKeyError: A key is not the one that is registered for its version, with ``raises``.
    """
    try:
        for version, key in keys.versions().items():
            if version in known:
                _prove(version, key, known)
    except WrongKeyError:
        if raises:
            raise
        return False
    return True


def proves_index_keys(connection: Connection, keys: KeySet) -> bool:
    """Say whether a store's blind-index keys are those that this database's tokens are of."""
    try:
        _live_index_keys(connection, keys)
    except WrongKeyError:
        return False
    return True


def take_back(connection: Connection, version: int) -> None:
    """Record that a retired version is needed again, because rows are under it. The caller commits."""
    again = update(_KEYS).where(_KEYS.c.version == version, _KEYS.c.state == "retired")
    execute(connection, again.values(state="previous", retired_at=None), table=_KEYS.name)


def retire_version(connection: Connection, version: int) -> None:
    """Record that no row needs a version any more; from now on no keyring has it. The caller commits."""
    retired = update(_KEYS).where(_KEYS.c.version == version).values(state="retired", retired_at=func.now())
    execute(connection, retired, table=_KEYS.name)


def retire_index_keys(connection: Connection, *, but: Key) -> None:
    """Record that no token is of another blind-index key than this one; from now on no keyring has another. The caller commits."""
    others = update(_INDEX_KEYS).where(
        _INDEX_KEYS.c.check_value != _index_check_value(but), _INDEX_KEYS.c.state != "retired"
    )
    execute(connection, others.values(state="retired", retired_at=func.now()), table=_INDEX_KEYS.name)


def _register_index_keys(connection: Connection, keys: KeySet) -> None:
    known = registered_index_keys(connection)
    for key, state in ((keys.index_key, "current"), (keys.previous_index_key, "previous")):
        if key is None or _index_check_value(key) in known:
            continue
        if state == "current":
            demote = update(_INDEX_KEYS).where(_INDEX_KEYS.c.state == "current").values(state="previous")
            execute(connection, demote, table=_INDEX_KEYS.name)
        values = {"check_value": _index_check_value(key), "state": state}
        execute(connection, insert(_INDEX_KEYS).values(values), table=_INDEX_KEYS.name)


def registered_index_keys(connection: Connection) -> dict[bytes, str]:
    """Return the state of each registered blind-index key by its check value."""
    rows = execute(connection, select(_INDEX_KEYS.c.check_value, _INDEX_KEYS.c.state), table=_INDEX_KEYS.name)
    return {row.check_value: row.state for row in rows}


def _live_index_keys(connection: Connection, keys: KeySet) -> dict[bytes, Key]:
    """Return a store's blind-index keys by their check values, the one to write with first.

    A key that is not registered yet is left out, as a rotation has just begun to which the one before belongs; so is one that is
    retired.

    Raises:
        WrongKeyError: The store lacks a key that tokens may be of, or holds a strange one.
    """
    given = {_index_check_value(key): key for key in _index_keys(keys)}
    if not given:
        return {}
    known = registered_index_keys(connection)
    live = {check: key for check, key in given.items() if known.get(check) in {"current", "previous"}}
    strange = [check for check in given if check not in known]
    has_begun = keys.previous_index_key is not None and keys.index_key is not None
    if has_begun and keys.index_key is not None and strange == [_index_check_value(keys.index_key)]:
        strange = []
    if strange or any(state != "retired" and check not in live for check, state in known.items()):
        raise _wrong_index_key()
    return live


def _check_value(version: int, key: Key, scheme: Scheme) -> bytes:
    return key.check_value(f"encryption_keys:{version}:{scheme.value}")


def _prove(version: int, key: Key, known: Mapping[int, RegisteredKey]) -> None:
    if _check_value(version, key, known[version].scheme) != known[version].check_value:
        raise WrongKeyError(
            f"the key store's key of version {version} is not the key that this database was encrypted with, or somebody "
            "changed its row in encryption_keys. Nothing was read or written. Check VAULT_ADDR, VAULT_NAMESPACE and VOICEASSIST_DB_VAULT_PATH, and DATABASE_URL; if the "
            "secret was overwritten, restore its earlier version (`vault kv rollback`).",
            version=version,
        )


def _wrong_index_key() -> WrongKeyError:
    return WrongKeyError(
        "the key store's index_key is lost, or not the one that this database's blind indexes were made with: searches would find "
        "nothing and duplicates would go unseen. Restore the secret's earlier version (`vault kv rollback`).",
        version=0,
    )


def assemble(connection: Connection, keys: KeySet) -> Keyring:
    """Prove a store's keys against the registry, and return them as a keyring.

    A version that is in the store but not registered yet (a rotation has just begun, or died right there) is left out, so
    that nothing is ever written under a key that the database does not know; so is one that is retired.

    Raises:
        WrongKeyError: A key is not the one that is registered for its version.
        KeyNotRegisteredError: None of the store's versions is registered.
    """
    known = registered_keys(connection)
    live = []
    for version, key in keys.versions().items():
        if version in known:
            _prove(version, key, known)
            if known[version].state == "retired":
                continue
            live.append(KeyVersion(version, known[version].scheme, key))
    if not live:
        raise _not_registered(keys, known)
    index_keys = _live_index_keys(connection, keys)
    return Keyring(live[0], live[1] if len(live) > 1 else None, tuple(index_keys.values()), tuple(index_keys))


def _not_registered(keys: KeySet, known: Mapping[int, RegisteredKey]) -> KeyNotRegisteredError:
    version = keys.version
    if not known:
        message = f"key version {version} is not registered in this database: run `voiceassist-db init-keys` once"
    elif version in known:
        message = (
            f"key version {version} was retired, and the secret was rolled back to it: restore the version of the secret that holds "
            f"key version {max(known)} (`vault kv rollback`). `{PLAN}` names it."
        )
    else:
        message = (
            f"key version {version} is not registered in this database, which knows {', '.join(map(str, known))}: is this the right "
            "key store? If it is, restore the version of the secret that holds a key which the database knows (`vault kv rollback`). "
            f"`{PLAN}` names it."
        )
    return KeyNotRegisteredError(message, version=version)
