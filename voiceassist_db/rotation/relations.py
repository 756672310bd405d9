"""Where rows physically are: a table's own pages, or those of each partition.

Owns the look-up in the catalogue. A declaration is of a table; pages, and so windows of pages, are of a relation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import Connection, MetaData, Row, text

from voiceassist_db.errors import RotationError
from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import EncryptedTable
from voiceassist_db.pgcrypto.binding import require_keys
from voiceassist_db.safety import DISTRIBUTED, unsafe_schemas

_LEAVES: Final = text(
    """
    SELECT c.oid::bigint AS oid, n.nspname, c.relname, c.relkind,
           c.oid OPERATOR(pg_catalog.<>) CAST(:name AS pg_catalog.regclass) AS is_partition,
           n.nspname OPERATOR(pg_catalog.=) pg_catalog.current_schema() AS is_default,
           coalesce((SELECT o.option_value::int FROM pg_catalog.pg_options_to_table(c.reloptions) o
                     WHERE o.option_name OPERATOR(pg_catalog.=) 'fillfactor'), 100) AS fillfactor
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relkind OPERATOR(pg_catalog.<>) 'p' AND (
        c.oid OPERATOR(pg_catalog.=) CAST(:name AS pg_catalog.regclass)
        OR c.oid OPERATOR(pg_catalog.=) ANY (
            SELECT p.relid FROM pg_catalog.pg_partition_tree(CAST(:name AS pg_catalog.regclass)) p)
    )
    ORDER BY n.nspname, c.relname
    """
)
_PAGES: Final = text(
    "SELECT pg_catalog.pg_relation_size(CAST(:oid AS pg_catalog.oid)) "
    "OPERATOR(pg_catalog./) CAST(pg_catalog.current_setting('block_size') AS bigint)"
)
_SIZES: Final = text(
    "SELECT pg_catalog.pg_table_size(CAST(:oid AS pg_catalog.oid)) AS rows, "
    "pg_catalog.pg_indexes_size(CAST(:oid AS pg_catalog.oid)) AS indexes"
)


@dataclass(frozen=True, eq=False)
class Relation:
    """One heap of rows.

    Attributes:
        table: What it holds, under the name of the partition where it is one.
        declared_name: Name of the table that application code knows.
        oid: Its number in the catalogue.
        fillfactor: Percent of a page that inserts fill: of a partition its own, for a partitioned table has none.
    """

    table: EncryptedTable
    declared_name: str
    oid: int
    fillfactor: int

    def pages(self, connection: Connection) -> int:
        """Return how many pages it has now; none where it was dropped."""
        return int(execute(connection, _PAGES, {"oid": self.oid}, table=self.table.name).scalar_one() or 0)

    def sizes(self, connection: Connection) -> tuple[int, int]:
        """Return the bytes of its rows, TOAST included, and of its indexes."""
        row = execute(connection, _SIZES, {"oid": self.oid}, table=self.table.name).one()
        return row.rows, row.indexes


def require_local_tables(connection: Connection) -> None:
    """Refuse a database whose tables Citus distributes; asked before the key store is touched.

    Raises:
        RotationError: A table of ours is distributed.
    """
    has_citus = text("SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL")
    if not execute(connection, has_citus, table="pg_dist_partition").scalar_one():
        return
    rows = execute(connection, text(DISTRIBUTED), table="pg_dist_partition")
    if findings := unsafe_schemas(tuple(row) for row in rows):
        raise RotationError(f"Citus is not supported. {' '.join(str(each) for each in findings)}")


_HIDDEN: Final = text(
    """
    SELECT pg_catalog.quote_ident(current_user) AS role
    WHERE pg_catalog.row_security_active(CAST(:name AS pg_catalog.regclass))
       OR EXISTS (SELECT FROM pg_catalog.pg_partition_tree(CAST(:name AS pg_catalog.regclass)) p WHERE pg_catalog.row_security_active(p.relid))
    """
)


def require_all_rows(connection: Connection, tables: Iterable[EncryptedTable]) -> None:
    """Refuse a role from which row-level security hides rows, before the key store is touched.

    Raises:
        RotationError: A table hides rows from the role.
    """
    for table in tables:
        row = execute(connection, _HIDDEN, {"name": regclass(connection, table.table)}, table=table.name).first()
        if row is not None:
            raise RotationError(
                f"row-level security of {table.name} hides rows from this role, and a rotation must see all: ALTER ROLE {row.role} BYPASSRLS, "
                "as `voiceassist-db provision` does for the rotator of such tables (and for their owner, where it is forced). No key was "
                "changed"
            )


def require_safe_connection(connection: Connection) -> None:
    """Refuse a connection that may not send keys, before the key store gets a new key that no row could be written under.

    Raises:
        UnsafeConnectionError: It may not.
    """
    require_keys(cast(Any, connection.connection.driver_connection))


def relations_of(connection: Connection, table: EncryptedTable) -> list[Relation]:
    """Return the relations that hold a table's rows.

    Raises:
        RotationError: A partition is a foreign table, or the version is part of the primary key. It is wherever a table is
            partitioned by it, so that no row moves to another partition when it is rotated.
    """
    if table.version.name in {column.name for column in table.key}:
        raise RotationError(
            f"{table.name} has {table.version.name} in its primary key, to which values are bound, so that it cannot change: "
            "leave it out of the key, and do not partition by it"
        )
    name = {"name": regclass(connection, table.table)}
    return [_relation(table, row) for row in execute(connection, _LEAVES, name, table=table.name)]


def _relation(table: EncryptedTable, row: Row[Any]) -> Relation:
    if row.relkind != "r":
        raise RotationError(
            f"the partition {row.relname} of {table.name} is not an ordinary table: rotate it where it is"
        )
    if not row.is_partition:
        return Relation(table, table.name, row.oid, row.fillfactor)
    schema: Any = None if row.is_default else row.nspname  # SQLAlchemy types None as if it were not a schema
    partition = table.table.to_metadata(MetaData(), schema=schema, name=row.relname)
    return Relation(EncryptedTable.of(partition), table.name, row.oid, row.fillfactor)
