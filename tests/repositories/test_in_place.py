"""Encrypted columns in an application's own table, whose ORM goes on inserting rows and knows nothing of them."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.catalogues import snapshot
from tests.test_running_process import change_key
from voiceassist_db import Database, Record, Repository, record
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.checking import Verdict, _tables
from voiceassist_db.constraints import gaps
from voiceassist_db.errors import BindingError, DecryptionError, RotationError
from voiceassist_db.models import EncryptedInPlace, Kind, blind_index_column, encrypted_column, table_of
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import retire, rotate, rotate_index_key
from voiceassist_db.schema import complete_tables
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify


class OldBase(DeclarativeBase):
    """The application's base as it was."""


class OldPerson(OldBase):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str]
    joined_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), default=lambda: datetime.now(UTC))


class Base(DeclarativeBase):
    """The application's base with the encrypted columns."""


class Person(EncryptedInPlace, Base):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str]
    joined_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), default=lambda: datetime.now(UTC))
    ssn_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    ssn_index: Mapped[bytes | None] = blind_index_column("ssn", unique=True)


@record
class Secrets(Record):
    """What is encrypted of a person, and the key; the application's model has the rest."""

    id: int
    ssn: str | None = None
    note: str | None = None


class PersonSecrets(Repository[Secrets]):
    model = Person
    record = Secrets


def only_persons(_: object, name: str | None, kind: str, *__: object) -> bool:
    """Let autogenerate see one table."""
    return kind != "table" or name == "persons"


@pytest.fixture
def persons(database: Database) -> Database:
    """A database with the application's table, to which a migration has added the columns."""
    OldBase.metadata.create_all(database.engine)
    with Session(database.engine) as session, session.begin():
        session.add_all(OldPerson(phone=f"{n}") for n in range(3))
    with database.engine.begin() as connection:
        add_columns(connection)
    return database


def add_columns(connection: Connection, **options: Any) -> None:
    """Run what autogenerate writes for the columns, and add what it does not see without the plugin."""
    context = MigrationContext.configure(connection, opts={"include_object": only_persons, **options})
    upgrade = produce_migrations(context, Base.metadata).upgrade_ops
    assert upgrade is not None
    code = render_python_code(upgrade)
    names = {**vars(sa), "op": Operations(context), "sa": sa, "postgresql": postgresql}
    exec(f"def upgrade():\n    {code}", names)  # noqa: S102  # Alembic's own
    names["upgrade"]()
    if not options:
        complete_tables(connection)


def counts(database: Database) -> tuple[dict[int, int], int]:
    """Return the rows of the table per version, and those with nothing encrypted."""
    with database.engine.connect() as connection:
        status = read_status(connection)
    return status.tables["persons"], status.unencrypted.get("persons", 0)


def test_a_subclass_may_add_the_columns_to_the_table_of_its_base() -> None:
    """In single-table inheritance the table is there before the mixin: each value still has its guard, once."""

    class TheirBase(DeclarativeBase):
        """A base of its own."""

    class Animal(TheirBase):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind"}  # noqa: RUF012  # SQLAlchemy's

    class Patient(EncryptedInPlace, Animal):
        chip_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
        __mapper_args__ = {"polymorphic_identity": "patient"}  # noqa: RUF012  # SQLAlchemy's

    class Guest(Patient):
        note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
        __mapper_args__ = {"polymorphic_identity": "guest"}  # noqa: RUF012  # SQLAlchemy's

    checks = [str(each.name) for each in table_of(Animal).constraints if isinstance(each, sa.CheckConstraint)]
    assert sorted(checks) == [
        "animals_chip_encrypted_format",
        "animals_chip_encrypted_version",
        "animals_note_encrypted_format",
        "animals_note_encrypted_version",
    ]


def test_columns_are_added_to_a_table_that_exists(persons: Database) -> None:
    """Nothing is missing, and the catalogue is that of a table which was created with them."""
    with persons.engine.connect() as connection:
        assert all(gaps(connection, each) == [] for each in encrypted_tables(connection))
        context = MigrationContext.configure(connection, opts={"include_object": only_persons})
        assert compare_metadata(context, Base.metadata) == []
        added = snapshot(connection, "persons")
    assert (
        "constraint",
        "persons_ssn_encrypted_version",
        "CHECK (((ssn_encrypted IS NULL) OR (key_version IS NOT NULL)))",
        "true",
    ) in added
    OldBase.metadata.drop_all(persons.engine)
    Base.metadata.create_all(persons.engine)
    with persons.engine.connect() as connection:
        assert sorted(snapshot(connection, "persons")) == sorted(added)


def test_inserts_that_know_nothing_of_encryption_work_through_the_life_of_keys(persons: Database) -> None:
    """Before and after a rotation and a retirement; their rows read as None, and get the current version with their first value."""
    for version in (1, 2):
        with Session(persons.engine) as session, session.begin():
            old = OldPerson(phone="old")
            new = Person(phone="new")
            session.add_all([old, new])
            session.flush()
            made = persons.using(session).repository(PersonSecrets)
            assert made.get(new.id) == Secrets(id=new.id)
            assert made.get_many([old.id, new.id]) == {each.id: Secrets(id=each.id) for each in (old, new)}
            made.update(new.id, ssn=f"900-00-000{version}", note="SECRET")
            assert made.get(new.id).ssn == f"900-00-000{version}"
            assert [each.id for each in made.find(ssn=f"90000000{version}")] == [new.id]
            assert session.scalar(sa.select(Person.key_version).where(Person.id == new.id)) == version
            made.update(new.id, note=None)
            assert made.get(new.id).note is None
        if version == 1:
            report = rotate(persons.engine, persons.keys)
            assert (report.done, report.rows, report.verified) == (True, 1, True)
            assert retire(persons.engine, persons.keys, grace_days=0).floor == 2
    assert counts(persons) == ({2: 2}, 5)
    assert rotate_index_key(persons.engine, persons.keys).done
    found = {each.table: each for each in verify(persons.engine, persons.keys)}["persons"]
    assert (found.rows, found.values, found.failed) == (7, 2, 0)
    with persons.transaction() as tx:
        assert len(tx.repository(PersonSecrets).page()) == 7
        assert [each.ssn for each in tx.repository(PersonSecrets).find(ssn="900000002")] == ["900-00-0002"]


def test_a_process_with_old_keys_writes_the_first_value_under_the_new_key(
    persons: Database, provider: VaultKeyProvider
) -> None:
    """As an INSERT does: a row without a version must not get one that the rotation has passed by."""
    with persons.transaction() as tx:
        assert tx.repository(PersonSecrets).get(1).ssn is None
    change_key(persons.engine, provider)
    with persons.transaction() as tx:
        tx.repository(PersonSecrets).update(1, ssn="900-00-0001")
        assert tx.repository(PersonSecrets).get(1).ssn == "900-00-0001"
    assert counts(persons) == ({2: 1}, 2)


def test_plain_columns_change_without_a_version(persons: Database) -> None:
    """A row gets no version where nothing of it is encrypted."""

    @record
    class Reachable(Record):
        id: int
        phone: str
        ssn: str | None = None
        note: str | None = None

    class Reached(Repository[Reachable]):
        model = Person
        record = Reachable

    with persons.transaction() as tx:
        tx.repository(Reached).update(1, phone="changed")
        assert tx.repository(Reached).get(1) == Reachable(id=1, phone="changed")
    assert counts(persons) == ({}, 3)


def test_a_row_is_added_only_by_a_record_of_all_that_it_needs(persons: Database) -> None:
    """The record may leave out the application's columns; then the application inserts, and the message says so."""
    with persons.transaction() as tx:
        for add in (tx.repository(PersonSecrets).add, lambda made: tx.repository(PersonSecrets).add_many([made])):
            with pytest.raises(
                ValueError, match="a new row of persons needs phone, joined_at, which Secrets does not have"
            ):
                add(Secrets(id=9))

    @record
    class Whole(Record):
        id: int
        phone: str
        joined_at: datetime
        ssn: str | None = None
        note: str | None = None

    class Persons(Repository[Whole]):
        model = Person
        record = Whole

    with persons.transaction() as tx:
        made = Whole(id=9, phone="9", joined_at=datetime(2026, 1, 1, tzinfo=UTC), ssn="900-00-0009")
        assert tx.repository(Persons).add(made) == 9
        assert tx.repository(Persons).get(9) == made
    assert counts(persons) == ({1: 1}, 3)


@pytest.fixture
def astray(persons: Database) -> Database:
    """A database in which a value has lost its version, because a CHECK was dropped."""
    with persons.transaction() as tx:
        tx.repository(PersonSecrets).update(1, ssn="900-00-0001", note="SECRET")
        tx.repository(PersonSecrets).update(2, ssn="900-00-0002")
    with persons.engine.begin() as connection:
        connection.execute(text("ALTER TABLE persons DROP CONSTRAINT persons_ssn_encrypted_version"))
        connection.execute(text("ALTER TABLE persons DROP CONSTRAINT persons_note_encrypted_version"))
        connection.execute(text("UPDATE persons SET key_version = NULL WHERE id = 1"))
    return persons


def test_a_value_without_a_version_is_refused(persons: Database) -> None:
    """The CHECK is a guard against writers of SQL."""
    with pytest.raises(DBAPIError, match="persons_note_encrypted_version"), persons.engine.begin() as connection:
        connection.execute(text(r"UPDATE persons SET note_encrypted = '\xc30c040901080000000000000000d2'"))


def test_a_value_that_lost_its_version_is_never_none(astray: Database) -> None:
    """Without the CHECK it is an error to read, a failure of verification, and no key is retired that it may need."""
    with pytest.raises(DecryptionError), astray.transaction() as tx:
        tx.repository(PersonSecrets).get(1)
    with astray.transaction() as tx:
        assert tx.repository(PersonSecrets).get(2).ssn == "900-00-0002"
    for work in (rotate, partial(retire, grace_days=0)):
        with pytest.raises(
            RotationError, match="1 rows of persons have encrypted values and no key version.*No key was changed"
        ):
            work(astray.engine, astray.keys)
    found = {each.table: each for each in verify(astray.engine, astray.keys)}["persons"]
    assert {(each.row_id, each.field) for each in found.failures} == {("1", "ssn"), ("1", "note")}
    assert not rotate_index_key(astray.engine, astray.keys).done


def test_a_missing_guard_is_named_and_added(astray: Database) -> None:
    """``check`` calls it unsafe; the SQL that it gives adds and proves the CHECK, under whatever name."""
    with astray.engine.begin() as connection:
        connection.execute(text("UPDATE persons SET key_version = 1 WHERE id = 1"))
        named = [each for each in _tables(connection) if each.subject == "persons"]
        assert [each.verdict for each in named] == [Verdict.UNSAFE] * 2
        assert "ssn_encrypted has no CHECK that keeps values out of rows without a key version" in named[0].detail
        assert [each.problem for each in complete_tables(connection)] == [each.detail for each in named]
        connection.execute(text("ALTER TABLE persons RENAME CONSTRAINT persons_ssn_encrypted_version TO other"))
        assert complete_tables(connection) == []
        connection.execute(text("ALTER TABLE persons DROP CONSTRAINT other"))
        connection.execute(
            text(
                "ALTER TABLE persons ADD CONSTRAINT other CHECK (ssn_encrypted IS NULL OR key_version IS NOT NULL) NOT VALID"
            )
        )
        assert [each.problem for each in complete_tables(connection)] == [
            "the constraint other is not proven for rows that are older than it"
        ]
        assert complete_tables(connection) == []


@pytest.mark.wide
def test_a_key_that_moves_is_unsafe(persons: Database) -> None:
    """Values are bound to it: they are errors under another key, and are there again under theirs."""
    with persons.transaction() as tx:
        tx.repository(PersonSecrets).update(1, note="SECRET")
    with persons.engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (id integer PRIMARY KEY)"))
        connection.execute(text("INSERT INTO numbers SELECT id FROM persons"))
        connection.execute(text("ALTER TABLE persons ADD FOREIGN KEY (id) REFERENCES numbers ON UPDATE CASCADE"))
        (line,) = (each for each in _tables(connection) if each.subject == "persons")
    assert line.verdict is Verdict.UNSAFE
    assert line.detail.startswith("column id of the primary key changes with the key that it refers to")
    for key, error in ((101, BindingError), (1, None)):
        with persons.engine.begin() as connection:
            connection.execute(text("UPDATE numbers SET id = :key WHERE id IN (1, 101)"), {"key": key})
        with nullcontext() if error is None else pytest.raises(error), persons.transaction() as tx:
            assert tx.repository(PersonSecrets).get(key).note == "SECRET"
