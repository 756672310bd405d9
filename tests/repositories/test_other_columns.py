"""A team's own plain columns, of any ordinary type, are stored as given, one by one and in bulk."""

from __future__ import annotations

import enum
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Patient, Record, Repository, field, record, uuid7
from voiceassist_db.errors import ConfigurationError
from voiceassist_db.models import EncryptedRow, Kind, blind_index_column, encrypted_column
from voiceassist_db.rotation import rotate


class TeamBase(DeclarativeBase):
    """Another team's base."""


class Urgency(enum.Enum):
    """A plain column's enumeration."""

    LOW = "low"
    HIGH = "high"


class Name(enum.StrEnum):
    """Text that prints as something else in some versions of Python."""

    BOB = "Bob Smith"


class Mood(str, enum.Enum):  # noqa: UP042  # its str() is not its value, which is the point
    """Text that prints as its member's name."""

    GOOD = 'good "\\mood'


class VisitRow(EncryptedRow, TeamBase):
    __tablename__ = "visits"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    urgency: Mapped[Urgency]
    status: Mapped[str] = mapped_column(server_default="new")
    tags: Mapped[dict[str, Any]] = mapped_column(JSONB)
    codes: Mapped[list[int]] = mapped_column(ARRAY(sa.Integer))
    cost: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2))
    weight: Mapped[float | None]
    paid: Mapped[bool]
    seen_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    scan: Mapped[bytes] = mapped_column(sa.LargeBinary)
    reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Visit(Record):
    urgency: Urgency
    status: str
    tags: dict[str, Any]
    codes: list[int]
    cost: Decimal
    weight: float | None
    paid: bool
    seen_at: datetime
    scan: bytes
    reason: str | None = None
    id: UUID = field(default_factory=uuid7)


class VisitRepository(Repository[Visit]):
    model = VisitRow
    record = Visit


VISIT = Visit(
    urgency=Urgency.HIGH,
    status="done",
    tags={"a": ['"', "\\", None, "é"]},
    codes=[1, -2],
    cost=Decimal("12.50"),
    weight=0.1,
    paid=True,
    seen_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    scan=b'\x00"\\\xff',
    reason='"quoted", {braced}, \\escaped, NULL',
)


class SampleRow(EncryptedRow, TeamBase):
    __tablename__ = "samples"
    code: Mapped[bytes] = mapped_column(sa.LargeBinary, unique=True)
    parts: Mapped[list[bytes | None]] = mapped_column(ARRAY(sa.LargeBinary))
    took: Mapped[timedelta] = mapped_column(sa.Interval)
    pauses: Mapped[list[timedelta]] = mapped_column(ARRAY(sa.Interval))
    id: Mapped[UUID] = mapped_column(primary_key=True)
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Sample(Record):
    code: bytes
    parts: list[bytes | None]
    took: timedelta
    pauses: list[timedelta]
    note: str | None = None
    id: UUID = field(default_factory=uuid7)


class SampleRepository(Repository[Sample]):
    model = SampleRow
    record = Sample
    lookup = ("code",)


class MeasureRow(EncryptedRow, TeamBase):
    __tablename__ = "measures"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[float | None]
    short: Mapped[float | None] = mapped_column(sa.REAL)
    shorter: Mapped[float | None]  # the database has it as real
    exact: Mapped[Decimal | None] = mapped_column(sa.Double(asdecimal=True))
    digits: Mapped[float | None] = mapped_column(sa.Numeric(asdecimal=False))
    pairs: Mapped[tuple[Any, ...] | None] = mapped_column(
        ARRAY(sa.Numeric(asdecimal=False), as_tuple=True, dimensions=2)
    )
    grid: Mapped[list[Any] | None] = mapped_column(ARRAY(sa.Integer, dimensions=2))
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Measure(Record):
    id: int
    number: float | None = None
    short: float | None = None
    shorter: float | None = None
    exact: Decimal | None = None
    digits: float | None = None
    pairs: tuple[Any, ...] | None = None
    grid: list[Any] | None = None
    note: str | None = None


class MeasureRepository(Repository[Measure]):
    model = MeasureRow
    record = Measure


BYTES = (b"", b"'", b"''", b"\\", b"\\'", b"\\x41", b"\\000", b"NULL", b'"', b"{,}", bytes(range(256)))
INTERVALS = tuple(
    timedelta(days=days, seconds=seconds, microseconds=micros)
    for days in (-400, -1, 0, 1)
    for seconds in (-1, 0, 3_661)
    for micros in (-1, 0, 5)
)


@pytest.fixture
def with_visits(database: Database) -> Database:
    """A database with the team's table, created from its model."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    return database


@pytest.mark.wide
def test_every_type_is_stored_alike_by_one_and_by_many(with_visits: Database) -> None:
    """Whatever way a row is written, each plain column reads back as it was given, server defaults notwithstanding."""
    with with_visits.transaction() as tx:
        visits = tx.repository(VisitRepository)
        one, many = VISIT, [replace(VISIT, id=uuid7()), replace(VISIT, id=uuid7(), weight=None, reason=None, codes=[])]
        visits.add(one)
        assert visits.add_many(many) == 2
        assert [one, *many] == visits.page()
    rotate(with_visits.engine, with_visits.keys)
    with with_visits.transaction() as tx:
        assert [one, *many] == tx.repository(VisitRepository).page()


@pytest.mark.wide
@pytest.mark.parametrize("style", ["postgres", "postgres_verbose", "sql_standard", "iso_8601"])
@pytest.mark.parametrize("output", ["hex", "escape"])
def test_bytes_and_intervals_are_stored_alike_under_every_setting(
    with_visits: Database, style: str, output: str
) -> None:
    """Bulk parameters are written without a connection, which the driver asks how to write bytes and intervals."""
    samples = [
        Sample(code=bytes([0]) + each, parts=[each, b"'\\", None], took=INTERVALS[at], pauses=list(INTERVALS))
        for at, each in enumerate(BYTES)
    ]
    samples += [Sample(code=bytes([1, at]), parts=[], took=each, pauses=[]) for at, each in enumerate(INTERVALS)]
    again = [replace(each, code=b"'" + each.code, id=uuid7()) for each in samples]
    with with_visits.transaction() as tx:
        tx.session.execute(sa.text(f"SET LOCAL intervalstyle = '{style}'"))
        tx.session.execute(sa.text(f"SET LOCAL bytea_output = '{output}'"))
        kept = tx.repository(SampleRepository)
        for each in samples:
            kept.add(each)
        assert kept.add_many(again) == len(samples)
        if style != "postgres":  # the only one that the driver reads
            with pytest.raises(ConfigurationError, match=f"samples: IntervalStyle of this session is {style}"):
                kept.page()
        tx.session.execute(sa.text("SET LOCAL intervalstyle = 'postgres'"))
        expected = {each.code: each for each in (*samples, *again)}
        assert expected == {each.code: each for each in kept.page()}
        assert expected == kept.get_many(expected)
        assert expected == {code: kept.get(code) for code in expected}


@pytest.mark.parametrize("way", ["add", "add_many", "update"])
def test_bytes_are_stored_and_searched_alike_where_backslashes_are_read_otherwise(
    with_visits: Database, way: str
) -> None:
    """Within a list, psycopg doubles the backslashes of bytes then, though the server reads parameters as ever."""
    sample = Sample(code=b"\\", parts=[*BYTES, None], took=INTERVALS[0], pauses=[])
    with with_visits.transaction() as tx:
        tx.session.execute(sa.text("SET LOCAL standard_conforming_strings = off"))
        kept = tx.repository(SampleRepository)
        if way == "add_many":
            kept.add_many([sample])
        else:
            kept.add(sample if way == "add" else replace(sample, parts=[]))
        if way == "update":
            kept.update(sample.code, parts=sample.parts)
        assert kept.get(sample.code) == sample
        tx.patients.add(Patient(patient_id="PT-001", name="Bob Smith"))
        assert [each.patient_id for each in tx.patients.find_by_name("bob smith")] == ["PT-001"]


NUMBERS = (
    0.1,
    -1 / 3,
    2 / 3e8,
    5e-324,
    1.7976931348623157e308,
    123456.789012345,
    -0.0,
    float("inf"),
    float("nan"),
    None,
)
REALS = (0.1, -0.33333334, 6.6666668e-09, 1e-45, 3.4028235e38, 123456.79, -0.0, float("-inf"), float("nan"), None)


@pytest.mark.parametrize("digits", [-15, 0, 1, 3])
def test_floats_are_read_alike_under_every_setting(with_visits: Database, digits: int) -> None:
    """The server writes fewer digits than a number has where it is told to; each way of reading gives all of them."""
    given = {
        at: Measure(id=at, number=number, short=short, shorter=short, exact=Decimal("12345.0123456789"))
        for at, (number, short) in enumerate(zip(NUMBERS, REALS, strict=True))
    }
    with with_visits.transaction() as tx:
        tx.session.execute(sa.text("ALTER TABLE measures ALTER shorter TYPE real"))
        tx.session.execute(sa.text(f"SET LOCAL extra_float_digits = {digits}"))
        kept = tx.repository(MeasureRepository)
        kept.add_many(list(given.values())[1:])
        kept.add(given[0])
        for found in (
            {at: kept.get(at) for at in given},
            kept.get_many(given),
            {each.id: each for each in kept.page(limit=7) + kept.page(after=given[6])},
            {each.id: each for each in kept.page(limit=1000)},
        ):
            assert {at: _numbers(each) for at, each in given.items()} == {
                at: _numbers(each) for at, each in found.items()
            }


def _numbers(measure: Measure) -> list[str]:
    return [repr(each) for each in (measure.number, measure.short, measure.shorter, measure.exact)]


def test_a_float_in_a_numeric_column_keeps_its_digits(with_visits: Database) -> None:
    """PostgreSQL makes a numeric of 15 digits of a float, which has up to 17."""
    numbers = [0.1 + 0.2, 1 / 3, 2.0**53 + 2, 123_456_789.123_456_789, -0.1, 1e300, 5e-324]
    given = [Measure(id=at, digits=each, pairs=((each, None), (1.5, each))) for at, each in enumerate(numbers)]
    with with_visits.transaction() as tx:
        measures = tx.repository(MeasureRepository)
        for each in given:
            measures.add(each)
        assert measures.page() == given
        for each, other in zip(given, reversed(given), strict=True):
            measures.update(each.id, digits=other.digits, pairs=other.pairs)
        assert [each.digits for each in measures.page()] == numbers[::-1]
        assert [each.pairs for each in measures.page()] == [each.pairs for each in reversed(given)]
        many = [replace(each, id=each.id + 100) for each in given]
        measures.add_many(many)
        assert measures.page()[len(given) :] == many


@pytest.mark.parametrize(
    ("name", "array"),
    [("pairs", each) for each in ([(1.0, 2.0)], (1.0,), ((1.0,), (1.0, 2.0)), (((1.0,),),), ((),), ([1.0],))]
    + [("grid", each) for each in ([1], [[1], 2], [[[1]]], ((1,),))],
)
def test_what_does_not_come_back_from_an_array_is_refused(with_visits: Database, name: str, array: Any) -> None:
    """A list does not where the column gives tuples. SQLAlchemy itself fails at other dimensions than the declared ones."""
    with with_visits.transaction() as tx:
        with pytest.raises(ValueError, match=f"{name} must"):
            tx.repository(MeasureRepository).add(Measure(id=1, **{name: array}))
        assert tx.repository(MeasureRepository).page() == []


def test_text_of_a_subclass_is_its_value(with_visits: Database) -> None:
    """A member of a text enumeration is stored as its value, not as its name, in plain and in encrypted columns."""
    with with_visits.transaction() as tx:
        visits = tx.repository(VisitRepository)
        visits.add(replace(VISIT, status=Mood.GOOD, reason=Mood.GOOD))
        visits.add_many([replace(VISIT, id=uuid7(), status=Mood.GOOD, reason=Mood.GOOD)])
        assert [(Mood.GOOD.value, Mood.GOOD.value)] * 2 == [(each.status, each.reason) for each in visits.page()]
        tx.patients.add(Patient(patient_id="PT-001", name=Name.BOB))
        assert tx.patients.find_by_name("bob smith")[0].name == "Bob Smith"


@pytest.mark.parametrize("address", [{1: "a", "1": "b"}, {"a": (1, 2)}, {True: 1}, {None: 1}])
def test_json_that_would_not_read_back_equal_is_refused(database: Database, address: Any) -> None:
    """JSON has text as keys, and would turn a number into one, or lose a value for two that become the same."""
    with database.transaction() as tx, pytest.raises(ValueError, match="address would not read back equal"):
        tx.patients.add(Patient(patient_id="PT-001", address=address))


@pytest.mark.parametrize("key", ["018F3F5E-7B1C-7CC2-9D5B-0A1B2C3D4E5F", "018f3f5e7b1c7cc29d5b0a1b2c3d4e5f", 7, None])
def test_a_key_that_the_server_would_spell_otherwise_is_refused(database: Database, key: Any) -> None:
    """Values are bound to the key's text: a UUID in another spelling would never open again."""
    with database.transaction() as tx, pytest.raises(ValueError, match="id must be of type UUID"):
        tx.patients.add(Patient(patient_id="PT-001", id=key))


@pytest.mark.parametrize("type_", [sa.CHAR(8), sa.Enum(Urgency), sa.DateTime(), sa.Numeric()])
def test_a_table_whose_key_cannot_be_bound_is_refused(type_: Any) -> None:
    """A key that reads back in another form than it was written is an error when the repository is declared."""

    class OtherBase(DeclarativeBase):
        pass

    class OtherRow(EncryptedRow, OtherBase):
        __tablename__ = "others"
        id: Mapped[Any] = mapped_column(type_, primary_key=True)
        reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

    @record
    class Other(Record):
        id: Any
        reason: str | None = None

    with pytest.raises(ValueError, match="cannot be bound to a primary key"):

        class _OtherRepository(Repository[Other]):
            model = OtherRow
            record = Other


def test_only_values_with_one_text_can_be_searched() -> None:
    """A blind index on a decimal number, of which 1 and 1.0 are equal, is an error when the table is declared, not at every insert."""

    class OtherBase(DeclarativeBase):
        pass

    class OtherRow(EncryptedRow, OtherBase):
        __tablename__ = "others"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        day_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DECIMAL)
        day_index: Mapped[bytes | None] = blind_index_column("exact")

    @record
    class Other(Record):
        id: UUID
        day: Decimal | None = None

    with pytest.raises(ValueError, match="only text, dates and integers can have"):

        class _OtherRepository(Repository[Other]):
            model = OtherRow
            record = Other
