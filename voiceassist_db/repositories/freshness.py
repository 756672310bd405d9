"""What writing and searching owe to a rotation that is going on: no key that the database's registry has left behind.

Owns what becomes of a statement that the registry answered with "there are newer keys", and uniqueness while tokens of two index
keys stand side by side. A statement asks the registry by its own condition (``statements``); here nothing is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from voiceassist_db.blind_index import token
from voiceassist_db.errors import DuplicateError, KeyNotRegisteredError, KeyStoreError
from voiceassist_db.keyring import REFUSALS, Keyring, KeyringSource
from voiceassist_db.pgcrypto.arrays import dumped_tokens
from voiceassist_db.repositories.rows import normalised
from voiceassist_db.repositories.statements import INDEX_CHECK, TOLERATED, Statements

CURRENT: Final = "current"
PREVIOUS: Final = "previous"


def written_with(keyring: Keyring, tolerated: str) -> dict[str, Any]:
    """Return the parameters by which a write asks the registry whether its keys are fit.

    Args:
        keyring: The keys that it writes with.
        tolerated: The state, besides ``current``, in which the registry may have them.
    """
    return {TOLERATED: tolerated, INDEX_CHECK: keyring.index_checks[0] if keyring.index_checks else None}


def renewed(keys: KeyringSource, connection: Connection, stale: Keyring, deadline: float | None) -> tuple[Keyring, str]:
    """Return a keyring after one that the registry has left behind, and the state of its keys that is tolerated.

    Args:
        keys: Where it comes from.
        connection: The connection.
        stale: The keyring that was left behind.
        deadline: As for ``KeyringSource.keyring``.

    Raises:
        KeyStoreError: The store refuses. While it is away, the keys that this process has are tolerated as long as they are
            live: better a row under the previous key than none.
    """
    try:
        return keys.renew(connection, stale, deadline, waits=False), CURRENT
    except REFUSALS:
        raise
    except KeyStoreError:
        return stale, PREVIOUS


def left_behind(table: str, keyring: Keyring) -> KeyNotRegisteredError:
    """Return the error of a statement whose keys the registry has left behind, and the key store has no newer ones."""
    return KeyNotRegisteredError(
        f"the database has newer keys registered for {table} than version {keyring.current.version} and its index key, and the "
        "key store does not hold them: nothing was read or written. Check VAULT_ADDR and VOICEASSIST_DB_VAULT_PATH, or restore "
        "the secret's later version (`vault kv rollback`).",
        version=keyring.current.version,
    )


def looks_for_taken(keyring: Keyring) -> bool:
    """Say whether :func:`require_untaken` is needed before rows are written with a keyring."""
    return len(keyring.index_keys) > 1


def require_untaken(
    connection: Connection,
    statements: Statements,
    keyring: Keyring,
    given: Sequence[Any],
    *,
    but: tuple[Any, ...] | None = None,
) -> None:
    """Keep unique what must be, while a rotation of the index key has tokens of two keys side by side.

    The constraint sees a token of the same key; one of the older key is looked for here.

    Args:
        connection: The connection that the rows will be written through.
        statements: The table's statements.
        keyring: The keys that they are written with.
        given: Objects with the fields' values as attributes.
        but: Lookup key of the row that may have the value, for it is the one that is written.

    Raises:
        DuplicateError: Another row has the value.
    """
    table = statements.table
    for index in table.indexes:
        if not table.table.c[index.column].unique:
            continue
        values = [value for each in given if (value := getattr(each, index.field, None)) is not None]
        older = keyring.index_column_keys(index.info)[1:]
        tokens = [token(key, normalised(index, value)) for value in values for key in older]
        sought = {"tokens": dumped_tokens(tokens)}
        taken = statements.taken(index.column).rows(connection, sought) if tokens else []
        if any(tuple(row) != but for row in taken):
            raise DuplicateError(
                f"another row of {table.name} already has this {index.field}: nothing was written",
                table=table.name,
                field=index.field,
            )
