"""Keys that the server makes: ``add`` returns them, and each value is bound to its row's."""

from __future__ import annotations

from typing import Annotated, Any, assert_type
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import MetaData, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.test_running_process import change_key
from voiceassist_db import Database, Encrypted, EncryptedRecord, Record, Repository, field, key, record
from voiceassist_db.errors import DuplicateError, FieldNotLoadedError, TriggerError
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.verification import verify

METADATA = MetaData()
OWN = sa.Sequence("it's own", start=500, metadata=METADATA)


class Numbered(EncryptedRecord, table="numbered", metadata=METADATA):
    """The common case: an identity."""

    note: Annotated[str | None, Encrypted()] = None
    id: int = key(init=False)


class Always(EncryptedRecord, table="always % it's", metadata=METADATA):
    """An identity that refuses other keys."""

    note: Annotated[str | None, Encrypted()] = None
    id: Annotated[int, sa.Identity(always=True, start=7)] = key(init=False)


class Drawn(EncryptedRecord, table="drawn", metadata=METADATA):
    """A UUID of the server."""

    note: Annotated[str | None, Encrypted()] = None
    id: UUID = key(init=False)


class Own(EncryptedRecord, table="own", metadata=METADATA):
    """A default of the application's own."""

    note: Annotated[str | None, Encrypted()] = None
    id: Annotated[str, mapped_column(server_default=sa.text("'T-' || 100 % 7"))] = key(init=False)


class InSequence(EncryptedRecord, table="in_sequence", metadata=METADATA):
    """A sequence of the application's own."""

    note: Annotated[str | None, Encrypted()] = None
    id: Annotated[int, mapped_column(OWN, server_default=OWN.next_value())] = key(init=False)


class Parts(EncryptedRecord, table="parts", metadata=METADATA):
    """A key of two columns, of which the server makes one."""

    note: Annotated[str | None, Encrypted()] = None
    person: int = key()
    id: int = key(init=False)


class Base(DeclarativeBase):
    metadata = METADATA


class SerialRow(EncryptedRow, Base):
    """A key as SQLAlchemy makes it of an integer: a serial."""

    __tablename__ = "serial"
    id: Mapped[int] = mapped_column(primary_key=True)
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Serial(Record):
    note: str | None = None
    id: int = field(init=False)


class Serials(Repository[Serial]):
    model = SerialRow
    record = Serial


@pytest.fixture
def tables(database: Database) -> Database:
    """A database with all of these tables."""
    METADATA.create_all(database.engine)
    return database


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "identity": (Numbered, 1, {}),
    "identity always": (Always, 7, {}),
    "uuid": (Drawn, None, {}),
    "default": (Own, "T-2", {}),
    "sequence": (InSequence, 500, {}),
    "serial": (Serials, 1, {}),
    "two columns": (Parts, (3, 1), {"person": 3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_add_returns_the_key_that_the_server_made(tables: Database, kind: str) -> None:
    """The record lacks the key before; the value that is bound to it opens, and is verified."""
    declared, expected, given = KINDS[kind]
    made = getattr(declared, "record", declared)(note="SECRET", **given)
    with pytest.raises(FieldNotLoadedError):
        _ = made.id
    with tables.transaction() as tx:
        found = tx.repository(declared).add(made)
        arguments = found if isinstance(found, tuple) else (found,)
        assert expected in {None, found}
        assert tx.repository(declared).get(*arguments).note == "SECRET"
        tx.repository(declared).update(*arguments, note="changed")
    table = tx.repository(declared)._table.name
    assert {each.table: (each.rows, each.failed) for each in verify(tables.engine, tables.keys)}[table] == (1, 0)


def test_many_rows_get_keys_in_their_order(tables: Database) -> None:
    """In bulk, too; from any iterable, over more than one chunk, and beside rows whose key is there already."""
    with tables.transaction() as tx:
        rows = tx.repository(Numbered)
        assert_type(rows, Repository[Numbered])
        assert rows.add_many(Numbered(note=f"{n}") for n in range(2500)) == 2500
        assert [each.note for each in rows.page(limit=2500)] == [f"{n}" for n in range(2500)]
        read = rows.get(7)
        rows.delete(7)
        assert rows.add_many([Numbered(note="x"), read, Numbered(note="y")]) == 3
        assert [rows.get(each).note for each in (2501, 7, 2502)] == ["x", "6", "y"]
        assert rows.add_many([made := Numbered(note="twice"), made]) == 2
        assert [rows.get(each).note for each in (2503, 2504)] == ["twice", "twice"]
        with pytest.raises(DuplicateError), tx.session.begin_nested():
            rows.add(read)
        with pytest.raises(ValueError, match="numbered stores Numbered, not Drawn"):
            rows.add(Drawn(note="x"))  # type: ignore[arg-type]  # on purpose


def test_a_process_with_old_keys_binds_to_the_same_row(tables: Database, provider: VaultKeyProvider) -> None:
    """An INSERT that is sent again under a newer key has the key that it asked for; rotation goes over such tables."""
    with tables.transaction() as tx:
        assert tx.repository(Numbered).add(Numbered(note="old")) == 1
    change_key(tables.engine, provider)
    with tables.transaction() as tx:
        assert tx.repository(Numbered).add(Numbered(note="new")) == 2
        assert [each.note for each in tx.repository(Numbered).page()] == ["old", "new"]
    assert rotate(tables.engine, tables.keys).done


def test_a_trigger_that_stores_another_key_is_refused(tables: Database) -> None:
    """As for keys of the application: the value would be bound to another row."""
    with tables.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1000; RETURN NEW; END'"
            )
        )
        connection.execute(text("CREATE TRIGGER other BEFORE INSERT ON numbered FOR EACH ROW EXECUTE FUNCTION other()"))
    for work in ("add", "add_many"):
        with pytest.raises(TriggerError), tables.transaction() as tx:
            rows = tx.repository(Numbered)
            made = Numbered(note="SECRET")
            rows.add(made) if work == "add" else rows.add_many([made])
    with tables.transaction() as tx:
        assert tx.repository(Numbered).page() == []


def test_a_key_of_the_application_is_returned_too(tables: Database) -> None:
    """``add`` returns the key of each record."""
    with tables.transaction() as tx:
        made = Parts(person=1, note="x")
        assert tx.repository(Parts).add(made) == (1, 1)
        assert tx.repository(Parts).get(1, 1).note == "x"


@pytest.mark.parametrize(
    ("annotation", "is_made", "message"),
    [
        (int, True, None),
        (str, True, "id of the primary key is not made by the server: give it Identity"),
        (Annotated[str, mapped_column(server_default="x")], True, "is not made by the server"),
        (Annotated[int, sa.Identity(always=True)], False, "is generated by the server: give its field init=False"),
        (Annotated[int, sa.Computed("1 + 1")], True, "generated by the server from other columns"),
    ],
)
def test_what_cannot_have_a_key_is_refused_when_it_is_declared(
    annotation: Any, is_made: bool, message: str | None
) -> None:
    """The message says what to give the column."""

    def declare() -> None:
        annotations = {"id": annotation, "note": Annotated[str, Encrypted()]}
        body = {"__annotations__": annotations, "id": key(init=not is_made), "__module__": __name__}
        options: dict[str, Any] = {"table": "made", "metadata": MetaData()}
        type(EncryptedRecord)("Made", (EncryptedRecord,), body, **options)  # type: ignore[misc]  # a metaclass

    if message is None:
        declare()
    else:
        with pytest.raises(ValueError, match=message):
            declare()
