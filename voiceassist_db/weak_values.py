"""How many stored values are under another cipher than AES, or without an integrity check, by what their packets say.

Owns the scan, inside the server and without a key: an auditor may run it. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from voiceassist_db.execution import execute, regclass
from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.packets import weakness

SAMPLE_BYTES: Final = 256 << 20
"""Pages of a table that a look reads, 256 MiB; of a larger table a sample."""

_SIZE: Final = text(
    """
    SELECT pg_catalog.sum(pg_catalog.pg_relation_size(t.oid)) FROM (
        SELECT CAST(:name AS pg_catalog.regclass) AS oid
        UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(CAST(:name AS pg_catalog.regclass)) p) t
    """
)
_READABLE: Final = text(
    """
    SELECT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')
       AND NOT pg_catalog.row_security_active(c.oid)
       AND NOT EXISTS (SELECT FROM pg_catalog.unnest(CAST(:columns AS pg_catalog.text[])) AS given (name)
                       WHERE NOT pg_catalog.has_column_privilege(c.oid, given.name, 'SELECT'))
    FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) CAST(:name AS pg_catalog.regclass)
    """
)


@dataclass(frozen=True, slots=True)
class WeakValues:
    """Values of one field with one weakness.

    Attributes:
        table: The table's name.
        field: The field's name.
        weakness: What is wrong with them: a name of ``models.packets``.
        values: How many; of a sample, as many as were found in it.
    """

    table: str
    field: str
    weakness: str
    values: int


def may_read(connection: Connection, table: EncryptedTable) -> bool:
    """Say whether this role may read the ciphertext of every row of a table."""
    given = {
        "name": regclass(connection, table.table),
        "columns": [each.column for each in table.fields.values()],
    }
    return bool(execute(connection, _READABLE, given, table=table.name).scalar_one())


def sampled_share(connection: Connection, table: EncryptedTable) -> float:
    """Return the share of a table's pages that a look should read, for a large one: at most 1."""
    size = execute(connection, _SIZE, {"name": regclass(connection, table.table)}, table=table.name).scalar_one() or 0
    return min(1.0, SAMPLE_BYTES / float(size)) if size else 1.0


def weak_values(connection: Connection, table: EncryptedTable, *, share: float = 1.0) -> list[WeakValues]:
    """Count the values whose packets are not AES with an integrity check, in one scan.

    Args:
        connection: A connection whose role may read the table's ciphertext; it need not receive keys.
        table: The table.
        share: The share of its pages to look at.
    """
    preparer = connection.dialect.identifier_preparer
    fields = list(table.fields.values())
    columns = [preparer.quote(each.column) for each in fields]
    counted = ", ".join(
        f"(CAST({at} AS pg_catalog.int4), {weakness(f't.{column}')})" for at, column in enumerate(columns)
    )
    sample = f" TABLESAMPLE pg_catalog.system ({share * 100:.6f})" if share < 1 else ""
    source = f"{preparer.format_table(table.table)} AS t{sample}"
    # Quoted names have their percent signs doubled, as text() does itself; a colon is no parameter.
    source, counted = (each.replace("%%", "%").replace(":", "\\:") for each in (source, counted))
    statement = text(
        f"""
        SELECT w.at, w.weakness, pg_catalog.count(*) AS found
        FROM {source} CROSS JOIN LATERAL (VALUES {counted}) AS w (at, weakness)
        WHERE w.weakness IS NOT NULL GROUP BY w.at, w.weakness ORDER BY w.at, w.weakness
        """  # noqa: S608  # of quoted names and constants
    )
    rows = execute(connection, statement, table=table.name).all()
    return [WeakValues(table.name, fields[row.at].name, row.weakness, row.found) for row in rows]
