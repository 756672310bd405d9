"""Which encrypted tables a database has, read from the database itself.

Owns discovery. Rotation, status and verify work on what is found here, so that a table of any team is rotated and verified
without being named anywhere, and a column that merely looks encrypted is never passed over in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import SAWarning

from voiceassist_db.blind_index import NORMALISERS
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.execution import execute
from voiceassist_db.models import EncryptedTable, declared_tables, undeclared_columns
from voiceassist_db.models.declaration import ENCRYPTED_SUFFIX
from voiceassist_db.safety import NOT_TRUSTED

_CANDIDATES = text(
    f"""
    SELECT DISTINCT n.nspname, c.relname, n.nspname = CAST(:default AS name) AS is_default,
        pg_catalog.pg_get_userbyid(c.relowner) AS owner, {NOT_TRUSTED.format(role="c.relowner")} AS is_foreign
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
      AND coalesce(nullif(t.typbasetype, 0), t.oid) = 'pg_catalog.bytea'::regtype
      AND (a.attname LIKE :suffix OR pg_catalog.col_description(c.oid, a.attnum) LIKE 'encrypted %')
    ORDER BY 1, 2
    """  # noqa: S608  # of constants
)


@contextmanager
def system_names(connection: Connection) -> Iterator[str | None]:
    """Look names up in the system's own schema only, for the block: what others put into a search path may run as whoever asks.

    Yields:
        The schema that names without one are in, outside the block.
    """
    before = text("SELECT pg_catalog.current_setting('search_path') AS path, pg_catalog.current_schema() AS name")
    row = execute(connection, before, table="search_path").one()
    set_path = text("SELECT pg_catalog.set_config('search_path', CAST(:path AS pg_catalog.text), true)")
    execute(connection, set_path, {"path": "pg_catalog, pg_temp"}, table="search_path")
    yield row.name
    execute(connection, set_path, {"path": row.path}, table="search_path")


@contextmanager
def _without_false_alarm() -> Iterator[None]:
    with warnings.catch_warnings():
        # SQLAlchemy 2.1 trips over what it has itself read of a constraint that is NOT VALID yet.
        warnings.filterwarnings("ignore", "Can't validate argument 'dialect_options'", SAWarning)
        yield


def encrypted_tables(connection: Connection) -> list[EncryptedTable]:
    """Return every encrypted table of the database, by name.

    Raises:
        SchemaNotMigratedError: A table has columns named ``*_encrypted`` that carry no declaration, or one that cannot be
            followed, so that nobody could know how to rotate them.
    """
    with system_names(connection) as default:
        given = {"suffix": f"%{ENCRYPTED_SUFFIX}", "default": default}
        candidates = execute(connection, _CANDIDATES, given, table="pg_class").all()
        reflected = MetaData()
        with _without_false_alarm():
            for schema in sorted({row.nspname for row in candidates}):
                names = {row.relname for row in candidates if row.nspname == schema}
                chosen = lambda name, _, names=names: name in names  # noqa: E731
                reflected.reflect(connection, schema=schema, only=chosen, resolve_fks=False)
    if foreign := [f"{row.nspname}.{row.relname} of {row.owner}" for row in candidates if row.is_foreign]:
        raise SchemaNotMigratedError(
            f"{', '.join(foreign)}: declared as encrypted, but its owner may not create schemas in this database, so that it is not "
            "known whether to trust its triggers. After a look at them, GRANT CREATE ON DATABASE to its owner, or ALTER TABLE … "
            "OWNER TO one who may; or drop it."
        )
    metadata = MetaData()
    with _without_false_alarm():
        for each in reflected.tables.values():
            each.to_metadata(metadata, schema=None if each.schema == default else each.schema)  # type: ignore[arg-type]  # None is one
    if undeclared := undeclared_columns(metadata):
        raise SchemaNotMigratedError(
            f"{', '.join(undeclared)}: named as encrypted, but without the comment that says of what type and for what "
            "context, so that no rotation could include it. Declare it with encrypted_column() and migrate, or rename it."
        )
    try:
        tables = declared_tables(metadata)
    except ValueError as error:
        known = ", ".join(sorted(metadata.tables))
        raise SchemaNotMigratedError(f"one of {known} is not declared as an encrypted table must be: {error}") from None
    for table in tables:
        for field in table.fields.values():
            if field.normaliser is not None and field.normaliser not in NORMALISERS:
                raise SchemaNotMigratedError(
                    f"{table.name}.{field.index_column}: there is no normaliser {field.normaliser!r}, so that its blind index "
                    f"can be neither searched nor verified; there are {', '.join(sorted(NORMALISERS))}"
                )
    return tables
