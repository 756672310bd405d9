"""Tables with primary keys of every type that a value can be bound to, filled and read by SQL of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, text

from voiceassist_db.models import Kind

PLAINTEXTS: Final[dict[str, tuple[Kind, str | bytes | None]]] = {
    "note": (Kind.TEXT, "Zoë\r\n\t𝄞 ﷽ 'NULL' \\x41 %s"),
    "scan": (Kind.BYTES, b"\x00\xff\r\n\\"),
    "born": (Kind.DATE, "1980-01-02"),
    "seen": (Kind.DATETIME, "2026-01-02T03:04:05+00:00"),
    "size": (Kind.INTEGER, "-12345678901234567890"),
    "dose": (Kind.DECIMAL, "0.10"),
    "meta": (Kind.JSON, '{"a":null}'),
    "empty": (Kind.TEXT, ""),
    "blank": (Kind.BYTES, b""),
    "absent": (Kind.TEXT, None),
    "unseen": (Kind.BYTES, None),
}
"""The encrypted fields of each table, and what each row holds in them before it is bound."""

SHORT_FIELDS: Final = ("note", "scan", "blank", "absent")
"""Fields that differ in SQL: each other kind is text to the server."""


@dataclass(frozen=True)
class Part:
    """A value of one column of a primary key.

    Attributes:
        sql: The value as the server reads it.
        spelled: The text that values are bound to; None where Python cannot hold the value, so that none may be bound to it.
    """

    sql: str
    spelled: str | None


def same(*values: object) -> list[Part]:
    """Return parts that are spelled as they are read."""
    return [Part(str(each), str(each)) for each in values]


DAYS: Final = [
    *same("2026-01-02", "0001-01-01", "0099-12-31", "1582-10-10", "2024-02-29", "9999-12-31"),
    *(
        Part(each, None)
        for each in (
            "infinity",
            "-infinity",
            "0001-12-31 BC",
            "0044-03-15 BC",
            "4713-01-01 BC",
            "10000-01-01",
            "294276-12-31",
            "294277-01-01",
            "5874897-12-31",
        )
    ),
]
TEXTS: Final = [
    *same("a", "", " ", "NULL", "infinity", "é𝄞﷽", "it's \\x41 $1", "line\r\nbreak", "x" * 40),
    Part("a/b", "a%2Fb"),
    Part("a:b", "a%3Ab"),
    Part("%2F", "%252F"),
]
UUIDS: Final = same(
    "00000000-0000-0000-0000-000000000000",
    "018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
)

KEYS: Final[dict[str, list[tuple[str, list[Part]]]]] = {
    "date": [("date", DAYS)],
    "uuid": [("uuid", UUIDS)],
    "smallint": [("smallint", same(0, -1, -(2**15), 2**15 - 1))],
    "integer": [("integer", same(0, -1, -(2**31), 2**31 - 1))],
    "bigint": [("bigint", same(0, -1, -(2**63), 2**63 - 1))],
    "text": [("text", TEXTS)],
    "varchar": [("varchar(40)", TEXTS)],
    "collated": [('text COLLATE "C"', TEXTS)],
    "dated": [("text", TEXTS[-3:-2]), ("date", [DAYS[0], DAYS[6], DAYS[8], DAYS[11]]), ("integer", same(-1, 7))],
    "days": [("date", [DAYS[1], DAYS[7]]), ("date", [DAYS[5], DAYS[6], DAYS[9]])],
}
"""By name of a table: the types of its primary key's columns, and values of each."""


class Table:
    """A table whose rows a bare ``pgp_sym_encrypt`` wrote.

    Args:
        name: A name of :data:`KEYS`.
        fields: Names of :data:`PLAINTEXTS`.
        is_required: Whether its encrypted columns are NOT NULL.
    """

    def __init__(
        self,
        name: str,
        fields: Sequence[str] = tuple(PLAINTEXTS),
        *,
        is_required: bool = False,
        only_held: bool = False,
    ) -> None:
        self.name = f"kept_{name}"
        self.types = [type_ for type_, _ in KEYS[name]]
        self.fields = [each for each in fields if not is_required or PLAINTEXTS[each][1] is not None]
        self.is_required = is_required
        self.keys = [
            key for key in itertools.product(*(parts for _, parts in KEYS[name])) if not only_held or held(key)
        ]

    def create(self, connection: Connection) -> None:
        """Create the table, with no row."""
        null = "NOT NULL" if self.is_required else "NULL"
        columns = [f"k{at} {type_}" for at, type_ in enumerate(self.types)]
        columns += [f"{each}_encrypted bytea {null}" for each in self.fields]
        key = ", ".join(f"k{at}" for at in range(len(self.types)))
        run(
            connection,
            f"CREATE TABLE {self.name} (n integer, {', '.join(columns)}, key_version integer NOT NULL, PRIMARY KEY ({key}))",
        )
        for each in self.fields:
            comment = f"encrypted {self.name}.{each} as {PLAINTEXTS[each][0].value}"
            run(connection, f"COMMENT ON COLUMN {self.name}.{each}_encrypted IS '{comment}'")

    def fill(self, connection: Connection, key: str, version: int = 1) -> None:
        """Write its rows under a key of scheme ``direct``."""
        parts = [f"CAST(:k{at} AS {type_.split(' ')[0]})" for at, type_ in enumerate(self.types)]
        sealed = [
            f"pgcrypto.pgp_sym_encrypt{'_bytea' if PLAINTEXTS[each][0] is Kind.BYTES else ''}(:{each}, :key)"
            for each in self.fields
        ]
        insert = text(f"INSERT INTO {self.name} VALUES (:n, {', '.join((*parts, *sealed))}, {version})")
        values = {each: PLAINTEXTS[each][1] for each in self.fields} | {"key": key}
        rows = [
            values | {"n": n} | {f"k{at}": part.sql for at, part in enumerate(each)} for n, each in enumerate(self.keys)
        ]
        connection.execute(insert, rows)

    def bound(self, n: int, field: str) -> bytes | None:
        """Return what a field of a row must hold once it is bound."""
        value = PLAINTEXTS[field][1]
        if value is None:
            return None
        row = "/".join(str(part.spelled) for part in self.keys[n])
        return f"{self.name}.{field}:{row}:".encode() + (value if isinstance(value, bytes) else value.encode())

    def unheld(self) -> list[int]:
        """Return the numbers of the rows whose key Python cannot hold."""
        return [n for n, each in enumerate(self.keys) if not held(each)]

    def nulls(self, connection: Connection) -> dict[int, list[str]]:
        """Return the fields that are NULL, by row."""
        absent = ", ".join(f"{each}_encrypted IS NULL" for each in self.fields)
        found = connection.execute(text(f"SELECT n, {absent} FROM {self.name} ORDER BY n"))
        return {n: [name for name, is_null in zip(self.fields, row, strict=True) if is_null] for n, *row in found.all()}

    def absent(self) -> dict[int, list[str]]:
        """Return the fields that must be NULL, by row."""
        return {n: [each for each in self.fields if PLAINTEXTS[each][1] is None] for n in range(len(self.keys))}

    def as_stored(self, connection: Connection, rows: Sequence[int]) -> list[Any]:
        """Return rows as they are, byte for byte."""
        select = text(f"SELECT {self.name}::text FROM {self.name} WHERE n = ANY (:rows) ORDER BY n")
        return list(connection.execute(select, {"rows": list(rows)}).scalars())

    def opened(
        self, connection: Connection, keys: dict[str, str], rows: Sequence[int]
    ) -> dict[int, list[bytes | None]]:
        """Return what rows hold, by the key of each field."""
        opened = ", ".join(f"pgcrypto.pgp_sym_decrypt_bytea({each}_encrypted, :{each})" for each in self.fields)
        select = text(f"SELECT n, {opened} FROM {self.name} WHERE n = ANY (:rows)")
        found = connection.execute(select, {each: keys[each] for each in self.fields} | {"rows": list(rows)})
        return {n: [None if each is None else bytes(each) for each in row] for n, *row in found.all()}


def held(key: Sequence[Part]) -> bool:
    """Say whether Python can hold a key."""
    return all(part.spelled is not None for part in key)


def run(connection: Connection, statement: str) -> None:
    """Run SQL as it is."""
    connection.connection.cursor().execute(statement)
