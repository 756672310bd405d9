"""What triggers do to a row on its way into the table: its values are bound to the primary key that it was written with.

A trigger before the row, or a rule, may put another key in its place, and then nobody could read the values. So where a table has
one, an INSERT returns the keys that were stored, and an UPDATE compares all that it stores; both are undone where something differs.
Other tables pay nothing but a look into memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Connection, text

from voiceassist_db.execution import execute, regclass, translated
from voiceassist_db.models import EncryptedTable
from voiceassist_db.prepared import Prepared
from voiceassist_db.triggers import CHANGES_INSERTS, CHANGES_UPDATES, FAMILY, GuardedUpdate, key_changed, rows_skipped

_CHANGES: Final = text(
    f"""
    WITH {FAMILY}
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_trigger t JOIN family f ON f.relid OPERATOR(pg_catalog.=) t.tgrelid
        WHERE {CHANGES_UPDATES} OR {CHANGES_INSERTS})
    """  # noqa: S608  # of constants
)

_KNOWN: Final = "voiceassist_db.tables_with_triggers"


def may_change_rows(connection: Connection, table: EncryptedTable) -> bool:
    """Say whether a trigger can change the rows of a table before they are stored; asked once for each connection and table.

    Args:
        connection: The connection that rows are written through.
        table: The table.
    """
    info = connection.info
    known: dict[str, bool] = info.get(_KNOWN) or info.setdefault(_KNOWN, {})
    found = known.get(table.name)  # by name: a connection must not keep the tables of classes that nobody uses any more
    if found is None:
        given = {"table": regclass(connection, table.table)}
        found = known[table.name] = bool(execute(connection, _CHANGES, given, table=table.name).scalar_one())
    return found


def written(
    connection: Connection,
    table: EncryptedTable,
    statement: Prepared,
    values: dict[str, Any],
    expected: Collection[tuple[Any, ...]],
) -> int:
    """Write rows by a statement that returns their primary keys, and undo it where these are others than expected, or only some.

    Args:
        connection: The connection.
        table: The table.
        statement: The statement.
        values: Its parameters.
        expected: The primary keys that the values are bound to.

    Returns:
        How many rows were written: all, or none. None may be due to the registry, too, which the caller finds out.

    Raises:
        PrimaryKeyChangedError: A trigger stored another primary key.
        TriggerError: A trigger skipped some of the rows.
    """
    with translated(table.name), connection.begin_nested():
        stored = statement.rows(connection, values)
        if not set(stored) <= set(expected):
            raise key_changed(table)
        if 0 < len(stored) < len(expected):
            raise rows_skipped(connection, table)
    return len(stored)


def changed_as_meant(
    connection: Connection, key: Prepared, where: Mapping[str, Any], statement: GuardedUpdate, values: dict[str, Any]
) -> int:
    """Change a row, and undo it where a trigger stores something else.

    Args:
        connection: The connection.
        key: The statement that locks the row.
        where: Its parameters.
        statement: The statement that changes it.
        values: Its parameters.

    Returns:
        How many rows were changed.

    Raises:
        TriggerError: A trigger stored something else, or skipped the row.
    """
    with translated(), connection.begin_nested():
        key.rows(connection, dict(where))
        return statement.write(connection, values, is_locked=True)
