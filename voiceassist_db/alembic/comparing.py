"""What autogenerate misses of encrypted tables: their CHECKs, room and storage, and that this package's own tables stay.

Owns the rewriting of what Alembic found. Executes nothing that changes a database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from alembic.operations import ops
from alembic.util import CommandError
from sqlalchemy import LargeBinary, Table, text

from voiceassist_db.alembic.operations import (
    AddEncryptedColumnOp,
    CompleteEncryptedTableOp,
    CreateEncryptedTableOp,
    DropEncryptedColumnOp,
    DropEncryptedTableOp,
    ModifyEncryptedTableOps,
    StripEncryptedTableOp,
)
from voiceassist_db.constraints import MARKS, WITH_VERSION
from voiceassist_db.history import VERSION_TABLE
from voiceassist_db.models import Base
from voiceassist_db.models.declaration import (
    FILLFACTOR,
    FILLFACTOR_INFO,
    IN_PLACE_COMMENT,
    VERSION_COLUMN,
    declared_in,
    floor_constraint,
    format_constraint,
    version_constraint,
)
from voiceassist_db.models.names import full_name

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_STATE: Final = text(
    """
    SELECT c.relkind,
        EXISTS (SELECT FROM pg_catalog.pg_options_to_table(c.reloptions) o
                WHERE o.option_name OPERATOR(pg_catalog.=) 'fillfactor') AS has_room,
        ARRAY(SELECT CAST(a.attname AS pg_catalog.text) FROM pg_catalog.pg_constraint k
              JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) k.conrelid AND a.attnum OPERATOR(pg_catalog.=) k.conkey[1]
              WHERE k.conrelid OPERATOR(pg_catalog.=) c.oid AND k.contype OPERATOR(pg_catalog.=) 'c'
                AND (pg_catalog.strpos(pg_catalog.pg_get_constraintdef(k.oid), :hex) OPERATOR(pg_catalog.>) 0
                     OR pg_catalog.strpos(pg_catalog.pg_get_constraintdef(k.oid), :octal) OPERATOR(pg_catalog.>) 0)) AS guarded
    FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) CAST(pg_catalog.to_regclass(:table) AS pg_catalog.oid)
    """
)
_RENDERED: Final = (
    AddEncryptedColumnOp,
    DropEncryptedColumnOp,
    CompleteEncryptedTableOp,
    StripEncryptedTableOp,
    DropEncryptedTableOp,
)


def keep_ours_out(context: AutogenContext) -> None:
    """Let Alembic compare no table of this package that no model of the environment declares.

    Otherwise it logs each as removed, though :func:`complete_changes` takes the removal out.
    """

    def is_theirs(item: Any, name: str | None, kind: str, reflected: bool, compared_to: Any) -> bool:
        if kind != "table" or not reflected or compared_to is not None:
            return True
        return not _is_ours(context, item.schema, str(name))

    filters = getattr(context, "_object_filters", None)
    if isinstance(filters, list | tuple):
        context._object_filters = [*filters, is_theirs]  # noqa: SLF001  # Alembic has no other way to add one


def complete_changes(context: AutogenContext, upgrade: ops.UpgradeOps, *_: Any) -> None:
    """Rewrite the changes that Alembic found, so that encrypted tables get all that their declarations need.

    Raises:
        CommandError: A change would leave values that nobody could open.
    """
    if context.dialect is None or context.dialect.name != "postgresql":
        return
    _register_renderers()
    rewritten = [_rewritten(context, each) for each in upgrade.ops]
    upgrade.ops[:] = [each for each in rewritten if each is not None and not _is_empty(each)]
    changed = {(each.schema, each.table_name) for each in upgrade.ops if isinstance(each, ops.ModifyTableOps)}
    created = {(each.schema, each.table_name) for each in upgrade.ops if isinstance(each, ops.CreateTableOp)}
    for table in context.sorted_tables:
        place = (_schema_of(context, table), str(table.name))
        if place in changed or place in created or not _encrypted(table):
            continue
        if _is_included(context, table, place) and (lack := _lacking(context, table, place[0], [])).is_needed:
            upgrade.ops.append(ModifyEncryptedTableOps(table.name, [lack], schema=place[0]))


def _rewritten(context: AutogenContext, operation: ops.MigrateOperation) -> ops.MigrateOperation | None:
    """Return an operation as it should be; None where it is left out."""
    if isinstance(operation, ops.ModifyTableOps):
        if _is_ours(context, operation.schema, str(operation.table_name)):
            return None
        return _rewritten_changes(context, operation)
    if isinstance(operation, ops.CreateTableOp):
        table = operation.to_table()
        return CreateEncryptedTableOp.of(operation, _completion(table)) if _encrypted(table) else operation
    if isinstance(operation, ops.DropTableOp):
        table = operation.to_table()
        if _is_ours(context, operation.schema, str(operation.table_name)):
            return None
        return DropEncryptedTableOp.of(operation, _completion(table)) if _encrypted(table) else operation
    return operation


def _rewritten_changes(context: AutogenContext, changes: ops.ModifyTableOps) -> ops.ModifyTableOps:
    table = _declared(context, changes.schema, str(changes.table_name))
    for each in changes.ops:
        _require_same_context(each)
        _require_versions(table, each)
    changes.ops[:] = [_rewritten_column(each) for each in changes.ops if not _is_of_ours(table, each)]
    dropped = [each.column_name for each in changes.ops if isinstance(each, DropEncryptedColumnOp)]
    versioned = _versioned(context, changes.schema, str(changes.table_name)) if dropped else set()
    if lost := [each for each in dropped if each in versioned]:  # so that they come back with the columns
        changes.ops.insert(0, StripEncryptedTableOp(str(changes.table_name), versions=lost, schema=changes.schema))
    if table is not None and _encrypted(table) and not _is_new(context, changes):
        added = [each.column_name for each in changes.ops if isinstance(each, AddEncryptedColumnOp)]
        lack = _lacking(context, table, changes.schema, added)
        if lack.is_needed:
            changes.ops.append(lack)
    if any(isinstance(each, _RENDERED) for each in changes.ops):
        return ModifyEncryptedTableOps(changes.table_name, changes.ops, schema=changes.schema)
    return changes


def _require_same_context(operation: ops.MigrateOperation) -> None:
    """Refuse to write a migration by which a column is declared as what its values are not bound to.

    Raises:
        CommandError: It would be.
    """
    if not isinstance(operation, ops.AlterColumnOp) or operation.modify_comment is False:
        return
    before, after = declared_in(operation.existing_comment), declared_in(operation.modify_comment)
    if before is None or (after is not None and after[0] == before[0]):
        return
    raise CommandError(
        f"the values of {operation.table_name}.{operation.column_name} are bound to the context {before[0]}, and the model declares "
        f"{after[0] if after else 'nothing'}: give encrypted_column(), and its blind_index_column(), context={before[0]!r}. A column without "
        "values can be dropped and added again, each by a migration of its own"
    )


def _require_versions(table: Table | None, operation: ops.MigrateOperation) -> None:
    """Refuse to write a migration that drops the key versions of rows whose values stay.

    Raises:
        CommandError: It would.
    """
    is_drop = isinstance(operation, ops.DropColumnOp) and operation.column_name == VERSION_COLUMN
    if is_drop and table is not None and (stay := _encrypted(table)):
        raise CommandError(
            f"the model of {table.name} has no column {VERSION_COLUMN}, without which nobody knows the key of {', '.join(stay)}: "
            "give it EncryptedRow or EncryptedInPlace as a base"
        )


def _rewritten_column(operation: ops.MigrateOperation) -> ops.MigrateOperation:
    if isinstance(operation, ops.AddColumnOp):
        return _adding(operation.table_name, operation.schema, operation.column) or operation
    if isinstance(operation, ops.DropColumnOp):
        column = operation.to_column()
        added = _adding(operation.table_name, operation.schema, column)
        if added is not None:
            return added.reverse()
        of_encrypted = column.table is not None and bool(_encrypted(column.table))
        if declared_in(column.comment) or (of_encrypted and column.primary_key):  # to which values are bound
            again = operation.reverse()
            return DropEncryptedColumnOp(
                str(operation.table_name), str(column.name), schema=operation.schema, added=again
            )
    return operation


def _is_of_ours(table: Table | None, operation: ops.MigrateOperation) -> bool:
    """Say whether a change is about a CHECK that this package keeps itself, of a format or of the oldest key version."""
    if table is None or not isinstance(operation, ops.CreateCheckConstraintOp | ops.DropConstraintOp):
        return False
    name = str(table.name)
    kept = {floor_constraint(name)}
    for column in _encrypted(table):
        kept |= {format_constraint(name, column), version_constraint(name, column)}
    return str(operation.constraint_name) in kept


def _adding(table_name: str, schema: str | None, column: Any) -> AddEncryptedColumnOp | None:
    """Return the operation that adds an encrypted column; None where it is none, or has more than such a column has."""
    found = declared_in(column.comment)
    if found is None or not isinstance(column.type, LargeBinary) or column.server_default is not None:
        return None
    return AddEncryptedColumnOp(
        str(table_name),
        str(column.name),
        found[1],
        context=found[0],
        nullable=bool(column.nullable),
        schema=schema,
    )


def _lacking(context: AutogenContext, table: Table, schema: str | None, added: list[str]) -> CompleteEncryptedTableOp:
    """Return what an existing table lacks beside the columns that are being added."""
    name = full_name(schema, str(table.name))
    assert context.connection is not None
    row = context.connection.execute(_STATE, {"table": name, **MARKS}).one_or_none()
    if row is None:
        return CompleteEncryptedTableOp(str(table.name), schema=schema)
    checks = [each for each in _encrypted(table) if each not in added and each not in row.guarded]
    room = _fillfactor(table) if row.relkind == "r" and not row.has_room else None
    versioned = _versioned(context, schema, str(table.name)) if _is_in_place(table) else set(_encrypted(table))
    versions = [each for each in _encrypted(table) if each not in versioned]
    return CompleteEncryptedTableOp(
        str(table.name), checks=checks, versions=versions, external=checks, fillfactor=room, schema=schema
    )


def _is_in_place(table: Table) -> bool:
    version = table.c.get(VERSION_COLUMN)
    return version is not None and bool(version.nullable) and version.comment == IN_PLACE_COMMENT


def _versioned(context: AutogenContext, schema: str | None, name: str) -> set[str]:
    """Return the columns of a table in the database that have the CHECK that a value has a key version."""
    assert context.connection is not None
    full = full_name(schema, name)
    known = context.connection.execute(WITH_VERSION, {"table": full, "version": VERSION_COLUMN})
    return {str(row.attname) for row in known}


def _completion(table: Table) -> CompleteEncryptedTableOp:
    """Return what a new table lacks, if it is created as Alembic does: the storage and the room."""
    is_partitioned = bool(table.dialect_options["postgresql"]["partition_by"])
    room = None if is_partitioned else _fillfactor(table)
    return CompleteEncryptedTableOp(str(table.name), external=_encrypted(table), fillfactor=room, schema=table.schema)


def _fillfactor(table: Table) -> int:
    options = table.dialect_options["postgresql"]
    given = (options.get("with", None) or {}) if "with" in options else {}
    by_name = {str(name).lower(): value for name, value in given.items()}
    return int(by_name.get("fillfactor") or table.info.get(FILLFACTOR_INFO) or FILLFACTOR)


def _encrypted(table: Table) -> list[str]:
    return [str(column.name) for column in table.c if declared_in(column.comment)]


def _is_ours(context: AutogenContext, schema: str | None, name: str) -> bool:
    """Say whether a table of the database is this package's, and no model of the environment declares it."""
    if _declared(context, schema, name) is not None:
        return False
    if name == VERSION_TABLE:
        return True
    known = Base.metadata.tables.get(name)
    if known is None:
        return False
    found = {each["name"] for each in context.inspector.get_columns(name, schema=schema)}
    return found >= set(known.c.keys())


def _declared(context: AutogenContext, schema: str | None, name: str) -> Table | None:
    tables = context.table_key_to_table
    default = context.dialect.default_schema_name if context.dialect is not None else None
    keys = [f"{schema}.{name}"] if schema else [name, f"{default}.{name}"]
    return next((tables[key] for key in keys if key in tables), None)


def _schema_of(context: AutogenContext, table: Table) -> str | None:
    default = context.dialect.default_schema_name if context.dialect is not None else None
    return None if table.schema == default else table.schema


def _is_new(context: AutogenContext, changes: ops.ModifyTableOps) -> bool:
    return not context.inspector.has_table(str(changes.table_name), schema=changes.schema)


def _is_included(context: AutogenContext, table: Table, place: tuple[str | None, str]) -> bool:
    """Say whether the environment compares this table, and the database has it."""
    schema, name = place
    return (
        context.run_name_filters(schema, "schema", {})
        and context.run_name_filters(name, "table", {"schema_name": schema})
        and context.run_object_filters(table, name, "table", False, None)
        and context.inspector.has_table(name, schema=schema)
    )


def _is_empty(operation: ops.MigrateOperation) -> bool:
    return isinstance(operation, ops.ModifyTableOps) and operation.is_empty()


def _render(context: AutogenContext, operation: Any) -> str:
    return f"{context.opts['alembic_module_prefix'] or ''}{operation.rendered()}"


def _register_renderers() -> None:
    """Register how operations are written, when that is first needed: Alembic loads plugins before it has its renderers."""
    from alembic.autogenerate import render

    if (AddEncryptedColumnOp, "default") in render.renderers._registry:  # noqa: SLF001
        return
    for kind in _RENDERED:
        render.renderers.dispatch_for(kind)(_render)
    render.renderers.dispatch_for(ModifyEncryptedTableOps)(
        lambda context, changes: [line for each in changes.ops for line in render.render_op(context, each)]
    )
    plain = render.renderers.dispatch(ops.CreateTableOp)

    def created(context: AutogenContext, operation: CreateEncryptedTableOp) -> list[str]:
        lines = [plain(context, operation)]
        if operation.completion.is_needed:
            lines.append(_render(context, operation.completion))
        return lines

    render.renderers.dispatch_for(CreateEncryptedTableOp)(created)
