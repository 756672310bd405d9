"""CHECK constraints that are put on live tables: added without a scan, proven without a lock that others would feel.

Owns their names and how they are exchanged. Needs the tables' owner. Knows no key.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.declaration import any_format, bound_format, floor_constraint, format_constraint


def set_floor(connection: Connection, table: EncryptedTable, version: int) -> None:
    """Let nobody write a row under an older key version any more; rows that are there are not looked at.

    Takes an ACCESS EXCLUSIVE lock for a moment, so give the transaction a ``lock_timeout``.
    """
    quoted = connection.dialect.identifier_preparer.quote(table.version.name)
    _exchange(
        connection, table, {floor_constraint(table.table.name): f"{quoted} OPERATOR(pg_catalog.>=) {int(version)}"}
    )


def set_format(connection: Connection, table: EncryptedTable, *, bound_only: bool) -> None:
    """Let a table's encrypted columns hold scheme ``bound``'s format only, or any OpenPGP message with an integrity packet."""
    condition = bound_format if bound_only else any_format
    quote = connection.dialect.identifier_preparer.quote
    columns = [field.column for field in table.fields.values()]
    _exchange(
        connection, table, {format_constraint(table.table.name, each): condition(quote(each)) for each in columns}
    )


def validate(connection: Connection, table: EncryptedTable) -> None:
    """Prove these constraints over the rows that were there before; readers and writers go on.

    Raises:
        ConstraintError: A row does not comply.
    """
    quote = connection.dialect.identifier_preparer
    names = [floor_constraint(table.table.name)]
    names += [format_constraint(table.table.name, field.column) for field in table.fields.values()]
    open_ = text(
        "SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass) "
        "AND NOT convalidated AND conname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (CAST(:names AS pg_catalog.text[]))"
    )
    known = {"table": regclass(connection, table.table), "names": names}
    for row in execute(connection, open_, known, table=table.name).all():
        _alter(connection, table, f"VALIDATE CONSTRAINT {quote.quote(row.conname)}")


def _exchange(connection: Connection, table: EncryptedTable, conditions: dict[str, str]) -> None:
    quote = connection.dialect.identifier_preparer
    changes = [
        f"DROP CONSTRAINT IF EXISTS {quote.quote(name)}, ADD CONSTRAINT {quote.quote(name)} CHECK ({condition}) NOT VALID"
        for name, condition in conditions.items()
    ]
    _alter(connection, table, ", ".join(changes))


def _alter(connection: Connection, table: EncryptedTable, changes: str) -> None:
    statement = f"ALTER TABLE {connection.dialect.identifier_preparer.format_table(table.table)} {changes}"
    # Quoted names have their percent signs doubled, as text() does itself, and may hold a colon, which is no parameter.
    execute(connection, text(statement.replace("%%", "%").replace(":", "\\:")), table=table.name)
