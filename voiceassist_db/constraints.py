"""CHECK constraints that are put on live tables: added without a scan, proven without a lock that others would feel.

Owns their names, how they are exchanged, and which of them a table lacks. Changes need the tables' owner. Knows no key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select, text

from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import EncryptedTable, EncryptionKeyRow, table_of
from voiceassist_db.models.declaration import (
    FILLFACTOR,
    FLOOR_SUFFIX,
    VERSION_COLUMN,
    any_format,
    bound_format,
    floor_constraint,
    format_constraint,
    version_constraint,
    with_version,
)

_KEYS: Final = table_of(EncryptionKeyRow)

_STATE = text(
    """
    SELECT c.conname, c.convalidated,
        CASE WHEN pg_catalog.strpos(pg_catalog.pg_get_constraintdef(c.oid), :hex) OPERATOR(pg_catalog.>) 0
              OR pg_catalog.strpos(pg_catalog.pg_get_constraintdef(c.oid), :octal) OPERATOR(pg_catalog.>) 0 THEN
            (SELECT a.attname FROM pg_catalog.pg_attribute a
             WHERE a.attrelid OPERATOR(pg_catalog.=) c.conrelid AND a.attnum OPERATOR(pg_catalog.=) c.conkey[1])
        END AS guarded
    FROM pg_catalog.pg_constraint c
    WHERE c.conrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass) AND c.contype OPERATOR(pg_catalog.=) 'c'
    """
)
MARKS: Final = {"hex": r"\xd2'", "octal": r"\322'"}
"""What both formats ask for, as each ``bytea_output`` writes it. A constraint is known by it where its table was renamed, and the constraint was not."""

WITH_VERSION = text(
    """
    SELECT a.attname, c.conname, c.convalidated
    FROM pg_catalog.pg_constraint c
    JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.conrelid
        AND a.attnum OPERATOR(pg_catalog.=) ANY (c.conkey)
    WHERE c.conrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass) AND c.contype OPERATOR(pg_catalog.=) 'c'
      AND pg_catalog.starts_with(pg_catalog.replace(pg_catalog.pg_get_constraintdef(c.oid), '"', ''), pg_catalog.concat(
          'CHECK (((', pg_catalog.replace(CAST(a.attname AS pg_catalog.text), '"', ''), ' IS NULL) OR (', CAST(:version AS pg_catalog.text),
          ' IS NOT NULL)))'))
    """
)
"""By their condition: a constraint keeps its name where its table is renamed."""

_FLOOR = text(
    """
    SELECT pg_catalog.pg_get_constraintdef(c.oid) FROM pg_catalog.pg_constraint c
    WHERE c.conrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass) AND c.contype OPERATOR(pg_catalog.=) 'c'
        AND c.conname OPERATOR(pg_catalog.=) CAST(:name AS pg_catalog.name)
    """
)

_WITHOUT_ROOM = text(
    """
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relkind OPERATOR(pg_catalog.=) 'r'
      AND (c.oid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass)
           OR c.oid OPERATOR(pg_catalog.=) ANY (SELECT p.relid FROM pg_catalog.pg_partition_tree(CAST(:table AS pg_catalog.regclass)) p))
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) o
                      WHERE o.option_name OPERATOR(pg_catalog.=) 'fillfactor')
    ORDER BY 1
    """
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that an encrypted table lacks, as one does whose encrypted columns were added to a table that existed.

    Attributes:
        table: Name of the table.
        problem: What is missing.
        statements: The SQL that adds it; none where something must be removed instead.
        is_unsafe: Whether values that nobody can trust may be stored; otherwise rotation is only slower, and the table grows.
    """

    table: str
    problem: str
    statements: tuple[str, ...]
    is_unsafe: bool


def gaps(connection: Connection, table: EncryptedTable) -> list[Gap]:
    """Return what a table lacks: CHECKs of its ciphertext formats, their proof over all rows, and room on its pages."""
    quote, name = _quote(connection), regclass(connection, table.table)
    condition = any_format if _has_direct_key(connection) else bound_format
    state = execute(connection, _STATE, {"table": name, **MARKS}, table=table.name).all()
    guarded = {row.guarded for row in state}
    found = []
    for field in table.fields.values():
        if field.column in guarded:
            continue
        constraint = quote(format_constraint(table.table.name, field.column))
        add = f"ALTER TABLE {name} ADD CONSTRAINT {constraint} CHECK ({condition(quote(field.column))}) NOT VALID"
        problem = (
            f"column {field.column} has no CHECK that keeps plaintext, and packets without an integrity check, out"
        )
        found.append(Gap(table.name, problem, (add, _validation(name, constraint)), is_unsafe=True))
    if table.is_in_place:
        found += _unversioned(connection, table, name)
    name_of_floor = floor_constraint(table.table.name)
    for row in sorted(state, key=lambda row: str(row.conname)):
        if not row.convalidated and (row.guarded is not None or row.conname == name_of_floor):
            found.append(_unproven(table, name, row.conname, quote))
    for row in execute(connection, _WITHOUT_ROOM, {"table": name}, table=table.name):
        problem = f"{row.name} has no fillfactor, so that a rotation finds no room on its pages: it takes longer, and the table grows"
        change = f"ALTER TABLE {row.name} SET (fillfactor = {FILLFACTOR})"
        found.append(Gap(table.name, problem, (change,), is_unsafe=False))
    return found


def _unversioned(connection: Connection, table: EncryptedTable, name: str) -> list[Gap]:
    """Return what lacks of the CHECKs that a value has a key version, in a table where others insert rows without one."""
    quote = _quote(connection)
    known = execute(connection, WITH_VERSION, {"table": name, "version": VERSION_COLUMN}, table=table.name).all()
    guarded = {row.attname for row in known}
    found = [_unproven(table, name, row.conname, quote) for row in known if not row.convalidated]
    for field in table.fields.values():
        if field.column not in guarded:
            constraint = quote(version_constraint(table.table.name, field.column))
            add = (
                f"ALTER TABLE {name} ADD CONSTRAINT {constraint} CHECK ({with_version(quote(field.column))}) NOT VALID"
            )
            problem = f"column {field.column} has no CHECK that keeps values out of rows without a key version"
            found.append(Gap(table.name, problem, (add, _validation(name, constraint)), is_unsafe=True))
    return found


def _unproven(table: EncryptedTable, name: str, constraint: str, quote: Callable[[str], str]) -> Gap:
    problem = f"the constraint {constraint} is not proven for rows that are older than it"
    return Gap(table.name, problem, (_validation(name, quote(constraint)),), is_unsafe=True)


def complete(connection: Connection, table: EncryptedTable) -> list[Gap]:
    """Add what a table lacks; return what that was. The caller commits.

    Takes an ACCESS EXCLUSIVE lock for a moment, so give the transaction a ``lock_timeout``.

    Raises:
        ConstraintError: A row does not comply: a column holds something else than ciphertext.
    """
    found = gaps(connection, table)
    for gap in found:
        for statement in gap.statements:
            _run(connection, table, statement)
    return found


def _validation(table: str, constraint: str) -> str:
    return f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"


def _has_direct_key(connection: Connection) -> bool:
    # A role that `check` is run by need not be allowed to read the registry, nor the database be migrated.
    is_readable = text("SELECT pg_catalog.has_table_privilege(pg_catalog.to_regclass(:name), 'SELECT')")
    if not execute(connection, is_readable, {"name": regclass(connection, _KEYS)}, table=_KEYS.name).scalar():
        return False
    live = select(_KEYS.c.version).where(_KEYS.c.scheme == "direct", _KEYS.c.state != "retired")
    return execute(connection, live.limit(1), table=_KEYS.name).first() is not None


def floor(connection: Connection, table: EncryptedTable) -> int:
    """Return the oldest key version that a table accepts; 0 where it accepts all."""
    known = {"table": regclass(connection, table.table), "name": floor_constraint(table.table.name)}
    definition = execute(connection, _FLOOR, known, table=table.name).scalar()
    found = re.search(r">=\)? ([0-9]+)\)", definition or "")
    return int(found[1]) if found else 0


def set_floor(connection: Connection, table: EncryptedTable, version: int) -> None:
    """Let nobody write a row under an older key version any more; rows that are there are not looked at.

    Takes an ACCESS EXCLUSIVE lock for a moment, so give the transaction a ``lock_timeout``.
    """
    condition = f"{_quote(connection)(table.version.name)} OPERATOR(pg_catalog.>=) {int(version)}"
    _exchange(connection, table, {f"{table.table.name}{FLOOR_SUFFIX}": (floor_constraint(table.table.name), condition)})


def set_format(connection: Connection, table: EncryptedTable, *, bound_only: bool) -> None:
    """Let a table's encrypted columns hold scheme ``bound``'s format only, or any OpenPGP message with an integrity packet."""
    condition, quote, name = bound_format if bound_only else any_format, _quote(connection), table.table.name
    columns = [field.column for field in table.fields.values()]
    _exchange(
        connection,
        table,
        {f"{name}_{each}_format": (format_constraint(name, each), condition(quote(each))) for each in columns},
    )


def validate(connection: Connection, table: EncryptedTable) -> None:
    """Prove these constraints over the rows that were there before; readers and writers go on.

    Raises:
        ConstraintError: A row does not comply.
    """
    quote = _quote(connection)
    names = [floor_constraint(table.table.name)]
    names += [format_constraint(table.table.name, field.column) for field in table.fields.values()]
    open_ = text(
        "SELECT conname FROM pg_catalog.pg_constraint WHERE conrelid OPERATOR(pg_catalog.=) CAST(:table AS pg_catalog.regclass) "
        "AND NOT convalidated AND conname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (CAST(:names AS pg_catalog.text[]))"
    )
    known = {"table": regclass(connection, table.table), "names": names}
    for row in execute(connection, open_, known, table=table.name).all():
        _alter(connection, table, f"VALIDATE CONSTRAINT {quote(row.conname)}")


def _exchange(connection: Connection, table: EncryptedTable, conditions: dict[str, tuple[str, str]]) -> None:
    """Exchange constraints: by what each would be called if names could be of any length, its name and its condition.

    A long name was once cut by PostgreSQL alone, and a constraint of that name may be left: PostgreSQL cuts it again to drop it.
    """
    quote = _quote(connection)
    changes: list[str] = []
    for full, (name, condition) in conditions.items():
        changes += [f"DROP CONSTRAINT IF EXISTS {quote(each)}" for each in dict.fromkeys((name, full))]
        changes.append(f"ADD CONSTRAINT {quote(name)} CHECK ({condition}) NOT VALID")
    _alter(connection, table, ", ".join(changes))


def _alter(connection: Connection, table: EncryptedTable, changes: str) -> None:
    _run(connection, table, f"ALTER TABLE {regclass(connection, table.table)} {changes}")


def _quote(connection: Connection) -> Callable[[str], str]:
    # For the text of a statement SQLAlchemy doubles percent signs, as text() does itself.
    quote = connection.dialect.identifier_preparer.quote
    return lambda name: quote(name).replace("%%", "%")


def _run(connection: Connection, table: EncryptedTable, statement: str) -> None:
    # Quoted names may hold a colon, which is no parameter.
    execute(connection, text(statement.replace(":", "\\:")), table=table.name)
