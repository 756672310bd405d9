"""Tables as teams make them, and a look at whether a rotation changed anything but their ciphertext."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ARRAY, Connection, LargeBinary, Text, cast, func, insert, literal, select

from voiceassist_db import Database
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Key
from voiceassist_db.models import EncryptedTable, Kind
from voiceassist_db.pgcrypto.codec import encoder, row_id
from voiceassist_db.pgcrypto.expressions import decrypt_stored, encrypt_new, parameters
from voiceassist_db.rotation import OnProgress, Pace, RotationReport, rotate

OPENS = """
CREATE FUNCTION pg_temp.opens(ciphertext bytea, key text) RETURNS boolean LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM pgcrypto.pgp_sym_decrypt_bytea(ciphertext, key);
    RETURN true;
EXCEPTION WHEN external_routine_invocation_exception THEN
    RETURN false;
END $$
"""
"""A look at one value: whether it opens with a key."""

NOTES: list[dict[str, Any]] = [
    {"note": "Zoë\r\n\tÑúñez 𝄞 ﷽", "scan": b"\x00\xff\r\n"},
    {"note": "", "scan": b""},
    {"note": None, "scan": None},
    {"note": "visits.note:1:x", "scan": b"visits.scan:1:x"},
    {"note": "only a note", "scan": None},
    {"note": "é" * 3000, "scan": bytes(range(256)) * 10},
]
"""Values of the encrypted columns, of which each row of a table takes the next."""

QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A table as a team makes it, in plain SQL, and its rows.

    Attributes:
        name: Its name, quoted where it must be.
        key: Its primary key columns and their types.
        keys: The primary keys of its rows.
        fields: Its encrypted fields and their kinds.
        options: What follows its columns.
        then: Further statements about it, before it is filled.
        filled: Further statements once it is filled.
        rows: Values of its fields, of which each row takes the next.
    """

    name: str = "visits"
    key: dict[str, str] = field(default_factory=lambda: {"id": "bigint"})
    keys: Sequence[tuple[Any, ...]] = tuple((n,) for n in range(300))
    fields: dict[str, Kind] = field(default_factory=lambda: {"note": Kind.TEXT, "scan": Kind.BYTES})
    options: str = ""
    then: str = ""
    filled: str = ""
    rows: Sequence[dict[str, Any]] = tuple(NOTES)

    @property
    def found_as(self) -> str:
        """The name that the catalogue knows it by."""
        return QUOTED.sub(lambda part: part[0][1:-1].replace('""', '"'), self.name)

    @property
    def context(self) -> str:
        """What its fields' contexts begin with."""
        return re.sub("[^A-Za-z0-9_.]", "-", self.name)

    def create(self, connection: Connection) -> None:
        """Create the table."""
        columns = [f"{name} {type_}" for name, type_ in self.key.items()]
        columns += [f'"{name}_encrypted" bytea' for name in self.fields]
        columns += ["key_version integer NOT NULL", "plain text DEFAULT 'é' || chr(13) || chr(10) || random()"]
        columns += [f"PRIMARY KEY ({', '.join(self.key)})"]
        run(connection, f"CREATE TABLE {self.name} ({', '.join(columns)}) {self.options}")
        for position, (name, kind) in enumerate(self.fields.items()):
            comment = f"encrypted {self.context}.f{position} as {kind.value}"
            run(connection, f"""COMMENT ON COLUMN {self.name}."{name}_encrypted" IS '{comment}'""")
        run(connection, self.then)

    def fill(self, connection: Connection, keyring: Keyring, table: EncryptedTable) -> None:
        """Write its rows under the current key, as a repository does, in one statement."""
        fields = tuple(table.fields.values())
        rows = list(zip(self.keys, itertools.cycle(self.rows), strict=False))
        arrays = [cast([key[at] for key, _ in rows], ARRAY(each.type)) for at, each in enumerate(table.key)]
        for each in fields:
            encode, type_ = encoder(each), LargeBinary() if each.kind is Kind.BYTES else Text()
            values = [encode(keyring.current.scheme, row_id(key), row[each.name]) for key, row in rows]
            arrays.append(cast(values, ARRAY(type_)))
        names = [f"c{at}" for at in range(len(arrays))]
        given = func.unnest(*arrays).table_valued(*names, name="given").render_derived()
        of_key, of_fields = names[: len(table.key)], names[len(table.key) :]
        wanted: list[Any] = [given.c[name] for name in of_key]
        wanted += [encrypt_new(table, each, given.c[name]) for each, name in zip(fields, of_fields, strict=True)]
        columns = [*table.key, *(table.table.c[each.column] for each in fields), table.version]
        statement = insert(table.table).from_select(columns, select(*wanted, literal(keyring.current.version)))
        connection.execute(statement, parameters(keyring, table, fields))
        run(connection, self.filled)


def run(connection: Connection, statements: str) -> None:
    """Run SQL as it is, percent signs and colons included."""
    if statements:
        connection.connection.cursor().execute(statements)


def described(connection: Connection, keyring: Keyring, table: EncryptedTable) -> list[tuple[Any, ...]]:
    """Return every row: its other columns as they are, and a digest of the plaintext in each encrypted one."""
    fields = tuple(table.fields.values())
    changed = {table.version.name, *(each.column for each in fields)}
    plain = [each for each in table.table.c if each.name not in changed]
    digests = [func.md5(decrypt_stored(table, each)) for each in fields]
    statement = select(*plain, *digests).order_by(*table.key)
    return [tuple(row) for row in connection.execute(statement, parameters(keyring, table, fields))]


def opening(connection: Connection, table: EncryptedTable, key: Key) -> list[int]:
    """Return how many values of each encrypted column open with a key."""
    run(connection, OPENS)
    counts = []
    for each in table.fields.values():
        column_key = key.derive(each.context).expose().decode()
        opens = func.pg_temp.opens(table.table.c[each.column], column_key)
        counts.append(connection.execute(select(func.count()).select_from(table.table).where(opens)).scalar_one())
    run(connection, "DROP FUNCTION pg_temp.opens")
    return counts


def values_in(connection: Connection, table: EncryptedTable) -> list[int]:
    """Return how many values each encrypted column holds."""
    counts = [func.count(table.table.c[each.column]) for each in table.fields.values()]
    return list(connection.execute(select(*counts)).one())


def rotated(
    database: Database, *shapes: Shape, pace: Pace | None = None, on_progress: OnProgress | None = None
) -> RotationReport:
    """Make and fill tables, rotate, and look whether anything changed but the ciphertext, and all of that."""
    with database.engine.begin() as connection:
        for shape in shapes:
            shape.create(connection)
        found = {each.name: each for each in encrypted_tables(connection)}
        tables = [found[shape.found_as] for shape in shapes]
        keyring = database.keys.keyring(connection)
        for shape, table in zip(shapes, tables, strict=True):
            shape.fill(connection, keyring, table)
        before = [described(connection, keyring, table) for table in tables]
        rows = sum(connection.scalar(select(func.count()).select_from(each.table)) or 0 for each in found.values())
    old = database.keys.provider.fetch().key
    report = rotate(database.engine, database.keys, pace=pace, on_progress=on_progress)
    new = database.keys.provider.fetch().key
    with database.engine.begin() as connection:
        keyring = database.keys.keyring(connection)
        for shape, table, expected in zip(shapes, tables, before, strict=True):
            assert expected == described(connection, keyring, table), table.name
            assert len(shape.keys) == len(expected), table.name
            assert values_in(connection, table) == opening(connection, table, new), table.name
            assert not any(opening(connection, table, old)), table.name
    assert (report.remaining, report.quarantined, report.verified, report.done) == (0, 0, True, True)
    assert rows == report.rows
    return report
