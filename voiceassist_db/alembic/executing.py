"""How the operations of migrations are executed.

A drop looks for values first: encrypted data that is dropped cannot be given back.
"""

from __future__ import annotations

from typing import Any, Final

from alembic.operations import Operations, ops
from alembic.util import CommandError
from sqlalchemy import Table, text

from voiceassist_db.alembic.operations import (
    AddEncryptedColumnOp,
    CompleteEncryptedTableOp,
    CreateEncryptedTableOp,
    DropEncryptedColumnOp,
    DropEncryptedTableOp,
    StripEncryptedTableOp,
)
from voiceassist_db.models.declaration import (
    any_format,
    bound_format,
    format_constraint,
    version_constraint,
    with_version,
)
from voiceassist_db.models.names import full_name, quoted

DROP: Final = "drop-encrypted-data"
"""The argument of ``alembic -x`` that lets encrypted data be deleted."""

_DIRECT = text(
    "SELECT pg_catalog.to_regclass('encryption_keys') IS NOT NULL AND "
    "pg_catalog.has_table_privilege(pg_catalog.to_regclass('encryption_keys'), 'SELECT')"
)
_HAS_DIRECT = text(
    "SELECT EXISTS (SELECT FROM encryption_keys WHERE scheme OPERATOR(pg_catalog.=) 'direct' "
    "AND state OPERATOR(pg_catalog.<>) 'retired')"
)


def _add(operations: Operations, operation: AddEncryptedColumnOp) -> None:
    operations.invoke(ops.AddColumnOp(operation.table_name, operation.to_column(), schema=operation.schema))
    columns = [operation.column_name]
    _complete(
        operations,
        CompleteEncryptedTableOp(operation.table_name, checks=columns, external=columns, schema=operation.schema),
    )


def _complete(operations: Operations, operation: CompleteEncryptedTableOp) -> None:
    name = _full(operation)
    condition = any_format if operation.checks and _has_direct_key(operations) else bound_format
    for column in operation.checks:
        constraint = quoted(format_constraint(operation.table_name, column))
        check = f"CHECK ({condition(quoted(column))})"
        _execute(operations, f"ALTER TABLE {name} ADD CONSTRAINT {constraint} {check} NOT VALID")
        _execute(operations, f"ALTER TABLE {name} VALIDATE CONSTRAINT {constraint}")
    for column in operation.versions:
        constraint = quoted(version_constraint(operation.table_name, column))
        check = f"CHECK ({with_version(quoted(column))})"
        _execute(operations, f"ALTER TABLE {name} ADD CONSTRAINT {constraint} {check} NOT VALID")
        _execute(operations, f"ALTER TABLE {name} VALIDATE CONSTRAINT {constraint}")
    for column in operation.external:
        _execute(operations, f"ALTER TABLE {name} ALTER COLUMN {quoted(column)} SET STORAGE EXTERNAL")
    if operation.fillfactor:
        _execute(operations, f"ALTER TABLE {name} SET (fillfactor = {int(operation.fillfactor)})")


def _strip(operations: Operations, operation: StripEncryptedTableOp) -> None:
    name = _full(operation)
    constraints = [format_constraint(operation.table_name, column) for column in operation.checks]
    constraints += [version_constraint(operation.table_name, column) for column in operation.versions]
    for constraint in constraints:
        _execute(operations, f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {quoted(constraint)}")
    for column in operation.external:
        _execute(operations, f"ALTER TABLE {name} ALTER COLUMN {quoted(column)} SET STORAGE EXTENDED")
    if operation.fillfactor:
        _execute(operations, f"ALTER TABLE {name} RESET (fillfactor)")


def _create(operations: Operations, operation: CreateEncryptedTableOp) -> Table:
    made: Table = operations.invoke(ops.CreateTableOp.from_table(operation.to_table(operations.migration_context)))
    _complete(operations, operation.completion)
    return made


def _drop_column(operations: Operations, operation: DropEncryptedColumnOp) -> None:
    _require_empty(operations, _full(operation), f" WHERE {quoted(operation.column_name)} IS NOT NULL")
    operations.invoke(ops.DropColumnOp(operation.table_name, operation.column_name, schema=operation.schema))


def _drop_table(operations: Operations, operation: DropEncryptedTableOp) -> None:
    _require_empty(operations, _full(operation), "")
    operations.invoke(ops.DropTableOp(operation.table_name, schema=operation.schema))


def _require_empty(operations: Operations, name: str, where: str) -> None:
    """Refuse to drop what holds encrypted values, unless somebody asked for that."""
    context = operations.migration_context
    environment = context.environment_context
    if environment is not None and environment.get_x_argument(as_dictionary=True).get(DROP) == "":  # =no is no
        return
    refusal = (
        f"{name} holds encrypted values, and data that is dropped cannot be given back: run it with alembic -x {DROP}"
    )
    # No row can be added until the end of the transaction, and a policy that hides rows is an error.
    see_all, lock = "pg_catalog.set_config('row_security', 'off', true)", f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"
    if context.as_sql:
        told = refusal.replace("'", "''").replace("%", "%%")
        check = f"IF EXISTS (SELECT FROM {name}{where}) THEN RAISE EXCEPTION '{told}'; END IF"
        body = f"BEGIN PERFORM {see_all}; {lock}; {check}; END".replace("'", "''")
        _execute(operations, f"DO '{body}'")
        return
    _execute(operations, f"SELECT {see_all}")
    _execute(operations, lock)
    connection = operations.get_bind()
    if connection.scalar(_literally(f"SELECT EXISTS (SELECT FROM {name}{where})")):  # noqa: S608  # of quoted names
        raise CommandError(refusal)


def _has_direct_key(operations: Operations) -> bool:
    """Say whether rows may hold what a bare ``pgp_sym_encrypt`` wrote, which the strict format refuses."""
    if operations.migration_context.as_sql:
        return False
    connection = operations.get_bind()
    return bool(connection.scalar(_DIRECT) and connection.scalar(_HAS_DIRECT))


def _full(operation: Any) -> str:
    return full_name(operation.schema, str(operation.table_name))


def _execute(operations: Operations, statement: str) -> None:
    operations.execute(_literally(statement))


def _literally(statement: str) -> Any:
    # Quoted names may hold a colon, which is no parameter.
    return text(statement.replace(":", r"\:"))


OPERATIONS: Final[tuple[tuple[str, type[Any]], ...]] = (
    ("add_encrypted_column", AddEncryptedColumnOp),
    ("drop_encrypted_column", AddEncryptedColumnOp),
    ("complete_encrypted_table", CompleteEncryptedTableOp),
    ("strip_encrypted_table", CompleteEncryptedTableOp),
    ("drop_encrypted_table", DropEncryptedTableOp),
)
_IMPLEMENTATIONS: Final[tuple[tuple[type[Any], Any], ...]] = (
    (AddEncryptedColumnOp, _add),
    (DropEncryptedColumnOp, _drop_column),
    (CompleteEncryptedTableOp, _complete),
    (StripEncryptedTableOp, _strip),
    (CreateEncryptedTableOp, _create),
    (DropEncryptedTableOp, _drop_table),
)


def register() -> bool:
    """Register the operations, once; say whether they were not yet."""
    if hasattr(Operations, OPERATIONS[0][0]):
        return False
    for name, kind in OPERATIONS:
        Operations.register_operation(name)(kind)
    for kind, implementation in _IMPLEMENTATIONS:
        Operations.implementation_for(kind)(implementation)
    return True
