"""What a declaration that was accepted must survive: everything that a table goes through in its life."""

from __future__ import annotations

import importlib.util
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql

import voiceassist_db.alembic
from tests.declarations.strategies import Declaration
from voiceassist_db import Database, Repository
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import gaps
from voiceassist_db.errors import NotFoundError
from voiceassist_db.models import EncryptedTable, Kind, table_of
from voiceassist_db.models.declaration import floor_constraint, format_constraint, version_constraint
from voiceassist_db.repositories.records import with_values

voiceassist_db.alembic.install()

ROWS: Final = 4
HAS_PLUGINS: Final = importlib.util.find_spec("alembic.runtime.plugins") is not None
"""Whether this Alembic is 1.18 or newer."""

KEYS: Final[dict[str, list[Any]]] = {
    "uuid": [UUID(int=n) for n in range(1, 5)],
    "integer": [-1, 0, 2**31 - 1, 7],
    "bigint": [-(2**63), 0, 2**63 - 1, 7],
    "text": ["", "a/b:%25", "Zoë %s %(id)s", "'\"\\"],
    "collated": ["b", "B", "a ", "a"],
    "varchar": [" ", "x" * 40, "é" * 40, "x" * 39],
    "date": [date(1, 1, 1), date(2026, 1, 2), date(9999, 12, 31), date(1970, 1, 1)],
}
PLAIN: Final[dict[str, list[Any]]] = {
    "text": ["a", "%s", "é:'\"\\", ""],
    "varchar": ["a", "%s", "é:'\"\\", ""],
    "integer": [1, 2, 3, 4],
    "boolean": [True, False, True, False],
    "moment": [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 5)],
    "json": [{"a": [1, None]}, {}, [], "text"],
    "bytes": [b"", b"\x00\xff", b"a", b"%s"],
    "decimal": [Decimal("1.50"), Decimal(0), Decimal("-1.25"), Decimal("9999999999.99")],
    "list": [[], [1], [2, 3], [-1]],
}
VALUES: Final[dict[Kind, list[Any]]] = {
    Kind.TEXT: ["Zoë\r\n%s :x", "", "'\"\\", "x" * 500],
    Kind.BYTES: [b"", b"\x00\xff", b"a", b"%s"],
    Kind.DATE: [date(1, 1, 1), date(2026, 1, 2), date(9999, 12, 31), date(1970, 1, 1)],
    Kind.DATETIME: [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 5)],
    Kind.INTEGER: [0, -1, 10**40, 7],
    Kind.DECIMAL: [Decimal("0.10"), Decimal("-1E+30"), Decimal(0), Decimal("12.50")],
    Kind.JSON: [{"é": [None, 1.5]}, {}, [], "text"],
}
SEARCHED: Final[dict[str, list[Any]]] = {
    "exact": ["a", "A", "é %s", "'"],
    "mrn": ["MRN-1", "MRN-2", "mrn 3", "4"],
    "name": ["Zoë Núñez", "ZOE", "Ann  Lee", "O'Hara"],
    "ssn": ["900-00-0001", "900000002", "900 00 0003", "900-00-0004"],
    "phone": ["+1 202 555 0100", "+49301234567", "+44 (0)20 7946 0000", "+1 202 555 0101"],
    "email": ["Ann@example.org", "a+b@b\u00fccher.example", "x@y", "ann.lee@example.org"],
    "postcode": ["02139", "SW1A 1AA", "12345-6789", "021-40"],
    "date": VALUES[Kind.DATE],
    "integer": VALUES[Kind.INTEGER],
}


@dataclass
class Held:
    """A declared table in a database, and the records that it must hold."""

    declaration: Declaration
    rows: type[Repository[Any]]
    records: list[Any]

    @property
    def table(self) -> EncryptedTable:
        """What the model declares."""
        return EncryptedTable.of(table_of(self.rows.model))

    def key_of(self, made: Any) -> Any:
        """Return the lookup key of a record."""
        key = tuple(getattr(made, name) for name in self.rows.lookup)
        return key[0] if len(key) == 1 else key


def created_names(table: sa.Table) -> set[str]:
    """Return the names that a table takes in its schema."""
    named: list[Any] = [*table.indexes, *table.constraints]
    return {table.name, *(each.name for each in named if isinstance(each.name, str))}


def create(connection: Connection, declaration: Declaration, table: sa.Table) -> None:
    """Create a table by the migration that Alembic writes for it, after which Alembic finds no difference."""

    def is_ours(name: str | None, type_: str, parents: Any) -> bool:
        if type_ == "schema":
            return name == declaration.schema
        return type_ != "table" or (name == declaration.table and parents.get("schema_name") == declaration.schema)

    if declaration.schema is not None:
        connection.execute(sa.schema.CreateSchema(declaration.schema, if_not_exists=True))
    options: dict[str, Any] = {"include_schemas": True, "include_name": is_ours}
    if HAS_PLUGINS:
        options["autogenerate_plugins"] = ["alembic.autogenerate.*", "voiceassist_db"]
    context = MigrationContext.configure(connection, opts=options | {"target_metadata": table.metadata})
    upgrade = produce_migrations(context, table.metadata).upgrade_ops
    assert upgrade is not None
    code = render_python_code(upgrade)
    migration: dict[str, Any] = {**vars(sa), "op": Operations(context), "sa": sa, "postgresql": postgresql}
    exec(f"def upgrade():\n    {code}", migration)  # noqa: S102  # Alembic's own
    migration["upgrade"]()
    if declaration.args == "partitions":
        create_partitions(connection, table)
    differences = compare_metadata(MigrationContext.configure(connection, opts=options), table.metadata)
    assert not differences, f"{differences} after {code}"


def create_partitions(connection: Connection, table: sa.Table) -> None:
    """Create the partitions of a table that is partitioned by the hash of its key."""
    preparer = connection.dialect.identifier_preparer
    for remainder in range(2):
        part = sa.Table(f"part_{remainder}_{abs(hash(table.name)):x}", sa.MetaData(), schema=table.schema)
        statement = (
            f"CREATE TABLE {preparer.format_table(part)} PARTITION OF {preparer.format_table(table)} "
            f"FOR VALUES WITH (MODULUS 2, REMAINDER {remainder}) WITH (fillfactor = 75)"
        )
        connection.exec_driver_sql(statement)


def records(declaration: Declaration, rows: type[Repository[Any]]) -> list[Any]:
    """Return records for a table, of values that are hard to keep."""
    made = []
    for n in range(ROWS):
        key = {} if declaration.has_server_key else declaration.key
        values: dict[str, Any] = {name: KEYS[type_][n] for name, type_ in key.items()}
        for name, plain in declaration.plain.items():
            if plain.is_kept:
                values[name] = None if plain.is_nullable and n == 3 else PLAIN[plain.type_][n]
        for name, each in declaration.fields.items():
            given = SEARCHED[each.normaliser] if each.normaliser else VALUES[each.kind]
            values[name] = None if n == 3 else given[n]
        made.append(rows.record(**values))
    return made


def fill(database: Database, declaration: Declaration, rows: type[Repository[Any]]) -> Held:
    """Write, read, search and change its rows."""
    held = Held(declaration, rows, records(declaration, rows))
    first, *others = held.records
    with database.transaction() as tx:
        kept = tx.repository(rows)
        if declaration.has_server_key:
            held.records = [with_key(declaration, each, kept.add(each)) for each in held.records]
        else:
            kept.add(first)
            assert len(others) == kept.add_many(others)
        first = held.records[0]
        if declaration.form == "in place":
            forget_versions(tx.session, held.table)
        read(kept, held)
        changes: dict[str, Any] = {}
        for name, each in declaration.fields.items():
            given = SEARCHED[each.normaliser] if each.normaliser else VALUES[each.kind]
            changes[name] = given[3]
        for name, plain in declaration.plain.items():
            if plain.is_kept and not plain.is_lookup and name not in {"created_at", "updated_at"}:
                changes[name] = PLAIN[plain.type_][1]
        key = held.key_of(first)
        kept.update(*key if isinstance(key, tuple) else [key], **changes)
        held.records[0] = with_values(first, changes)
        read(kept, held)
    return held


def with_key(declaration: Declaration, made: Any, key: Any) -> Any:
    """Return a record with the key that the server made."""
    return with_values(made, dict.fromkeys(declaration.key, key))


def forget_versions(session: Any, table: EncryptedTable) -> None:
    """Let the rows without values be as those that others insert."""
    has_none = sa.and_(*(table.table.c[each.column].is_(None) for each in table.fields.values()))
    session.execute(sa.update(table.table).where(has_none).values({table.version.name: None}))


def read(kept: Repository[Any], held: Held) -> None:
    """Read its rows in every way."""
    by_key = {held.key_of(each): each for each in held.records}
    for key, each in by_key.items():
        assert same(each, kept.get(*key if isinstance(key, tuple) else [key]))
    many = kept.get_many(by_key)
    assert many.keys() == by_key.keys()
    assert all(same(each, many[key]) for key, each in by_key.items())
    paged: list[Any] = []
    while page := kept.page(after=paged[-1] if paged else None, limit=3):
        paged += page
    assert len(paged) == len(held.records)
    assert {held.key_of(each) for each in paged} == by_key.keys()
    for name, field in held.declaration.fields.items():
        for each in held.records:
            value = getattr(each, name)
            if field.normaliser is not None and value is not None:
                assert held.key_of(each) in {held.key_of(found) for found in kept.find({name: value})}
            if field.part is not None and value is not None:
                assert held.key_of(each) in {held.key_of(found) for found in kept.find({f"{name}_part": value})}


def same(one: Any, other: Any) -> bool:
    """Say whether two records have the same values, but for what the server writes."""
    server = {"created_at", "updated_at"}
    return all(
        getattr(one, name) == getattr(other, name) for name in type(one).__dataclass_fields__ if name not in server
    )


def check_declared(connection: Connection, held: list[Held]) -> None:
    """Assert that the database says of each table what its model says, and that no table lacks anything."""
    found = {each.name: each for each in encrypted_tables(connection)}
    for each in held:
        declared, stored = each.table, found[each.table.name]
        assert [column.name for column in declared.key] == [column.name for column in stored.key]
        of_model = {name: astuple(field) for name, field in declared.fields.items()}
        assert of_model == {name: astuple(field) for name, field in stored.fields.items()}
        assert declared.is_in_place == stored.is_in_place == (each.declaration.form == "in place")
        assert gaps(connection, stored) == [], each.declaration


def check_constraints(connection: Connection, held: list[Held], floor: int) -> None:
    """Assert that every table has its floor and its formats, each proven over all rows."""
    query = text(
        "SELECT n.nspname, r.relname, c.conname, c.convalidated, pg_get_constraintdef(c.oid) AS definition FROM pg_constraint c "
        "JOIN pg_class r ON r.oid = c.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace WHERE c.contype = 'c'"
    )
    found = {(row.nspname, row.relname, row.conname): row for row in connection.execute(query)}
    for each in held:
        table = each.table.table
        place = (table.schema or "public", str(table.name))
        assert f">= {floor}" in found[*place, floor_constraint(table.name)].definition
        names = [floor_constraint(table.name)]
        names += [format_constraint(table.name, field.column) for field in each.table.fields.values()]
        if each.table.is_in_place:
            names += [version_constraint(table.name, field.column) for field in each.table.fields.values()]
        assert all(found[*place, name].convalidated for name in names)


def delete(database: Database, held: Held) -> None:
    """Delete its rows, after which none is found."""
    with database.transaction() as tx:
        kept = tx.repository(held.rows)
        for each in held.records:
            key = held.key_of(each)
            arguments = key if isinstance(key, tuple) else [key]
            kept.delete(*arguments)
            with pytest.raises(NotFoundError):
                kept.get(*arguments)
        assert kept.page() == []
