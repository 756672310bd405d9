"""The errors of a repository about one row: which row, and what to do next. They hold keys of rows, never a value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Date

from voiceassist_db.errors import DatabaseError, NotFoundError, UnknownKeyVersionError, ValueFormatError, WrongRowError
from voiceassist_db.loading import PROBLEM
from voiceassist_db.models import EncryptedTable
from voiceassist_db.pgcrypto.expressions import UNNAMED


def not_found(table: EncryptedTable, key: Iterable[Any]) -> NotFoundError:
    """Return the error of a row that does not exist."""
    row = "/".join(map(str, key))
    return NotFoundError(f"{table.name} has no row {row}", table=table.name, row_id=row)


def is_unnamed(table: EncryptedTable, error: DatabaseError) -> bool:
    """Say whether a write failed because Python cannot hold the primary key of the row."""
    return error.sqlstate == UNNAMED and any(isinstance(each.type, Date) for each in table.key)


def unnamed_row(table: EncryptedTable, key: Iterable[Any]) -> ValueFormatError:
    """Return the error of a row whose primary key Python cannot hold, so that no value can be bound to it.

    Args:
        table: The table.
        key: The columns by which the application named the row.
    """
    row = "/".join(map(str, key))
    return ValueFormatError(
        f"the primary key of row {row} of {table.name} {PROBLEM}: nothing was written. Correct the key with an UPDATE in SQL",
        table=table.name,
        row_id=row,
        sqlstate=UNNAMED,
    )


def unknown_version(table: EncryptedTable, version: int, row_id: str) -> UnknownKeyVersionError:
    """Return the error of a row whose key version the key store does not hold."""
    return UnknownKeyVersionError(
        f"row {row_id} of {table.name} is under key version {version}, which the key store does not hold: check that this is the "
        "right key store, or restore that version of the secret (`vault kv rollback`)",
        version=version,
        table=table.name,
        row_id=row_id,
    )


def wrong_row(connection: Connection, table: EncryptedTable, key: Iterable[Any]) -> WrongRowError:
    """Close a connection that answered with a row which was not asked for, and return the error.

    Args:
        connection: The connection. None of its answers can be trusted any more.
        table: The table.
        key: What was asked for.
    """
    connection.invalidate()
    row = "/".join(map(str, key))
    return WrongRowError(
        f"row {row} of {table.name} was asked for, and the server answered with another one: another process or thread uses this "
        "connection. Nothing was returned, and the connection was closed. Give each process its own engine.",
        table=table.name,
        row_id=row,
    )
