"""One class declares a table and is its record: the same table as three classes make, and typed without a plugin."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import types
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict, assert_type
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.catalogues import snapshot
from tests.declarations.strategies import HAS_STORAGE_OPTIONS
from voiceassist_db import (
    AsyncDatabase,
    Database,
    Encrypted,
    EncryptedRecord,
    Record,
    Repository,
    create_async_engine,
    field,
    key,
    record,
    uuid7,
)
from voiceassist_db.errors import FieldNotLoadedError
from voiceassist_db.models import EncryptedRow, EncryptedTable, Kind, blind_index_column, encrypted_column
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.repositories.annotations import Annotation
from voiceassist_db.rotation import rotate
from voiceassist_db.verification import verify

STORAGE: dict[str, Any] = {"postgresql_with": {"autovacuum_enabled": "off"}} if HAS_STORAGE_OPTIONS else {}


class Base(DeclarativeBase):
    """The application's own base, with its naming convention."""

    metadata = MetaData(
        naming_convention={"ix": "ix_%(column_0_label)s", "pk": "pk_%(table_name)s", "fk": "fk_%(column_0_label)s"}
    )


class Person(Base):
    """A table of the application, which knows nothing of encryption."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


PersonId = Annotated[int, ForeignKey("people.id"), sa.Integer]


class Visit(EncryptedRecord, table="visits", metadata=Base.metadata):
    """A visit, with something of each kind."""

    starts_at: datetime
    person: PersonId
    referred_by: PersonId | None = None
    room: Annotated[str | None, mapped_column(sa.String(20), unique=True)] = None
    state: Literal["open", "closed"] = "open"
    reason: Annotated[str | None, Encrypted(search="name")] = None
    number: Annotated[str | None, Encrypted(search="exact", unique=True, context="visits.no")] = None
    born: Annotated[date, Encrypted(search="date", also={"born_month": "date:month"})]
    details: Annotated[Mapping[str, Any], Encrypted()] | None = None
    price: Annotated[Decimal | None, Encrypted] = None
    id: UUID = key(default_factory=uuid7)
    created_at: datetime | None = field(default=None, compare=False, repr=False)

    __table_args__ = (sa.Index("visits_starts", "starts_at"), STORAGE)


class OtherBase(DeclarativeBase):
    """The base of the same table in three classes."""

    metadata = MetaData(naming_convention=Base.metadata.naming_convention)


class OtherPerson(OtherBase):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class VisitRow(EncryptedRow, OtherBase):
    __tablename__ = "visits"
    __table_args__ = (sa.Index("visits_starts", "starts_at"), STORAGE)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    person: Mapped[int] = mapped_column(ForeignKey("people.id"))
    referred_by: Mapped[int | None] = mapped_column(ForeignKey("people.id"))
    room: Mapped[str | None] = mapped_column(sa.String(20), unique=True)
    state: Mapped[Literal["open", "closed"]]
    reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    number_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT, context="visits.no")
    born_encrypted: Mapped[bytes] = encrypted_column(Kind.DATE, nullable=False)
    details_encrypted: Mapped[bytes | None] = encrypted_column(Kind.JSON)
    price_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DECIMAL)
    reason_index: Mapped[bytes | None] = blind_index_column("name")
    number_index: Mapped[bytes | None] = blind_index_column("exact", context="visits.no", unique=True)
    born_index: Mapped[bytes | None] = blind_index_column("date")
    born_month_index: Mapped[bytes | None] = blind_index_column("date:month", of="born")


AT = datetime(2026, 1, 2, 9, 30, tzinfo=UTC)


def visit(**changes: Any) -> Visit:
    """Return a visit of the person that is there."""
    values: dict[str, Any] = {"starts_at": AT, "person": 1, "born": date(1990, 2, 3), "reason": "SECRET Flu"}
    return Visit(**values | changes)


@pytest.fixture
def with_visits(database: Database) -> Database:
    """A database with the table, and a person."""
    Base.metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        connection.execute(sa.insert(Person).values(id=1))
    return database


def test_one_class_makes_the_table_of_three(database: Database) -> None:
    """Columns, types, CHECKs, indexes, comments and storage options are the same in the catalogue."""
    found = []
    for metadata in (OtherBase.metadata, Base.metadata):
        metadata.create_all(database.engine)
        with database.engine.connect() as connection:
            found.append(snapshot(connection, "visits"))
        metadata.drop_all(database.engine)
    of_three, of_one = found
    assert len(of_three) > 30
    assert of_one == of_three


def test_it_is_written_read_searched_and_changed(with_visits: Database) -> None:
    """The repository is that of three classes; the type checker knows what each call returns."""
    with with_visits.transaction() as tx:
        visits = tx.repository(Visit)
        assert_type(visits, Repository[Visit])
        first = visit(details={"a": [1]}, price=Decimal("1.50"), number="7")
        visits.add(first)
        assert visits.add_many([visit(), visit(referred_by=1)]) == 2
        found = visits.get(first.id)
        assert_type(found, Visit)
        assert_type(found.reason, str | None)
        assert_type(found.born, date)
        assert_type(found.details, Mapping[str, Any] | None)
        assert_type(found.id, UUID)
        with pytest.raises(AttributeError):
            found.reson  # type: ignore[attr-defined]  # noqa: B018  # the type checker sees it first
        assert found == first
        assert found.created_at is not None
        assert (found.details, found.price) == ({"a": [1]}, Decimal("1.50"))
        visits.update(first.id, reason="Cough", state="closed")
        assert (visits.get(first.id).reason, visits.get(first.id).state) == ("Cough", "closed")
        assert len(visits.page()) == 3
        with pytest.raises(FieldNotLoadedError):
            _ = visits.get(first.id, fields=["born"]).reason


async def test_the_same_on_an_event_loop(with_visits: Database, database_url: URL, provider: VaultKeyProvider) -> None:
    """``run`` infers what the function returns."""
    made = visit()
    async with AsyncDatabase(create_async_engine(database_url), provider) as database, database.transaction() as tx:
        await tx.run(lambda tx: tx.repository(Visit).add(made))
        found = await tx.run(lambda tx: tx.repository(Visit).get(made.id))
        assert_type(found, Visit)
    assert found == made


def test_a_finder_of_its_own_needs_no_model(with_visits: Database) -> None:
    """A repository that names the record has its table, and may name other lookup columns."""

    class Visits(Repository[Visit]):
        record = Visit
        lookup = ("room",)

        def with_reason(self, reason: str) -> list[Visit]:
            return self.find(reason=reason)

    with with_visits.transaction() as tx:
        visits = tx.repository(Visits)
        assert_type(visits, Visits)
        visits.add(visit(room="12"))
        assert visits.get("12").reason == "SECRET Flu"
        assert [each.room for each in visits.with_reason("secret  flu")] == ["12"]
        (found,) = visits.select(Visit.__table__.c.room == "12", Visit.__table__.c.state == "open")
        assert_type(found, Visit)
        assert visits.find(born=found.born, born_month=found.born.replace(day=28)) == [found]


def test_tools_find_the_table_untold(with_visits: Database) -> None:
    """Rotation and verification read its declaration from the catalogue."""
    with with_visits.transaction() as tx:
        tx.repository(Visit).add_many(visit() for _ in range(20))
    report = rotate(with_visits.engine, with_visits.keys)
    assert (report.rows, report.remaining, report.verified) == (20, 0, True)
    found = {each.table: each for each in verify(with_visits.engine, with_visits.keys)}
    assert (found["visits"].rows, found["visits"].values, found["visits"].failed) == (20, 40, 0)


def test_it_is_a_record_like_any_other() -> None:
    """Masked, frozen, comparable; copied and pickled; its class is the one that its methods and pickles name."""
    made = visit()
    assert "SECRET" not in f"{made!r} {made}"
    assert f"{made!r}".startswith("Visit(starts_at=•••, person=•••, referred_by=None, room=None, state=•••, reason=•••")
    assert made == copy.copy(made) == pickle.loads(pickle.dumps(made))  # noqa: S301  # our own bytes
    assert dataclasses.replace(made, reason=None).reason is None
    assert not hasattr(made, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.reason = "other"  # type: ignore[misc]  # on purpose


def test_wrong_arguments_are_errors_of_the_type_checker_too() -> None:
    """A missing field, an unknown one and a value of another type: each ignore below is an error that mypy must find."""
    with pytest.raises(TypeError, match="starts_at"):
        Visit(person=1, born=date(1990, 2, 3))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="raeson"):
        Visit(starts_at=AT, person=1, born=date(1990, 2, 3), raeson="x")  # type: ignore[call-arg]
    made = Visit(starts_at=AT, person="1", born=date(1990, 2, 3))  # type: ignore[arg-type]
    assert made.person == "1"  # type: ignore[comparison-overlap]  # refused when it is added


def test_fields_and_methods_of_a_base_are_inherited() -> None:
    """A base without a table gives its fields to several tables; one alias stands for several columns."""

    class Kept(EncryptedRecord):
        id: UUID = key(default_factory=uuid7)
        note: Annotated[str | None, Encrypted()] = None

        def told(self) -> str:
            return "kept"

    class One(Kept, table="one", metadata=MetaData()):
        a: PersonId

        def told(self) -> str:
            return f"one, {super().told()}"

    class Two(Kept, table="two", metadata=MetaData(), schema="team"):
        b: PersonId

    assert One(a=1, note="x").told() == "one, kept"
    assert [each.name for each in One.__table__.primary_key] == ["id"]
    assert EncryptedTable.of(One.__table__).fields["note"].context == "one.note"
    assert EncryptedTable.of(Two.__table__).fields["note"].context == "team.two.note"
    assert not hasattr(Kept, "__table__")


# --- annotations -----------------------------------------------------------------------------------------------------------


class Chart(TypedDict):
    """JSON with a form."""

    height: int


@pytest.mark.parametrize(
    ("annotation", "kind", "is_nullable"),
    [
        (Annotated[str, Encrypted()], Kind.TEXT, False),
        (Annotated[bytes | None, Encrypted()], Kind.BYTES, True),
        (Annotated[date | None, Encrypted], Kind.DATE, True),
        (Annotated[datetime, "a note", Encrypted()], Kind.DATETIME, False),
        (Annotated[int, Encrypted()], Kind.INTEGER, False),
        (Annotated[Decimal, Encrypted()], Kind.DECIMAL, False),
        (Annotated[dict[str, Any], Encrypted()], Kind.JSON, False),
        (Annotated[Mapping[str, int] | list[Any] | None, Encrypted()], Kind.JSON, True),
        (Annotated[Chart, Encrypted()], Kind.JSON, False),
        (Annotated[Any, Encrypted()], Kind.JSON, False),
    ],
)
def test_the_kind_follows_from_the_annotation(annotation: Any, kind: Kind, is_nullable: bool) -> None:
    """Each kind has its Python types; None makes the column nullable, wherever it stands."""
    read = Annotation.of(annotation)
    assert read.encrypted == Encrypted()
    assert (read.kind(), read.is_nullable) == (kind, is_nullable)


START = Encrypted(also={"start": "name:3"})


def declared(
    annotation: Any,
    name: str = "reason",
    *,
    table: str | None = "visits",
    has_metadata: bool = True,
    specifiers: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Declare a table with one field of this annotation, with more fields, and a key."""
    given = {"table": table, "metadata": MetaData() if has_metadata else None}
    fields = {"id": UUID, name: annotation} | more
    body = {"__annotations__": fields, "id": key(default_factory=uuid7), "__module__": __name__} | dict(
        specifiers or {}
    )
    types.new_class("Made", (EncryptedRecord,), given, lambda namespace: namespace.update(body))


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a float": (
        lambda: declared(Annotated[float, Encrypted()]),
        TypeError,
        "Made.reason: values of type .*float.* cannot be encrypted",
    ),
    "a boolean": (lambda: declared(Annotated[bool, Encrypted()]), TypeError, "bool.* cannot be encrypted: use str"),
    "a choice of types": (lambda: declared(Annotated[str | int, Encrypted()]), TypeError, "cannot be encrypted"),
    "nothing but None": (lambda: declared(Annotated[None, Encrypted()]), TypeError, "cannot be encrypted"),
    "an unknown normaliser": (lambda: declared(Annotated[str, Encrypted(search="x")]), ValueError, "no normaliser 'x'"),
    "a normaliser that is no name": (
        lambda: declared(Annotated[str, Encrypted(search=True)]),  # type: ignore[arg-type]
        ValueError,
        "no normaliser True",
    ),
    "unique without search": (lambda: Encrypted(unique=True), ValueError, "needs search="),
    "two marks": (
        lambda: declared(Annotated[str, Encrypted(), Encrypted()]),
        TypeError,
        "Encrypted cannot stand beside",
    ),
    "a type of a column": (lambda: declared(Annotated[str, Encrypted(), sa.Text()]), TypeError, "Text cannot stand"),
    "a foreign key": (
        lambda: declared(Annotated[str, Encrypted(), ForeignKey("a.b")]),
        TypeError,
        "ForeignKey cannot stand beside Encrypted",
    ),
    "an index of the table": (
        lambda: declared(Annotated[str, sa.Index("a", "b")]),
        TypeError,
        "is no argument of a column: use mapped_column",
    ),
    "an encrypted key": (
        lambda: declared(Annotated[UUID, Encrypted()], "id"),
        TypeError,
        "Made.id: a key cannot be encrypted",
    ),
    "a plain type that SQL lacks": (lambda: declared(dict[str, Any]), TypeError, "Made: Could not locate SQLAlchemy"),
    "a name that is not there": (
        lambda: declared("Annotated[str, Missing()]"),
        TypeError,
        "cannot be evaluated .*Missing",
    ),
    "no metadata": (
        lambda: declared(Annotated[str, Encrypted()], has_metadata=False),
        TypeError,
        "needs both, table= and",
    ),
    "no table": (lambda: declared(Annotated[str, Encrypted()], table=None), TypeError, "needs both, table= and"),
    "nothing encrypted": (lambda: declared(str), ValueError, "declares no encrypted column"),
    "a part called as its field": (
        lambda: declared(Annotated[str, Encrypted(search="name", also={"reason": "name:3"})]),
        TypeError,
        "Made: two columns would be called reason_index",
    ),
    "a part in place of whole values": (
        lambda: declared(Annotated[str, Encrypted(search="name:3")]),
        ValueError,
        r"reason_index compares a part of reason only.*by which find\(reason=…\) searches: choose another name",
    ),
    "a part called as that of another field": (
        lambda: declared(Annotated[str, START], other=Annotated[str, START]),
        TypeError,
        "Made: two columns would be called start_index",
    ),
    "a plain column called as a token's": (
        lambda: declared(Annotated[str, START], start_index=str),
        TypeError,
        "Made: two columns would be called start_index",
    ),
    "a record of a table that it does not declare": (
        lambda: types.new_class("Longer", (Visit,)),
        TypeError,
        "class Longer has no table=, but inherits from a class that has one",
    ),
    "a foreign key of the package within a column": (
        lambda: declared(
            Annotated[str, Encrypted()], patient=Annotated[UUID, mapped_column(ForeignKey("patient_data.id"))]
        ),
        TypeError,
        r"Made: write ForeignKey\('patient_data.id'\) beside mapped_column",
    ),
    "a field that no record could have": (
        lambda: declared(Annotated[str, Encrypted()], "number", specifiers={"number": field(init=False)}),
        TypeError,
        "Made.number has init=False and no default",
    ),
    "a plain field that no record could have": (
        lambda: declared(
            Annotated[str, Encrypted()],
            number=Annotated[int, sa.Identity()],
            specifiers={"number": field(init=False)},
        ),
        TypeError,
        "Made.number has init=False and no default",
    ),
    "a field that means something else": (
        lambda: declared(Annotated[str, Encrypted()], "shown"),
        TypeError,
        "cannot have a field 'shown'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_when_the_class_is_made(case: str) -> None:
    """The message names the class, the field and what to do."""
    declare, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        declare()


def test_dates_that_no_argument_gives_are_read(database: Database) -> None:
    """As a key that the server makes; a record that was read can be added again."""
    metadata = MetaData()

    class Dated(EncryptedRecord, table="dated", metadata=metadata):
        note: Annotated[str, Encrypted()]
        id: UUID = key(default_factory=uuid7)
        created_at: datetime = field(init=False, compare=False)

    metadata.create_all(database.engine)
    with database.transaction() as tx:
        rows = tx.repository(Dated)
        rows.add(made := Dated(note="x"))
        assert rows.add_many([Dated(note="y")]) == 1
        read = rows.get(made.id)
        assert read.created_at.tzinfo is not None
        rows.delete(made.id)
        assert rows.add(read) == made.id


def test_foreign_keys_to_tables_of_the_package_are_written_by_name(database: Database) -> None:
    """A note has a key of two columns, to which only a constraint of the table can refer."""
    metadata = MetaData()

    class Addendum(EncryptedRecord, table="addenda", metadata=metadata):
        patient: Annotated[UUID, ForeignKey("patient_data.id"), mapped_column(unique=True)]
        note: UUID
        text: Annotated[str, Encrypted()]
        id: int = key(init=False)
        __table_args__ = (
            sa.ForeignKeyConstraint(
                ["patient", "note"], ["clinical_notes.patient", "clinical_notes.id"], ondelete="CASCADE", name="of_note"
            ),
        )

    metadata.create_all(database.engine)
    with database.engine.connect() as connection:
        found = sa.inspect(connection).get_foreign_keys("addenda")
    assert [(each["constrained_columns"], each["referred_table"], each["options"]) for each in found] == [
        (["patient"], "patient_data", {}),
        (["patient", "note"], "clinical_notes", {"ondelete": "CASCADE"}),
    ]


def test_three_classes_still_make_a_table() -> None:
    """A record by ``@record`` beside a model stays as it was."""

    @record
    class Made(Record):
        starts_at: datetime
        person: int
        referred_by: int | None = None
        room: str | None = None
        state: Literal["open", "closed"] = "open"
        reason: str | None = None
        number: str | None = None
        born: date
        details: Mapping[str, Any] | None = None
        price: Decimal | None = None
        id: UUID = field(default_factory=uuid7)

    class Rows(Repository[Made]):
        model = VisitRow
        record = Made

    assert Rows._table.table is VisitRow.__table__
