"""Whether rows that a database has already are written as they are about to be registered. Reads a few values of each column.

Owns the trial: a value is opened inside the server, and nothing of it comes back. Changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, exists, select

from voiceassist_db.errors import ConfigurationError, DecryptionError, WrongKeyError
from voiceassist_db.execution import execute, see_all_rows
from voiceassist_db.keyring import Keyring, KeyVersion
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable
from voiceassist_db.pgcrypto.expressions import decrypt_stored, parameters

SAMPLE: Final = 5
"""Values of a column that are tried: one of them may be damaged."""


def require_schemes(connection: Connection, versions: Iterable[KeyVersion], tables: Iterable[EncryptedTable]) -> None:
    """Refuse key versions whose rows do not open under the scheme that they are registered with.

    Args:
        connection: A connection in a transaction, which may receive keys.
        versions: The versions that are new to the registry, with the scheme that they are about to be registered with.
        tables: The encrypted tables.

    Raises:
        ConfigurationError: The rows of a version open under the other scheme.
        WrongKeyError: They open under none.
    """
    see_all_rows(connection)
    for version, table in itertools.product(versions, tables):
        has_rows = select(exists().where(table.version == version.version))
        if not execute(connection, has_rows, table=table.name).scalar():
            continue
        for field in table.fields.values():
            _require_scheme(connection, table, field, version)


def _require_scheme(connection: Connection, table: EncryptedTable, field: EncryptedField, version: KeyVersion) -> None:
    if _opens(connection, table, field, version) is not False:
        return
    values = f"the values of {table.name}.{field.name} under key version {version.version}"
    other = next(each for each in Scheme if each is not version.scheme)
    if _opens(connection, table, field, replace(version, scheme=other)):
        raise ConfigurationError(
            f"{values} are written with scheme {other.value}, not {version.scheme.value}: run `voiceassist-db init-keys --scheme "
            f"{other.value}`. Nothing was registered."
        )
    raise WrongKeyError(
        f"{values} open under neither scheme: the key store's key is not theirs, or they are damaged. Check VAULT_ADDR, VAULT_NAMESPACE and "
        "VOICEASSIST_DB_VAULT_PATH, and DATABASE_URL. Nothing was registered.",
        version=version.version,
    )


def _opens(connection: Connection, table: EncryptedTable, field: EncryptedField, version: KeyVersion) -> bool | None:
    """Say whether one of the first values opens; None where there is no value."""
    keyring = Keyring(version)
    stored = table.table.c[field.column]
    found: bool | None = None
    for at in range(SAMPLE):
        row = select(table.version, stored).where(table.version == version.version, stored.is_not(None))
        source = row.limit(1).offset(at).subquery()
        opened = decrypt_stored(table, field, source, is_adopted=version.scheme is Scheme.DIRECT)
        statement = select(opened.is_not(None)).select_from(source)
        try:
            with connection.begin_nested():
                result = execute(connection, statement, parameters(keyring, table, (field,)), table=table.name).scalar()
        except DecryptionError:
            result = False
        if result or result is None:
            return result or found
        found = False
    return found
