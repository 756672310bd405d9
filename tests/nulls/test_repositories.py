"""A repository turns no value into NULL: it writes the value, bound to its row, or it raises and writes nothing."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.nulls.keyed import KEYS, PLAINTEXTS, held
from voiceassist_db import Database, Record, Repositories, Repository, record
from voiceassist_db.errors import ValueFormatError
from voiceassist_db.models import EncryptedRow, encrypted_column

pytestmark = pytest.mark.wide

VALUES: Final[dict[str, Any]] = {
    "note": PLAINTEXTS["note"][1],
    "scan": PLAINTEXTS["scan"][1],
    "born": date(1980, 1, 2),
    "seen": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "size": -12345678901234567890,
    "dose": Decimal("0.10"),
    "meta": {"a": None},
    "empty": "",
    "blank": b"",
}
TYPES: Final[dict[str, tuple[Any, Any]]] = {
    "date": (sa.Date(), date.fromisoformat),
    "uuid": (sa.Uuid(), UUID),
    "smallint": (sa.SmallInteger(), int),
    "integer": (sa.Integer(), int),
    "bigint": (sa.BigInteger(), int),
    "text": (sa.Text(), str),
    "varchar": (sa.String(40), str),
    "collated": (sa.Text(collation="C"), str),
}
SETTINGS: Final = [
    *(
        "DateStyle = 'ISO, DMY'",
        "TimeZone = 'Pacific/Kiritimati'",
        "IntervalStyle = 'sql_standard'",
        "bytea_output = 'escape'",
    ),
    *(
        "array_nulls = off",
        "transform_null_equals = on",
        "search_path = public, pg_catalog",
        "extra_float_digits = -15",
    ),
    *("standard_conforming_strings = off", "backslash_quote = on", "quote_all_identifiers = on"),
]


@record
class Kept(Record):
    key: Any
    ref: str
    note: str | None = None
    scan: bytes | None = None
    born: date | None = None
    seen: datetime | None = None
    size: int | None = None
    dose: Decimal | None = None
    meta: dict[str, Any] | None = None
    empty: str | None = None
    blank: bytes | None = None


def kept_by(type_: Any, lookup: tuple[str, ...] = ()) -> type[Repository[Kept]]:
    """Return the repository of a table whose primary key has a type."""

    class TeamBase(DeclarativeBase):
        pass

    columns: dict[str, Any] = {f"{each}_encrypted": encrypted_column(PLAINTEXTS[each][0]) for each in VALUES}
    columns |= {"__tablename__": "kept", "key": mapped_column(type_, primary_key=True)}
    columns |= {"ref": mapped_column(sa.Text(), unique=True), "__annotations__": {"ref": Mapped[str]}}
    model = type("KeptRow", (EncryptedRow, TeamBase), columns)
    return type("KeptRepository", (Repository,), {"model": model, "record": Kept, "lookup": lookup})


def stored(tx: Repositories, database: Database) -> dict[str, list[bytes | None]]:
    """Return what each row holds, by its reference; read with no setting but the database's own."""
    key = database.keys.provider.fetch().key
    opened = ", ".join(f"pgcrypto.pgp_sym_decrypt_bytea({each}_encrypted, :{each})" for each in VALUES)
    keys = {each: key.derive(f"kept.{each}").expose().decode() for each in VALUES}
    rows = tx.session.execute(text(f"SELECT ref, {opened} FROM kept"), keys)
    return {ref: [None if each is None else bytes(each) for each in row] for ref, *row in rows}


def bound(spelled: str) -> list[bytes | None]:
    """Return what a row of a primary key must hold."""
    values = {name: PLAINTEXTS[name][1] for name in VALUES}
    return [
        f"kept.{name}:{spelled}:".encode() + (each if isinstance(each, bytes) else str(each).encode())
        for name, each in values.items()
    ]


@pytest.mark.parametrize("settings", [[], SETTINGS], ids=["as they are", "others"])
@pytest.mark.parametrize("type_", TYPES)
def test_every_write_keeps_every_value(database: Database, type_: str, settings: list[str]) -> None:
    """By add, add_many and update, with a key of each type, and settings that the session changes in its transaction."""
    column, made = TYPES[type_]
    repository = kept_by(column)
    with database.engine.begin() as connection:
        repository.model.metadata.create_all(connection)
    (parts,) = [[part for part in parts if held([part])] for _, parts in KEYS[type_]]
    with database.transaction() as tx:
        for each in settings:
            tx.session.execute(text(f"SET LOCAL {each}"))
        kept = tx.repository(repository)
        records = [Kept(key=made(part.sql), ref=f"{n}", **VALUES) for n, part in enumerate(parts)]
        kept.add(records[0])
        kept.add_many(records[1:])
    expected = {f"{n}": bound(str(part.spelled)) for n, part in enumerate(parts)}
    with database.transaction() as tx:
        assert stored(tx, database) == expected
        tx.session.execute(text("UPDATE kept SET " + ", ".join(f"{each}_encrypted = NULL" for each in VALUES)))
    with database.transaction() as tx:
        for each in settings:
            tx.session.execute(text(f"SET LOCAL {each}"))
        for one in records:
            tx.repository(repository).update(one.key, **VALUES)
    with database.transaction() as tx:
        assert stored(tx, database) == expected


@pytest.mark.parametrize("day", [part.sql for part in KEYS["date"][0][1] if part.spelled is None])
def test_an_update_of_a_row_that_python_cannot_name_is_an_error(database: Database, day: str) -> None:
    """Where the application names the row by another column: nothing is written, and the error says which row and why."""
    repository = kept_by(sa.Date(), lookup=("ref",))
    with database.engine.begin() as connection:
        repository.model.metadata.create_all(connection)
    with database.transaction() as tx:
        tx.repository(repository).add(Kept(key=date(2026, 1, 2), ref="R-1", **VALUES))
        tx.session.execute(text("UPDATE kept SET key = CAST(:day AS date)"), {"day": day})
    with database.transaction() as tx:
        before = stored(tx, database)
    for name, value in VALUES.items():
        with (
            pytest.raises(ValueFormatError, match=r"primary key of row R-1 of kept .*Correct the key") as caught,
            database.transaction() as tx,
        ):
            tx.repository(repository).update("R-1", **{name: value})
        assert (caught.value.table, caught.value.row_id) == ("kept", "R-1")
        assert caught.value.__cause__ is caught.value.__context__ is None
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  # our own bytes
    with database.transaction() as tx:
        assert stored(tx, database) == before == {"R-1": bound("2026-01-02")}
