"""What a server's catalogue says of a table: everything that a migration could leave out."""

from __future__ import annotations

from sqlalchemy import Connection, text

_OF_TABLE = """
    SELECT 'column', a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull::text, a.attidentity::text,
           coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''), coalesce(pg_catalog.col_description(a.attrelid, a.attnum), '')
    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = CAST(:table AS regclass) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_CONSTRAINTS = """
    SELECT 'constraint', conname::text, pg_catalog.pg_get_constraintdef(oid), convalidated::text
    FROM pg_catalog.pg_constraint WHERE conrelid = CAST(:table AS regclass) ORDER BY conname
"""
_INDEXES = """
    SELECT 'index', pg_catalog.pg_get_indexdef(indexrelid) FROM pg_catalog.pg_index WHERE indrelid = CAST(:table AS regclass) ORDER BY 2
"""
_OPTIONS = """
    SELECT 'options', relkind::text, coalesce(pg_catalog.array_to_string(reloptions, ','), ''), relpersistence::text
    FROM pg_catalog.pg_class WHERE oid = CAST(:table AS regclass)
"""


def snapshot(connection: Connection, table: str) -> list[tuple[str, ...]]:
    """Return a table's columns in their order, constraints, indexes and options."""
    queries = (_OF_TABLE, _CONSTRAINTS, _INDEXES, _OPTIONS)
    return [tuple(row) for query in queries for row in connection.execute(text(query), {"table": table})]
