"""Searches by any blind index; criteria over plain columns, which see no key; counts, and pages in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from psycopg._queries import PostgresQuery
from sqlalchemy import and_, bindparam, exists, func, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column, relationship
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.types import TypeDecorator

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
from voiceassist_db.errors import ConfigurationError, FieldNotLoadedError
from voiceassist_db.models import EncryptedRow, Kind, PatientRow, blind_index_column, encrypted_column
from voiceassist_db.pgcrypto.expressions import parameters as keys_of
from voiceassist_db.repositories import statements
from voiceassist_db.repositories.criteria import Criteria
from voiceassist_db.repositories.ordering import Order
from voiceassist_db.rotation import rotate


class TeamBase(DeclarativeBase):
    """A team's base."""


class Doctor(TeamBase):
    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(primary_key=True)
    ward: Mapped[str] = mapped_column(sa.Text)


class Shift(TeamBase):
    __tablename__ = "shifts"
    id: Mapped[int] = mapped_column(primary_key=True)
    doctor: Mapped[int] = mapped_column(sa.ForeignKey(Doctor.id))


class VisitRow(EncryptedRow, TeamBase):
    __tablename__ = "visits"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int]
    keys: Mapped[str | None] = mapped_column(sa.Text)  # named as a parameter of ours
    room: Mapped[str | None] = mapped_column(sa.Text)
    starts_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    doctor: Mapped[int | None] = mapped_column(sa.ForeignKey(Doctor.id))
    reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    reason_index: Mapped[bytes | None] = blind_index_column("name")
    code_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    code_index: Mapped[bytes | None] = blind_index_column("exact")
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    of_doctor: Mapped[Doctor | None] = relationship()


@record
class Visit(Record):
    number: int
    keys: str | None = None
    room: str | None = None
    starts_at: datetime
    doctor: int | None = None
    reason: str | None = None
    code: str | None = None
    note: str | None = None
    id: UUID = field(default_factory=uuid7)


class Visits(Repository[Visit]):
    model = VisitRow
    record = Visit


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def visit(number: int, **values: Any) -> Visit:
    """Return a visit."""
    return Visit(number=number, **{"starts_at": NOON + timedelta(hours=number)} | values)


VISITS = [
    visit(0, reason="Fever", code="a", keys="k", doctor=1, room="1"),
    visit(1, reason="FEVER", code="b", keys="l", doctor=2, room="2"),
    visit(2, reason="Cough", code="a", doctor=1, room="1", note="dry"),
    visit(3, reason="Fever at night", code="c", room="%(keys)s"),
    visit(4, code="A"),
]


@pytest.fixture
def clinic(database: Database) -> Database:
    """A database with visits, doctors and shifts."""
    fill(database)
    return database


def fill(database: Database) -> None:
    """Create the tables and their rows."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
        connection.execute(sa.insert(Doctor), [{"id": 1, "ward": "north"}, {"id": 2, "ward": "south"}])
        connection.execute(sa.insert(Shift), [{"id": n, "doctor": 1} for n in range(3)])
    with database.transaction() as tx:
        tx.repository(Visits).add_many(VISITS)


def asked(database: Database, question: Callable[[Visits], Any]) -> Any:
    """Return what a repository answers in a transaction of its own."""
    with database.transaction() as tx:
        return question(tx.repository(Visits))


def numbers(found: list[Visit]) -> list[int]:
    """Return the numbers of visits."""
    return [each.number for each in found]


# --- find ------------------------------------------------------------------------------------------------------------


def test_find_searches_every_blind_index_and_several_at_once(clinic: Database) -> None:
    """A row must have all values, of a list any; a token that matches is not enough, and whole values are compared."""
    with clinic.transaction() as tx:
        visits = tx.repository(Visits)
        assert sorted(numbers(visits.find(reason=" fever "))) == [0, 1]
        assert numbers(visits.find(code="A")) == [4]
        assert numbers(visits.find(reason="fever", code="a")) == [0]
        assert visits.find(reason="cough", code="b") == []
        assert sorted(numbers(visits.find(code=["a", "c", "nothing"]))) == [0, 2, 3]
        assert numbers(visits.find(code={"a", "c"}, reason="fever at night")) == [3]
        assert visits.find(code=[]) == visits.find(code="a", reason=()) == []
        assert numbers(visits.find({"code": "b"})) == [1]
        found = visits.find(reason="cough", fields=["note"])[0]
        assert found.note == "dry"
        with pytest.raises(FieldNotLoadedError):
            _ = found.reason


def test_a_token_of_another_value_finds_nothing(clinic: Database) -> None:
    """Every hit is compared with the value itself, in each of the fields that are searched."""
    with clinic.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE visits SET code_index = (SELECT code_index FROM visits WHERE number = 1) WHERE number = 0")
        )
    with clinic.transaction() as tx:
        assert numbers(tx.repository(Visits).find(code="b")) == [1]
        assert numbers(tx.repository(Visits).find(reason="fever", code="b")) == [1]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "name what to search for.*reason, code"),
        ({"nothing": "x"}, "visits has no field nothing.*reason, code"),
        ({"note": "x"}, "note has no blind index.*reason, code"),
        ({"room": "x"}, "room is not encrypted: select.*reason, code"),
        ({"code": None}, "^code must be a str"),
        ({"code": 1}, "^code must be a str"),
        ({"reason": ["x", None]}, "^reason must be a str"),
        ({"reason": "SECRET\x00"}, "^reason holds a control character"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(values: dict[str, Any], problem: str) -> None:
    """Before anything is sent. The message says what can be, and does not hold the value."""
    with pytest.raises(ValueError, match=problem) as caught:
        Visits(None, None).find(**values)  # type: ignore[arg-type]  # nothing is asked
    assert "SECRET" not in str(caught.value)


# --- select ----------------------------------------------------------------------------------------------------------


CRITERIA: list[tuple[Callable[[], tuple[Any, ...]], list[int]]] = [
    (lambda: (), [0, 1, 2, 3, 4]),
    (lambda: (VisitRow.number > 2,), [3, 4]),
    (lambda: (VisitRow.number > 0, VisitRow.doctor == 1), [2]),
    (lambda: (or_(VisitRow.number == 0, VisitRow.room.is_(None)),), [0, 4]),
    (lambda: (VisitRow.keys == "k",), [0]),
    (lambda: (VisitRow.keys == bindparam("keys", "l"),), [1]),
    (lambda: (VisitRow.number == bindparam("version_current", 2),), [2]),
    (lambda: (VisitRow.number < bindparam("limit", 2), VisitRow.keys != bindparam("given_0", "k")), [1]),
    (lambda: (VisitRow.room == "%(keys)s",), [3]),
    (lambda: (VisitRow.number.in_([1, 3, 9]),), [1, 3]),
    (lambda: (VisitRow.number.in_([4]), VisitRow.keys.not_in(["k"]) | VisitRow.keys.is_(None)), [4]),
    (lambda: (VisitRow.number.in_([]),), []),
    (lambda: (sa.tuple_(VisitRow.number, VisitRow.room).in_([(0, "1"), (1, "1"), (2, "1")]),), [0, 2]),
    (lambda: (VisitRow.number.between(1, 2),), [1, 2]),
    (lambda: (VisitRow.room.like("%(k%"),), [3]),
    (lambda: (func.lower(VisitRow.keys) == "k",), [0]),
    (lambda: (VisitRow.number % 2 == 1,), [1, 3]),
    (lambda: (VisitRow.reason_encrypted.is_(None),), [4]),
    (lambda: (VisitRow.reason_index.is_not(None), VisitRow.number > 1), [2, 3]),
    (lambda: (VisitRow.starts_at >= NOON + timedelta(hours=3),), [3, 4]),
    (lambda: (VisitRow.id == VISITS[2].id,), [2]),
    (lambda: (VisitRow.__table__.c.number == 1,), [1]),
    # Other tables: each record once, though doctor 1 has three shifts.
    (lambda: (VisitRow.doctor == Doctor.id, Doctor.ward == "north"), [0, 2]),
    (lambda: (VisitRow.doctor == Shift.doctor,), [0, 2]),
    (lambda: (VisitRow.doctor == Doctor.id, Shift.doctor == Doctor.id, VisitRow.number > 0), [2]),
    (lambda: (exists().where(Doctor.id == VisitRow.doctor, Doctor.ward == "south"),), [1]),
    (lambda: (~exists(select(Doctor).where(Doctor.id == VisitRow.doctor)),), [3, 4]),
    (lambda: (VisitRow.doctor == Doctor.id, exists().where(Shift.doctor == VisitRow.doctor)), [0, 2]),
    (lambda: (VisitRow.of_doctor.has(Doctor.ward == "south"),), [1]),
    (lambda: (VisitRow.doctor.in_(select(Doctor.id).where(Doctor.ward.in_(["north", "x"]))),), [0, 2]),
    (lambda: ((other := aliased(VisitRow)).room == VisitRow.room, other.number > VisitRow.number), [0]),
    (lambda: (VisitRow.number == select(func.max(Doctor.id)).scalar_subquery(),), [2]),
    # Names of ours, of the criterion's own.
    (lambda: (VisitRow.doctor.in_(select(select(Doctor.id).where(Doctor.id == 1).cte("stored").c.id)),), [0, 2]),
    (lambda: (VisitRow.doctor == aliased(Doctor, name="stored").id,), [0, 1, 2]),
    (lambda: (VisitRow.doctor == select(Doctor.id).where(Doctor.id == 2).subquery("always").c.id,), [1]),
]


def test_criteria_mean_what_sqlalchemy_means_by_them(clinic: Database) -> None:
    """Records, in order; and the same number and answer by ``count`` and ``exists``. Twice, as the statements are kept."""
    for _ in range(2):
        for at, (make, expected) in enumerate(CRITERIA):
            with clinic.transaction() as tx:
                visits = tx.repository(Visits)
                found = visits.select(*make())
                assert found == [VISITS[number] for number in expected], at
                assert {each.id for each in found} == {*tx.session.scalars(select(VisitRow.id).where(*make()))}, at
                assert (visits.count(*make()), visits.exists(*make())) == (len(expected), bool(expected)), at
                assert visits.select(*make(), limit=1) == found[:1]


def test_a_kept_statement_takes_the_values_of_each_call(clinic: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Criteria of one shape share a statement, whose text has no value and which keeps none."""
    with clinic.transaction() as tx:
        visits = tx.repository(Visits)
        kept = visits._statements._of_criteria
        kept.clear()
        for number in range(5):
            assert numbers(visits.select(VisitRow.number == number)) == [number]
            assert numbers(visits.select(VisitRow.number.in_(range(number + 1)))) == [*range(number + 1)]
        assert len(kept) == 2
        visits.select(VisitRow.room == "SECRET", VisitRow.keys.in_(["SECRET"]))
        for prepared in kept.values():
            statement: Any = prepared._statement
            assert {each.value for each in iterate(statement) if isinstance(each, sa.BindParameter)} == {None}
            assert "SECRET" not in prepared.sql
        monkeypatch.setattr(statements, "KEPT", 10)
        for number in range(20):
            visits.count(VisitRow.number == sa.literal_column(str(number), sa.Integer))
        assert 0 < len(kept) <= 10


def test_statements_are_kept_without_their_keys(clinic: Database) -> None:
    """The key of the moment is used, also by a statement that was built under another one."""
    question = lambda visits: visits.select(VisitRow.number.in_([0, 1]), VisitRow.doctor == Doctor.id)  # noqa: E731
    assert asked(clinic, question) == VISITS[:2]
    rotate(clinic.engine, clinic.keys)
    assert asked(clinic, question) == VISITS[:2]


def test_no_criterion_reaches_a_parameter_of_ours(clinic: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its parameters and columns are called: those of the statement that hold keys are not among its own."""
    sent: list[tuple[str, Any]] = []
    convert = PostgresQuery.convert

    def kept(query: Any, sql: Any, parameters: Any) -> None:
        sent.append((sql if isinstance(sql, str) else sql.decode(), parameters))
        convert(query, sql, parameters)

    monkeypatch.setattr(PostgresQuery, "convert", kept)
    names = [
        "keys",
        "version_current",
        "version_previous",
        "limit",
        "after_0",
        "given_1",
        "given_0",
        "where_1",
        "known",
    ]
    with clinic.transaction() as tx:
        for name in names:
            criteria = VisitRow.keys == bindparam(name, "k"), VisitRow.room == "1"
            assert numbers(tx.repository(Visits).select(*criteria)) == [0]
    selects = [each for each in sent if "FROM visits" in each[0]]
    assert len(selects) == len(names)
    for sql, parameters in selects:
        assert {name: parameters[name] for name in parameters if name.startswith("given_")} == {
            "given_0": "k",
            "given_1": "1",
        }
        criterion = sql[sql.index("WHERE") : sql.index("ORDER BY")]
        assert "%(keys)s" not in criterion
        assert "%(version" not in criterion


class Smuggler(sa.sql.elements.ColumnElement[bool]):
    inherit_cache = True
    type = sa.Boolean()


@compiles(Smuggler)
def _(*_: Any, **__: Any) -> str:
    return "pg_catalog.array_length(%(keys)s::text[], 1) > 0"


class Shouting(TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value.upper() if value else value


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: VisitRow.reason_encrypted == b"x", r"reason_encrypted is encrypted.*find\(reason=…\)"),
    (lambda: VisitRow.reason_index == b"x", r"reason_index is encrypted.*find\(reason=…\)"),
    (lambda: VisitRow.note_encrypted == b"x", "note_encrypted is encrypted.*docs/querying.md"),
    (lambda: func.length(VisitRow.note_encrypted) > 3, "note_encrypted is encrypted"),
    (lambda: aliased(VisitRow).code_index == VisitRow.code_index, "code_index is encrypted"),
    (lambda: PatientRow.ssn_index == b"x", "ssn_index is encrypted"),
    (lambda: exists(select(PatientRow).where(PatientRow.ssn_index == VisitRow.code_index)), "is encrypted"),
    (lambda: VisitRow.id.in_(select(VisitRow.id).where(VisitRow.code_index == b"x")), "code_index is encrypted"),
    (
        lambda: (s := select(VisitRow.id, VisitRow.code_index.label("c")).subquery()).c.c == s.c.id,
        "code_index is encrypted",
    ),
    (
        lambda: VisitRow.id == select(VisitRow.id).where(VisitRow.code_index == b"x").subquery().c.id,
        "code_index is encrypted",
    ),
    (
        lambda: VisitRow.id.in_(select(select(VisitRow.id).where(VisitRow.note_encrypted == b"x").cte().c.id)),
        "note_encrypted is encrypted",
    ),
    (
        lambda: VisitRow.id == select(VisitRow.id).where(sa.text("true")).subquery().c.id,
        "text()",
    ),
    (lambda: sa.literal_column("visits.code_index = 'x'", sa.Boolean), "literal_column.*encrypted"),
    (lambda: sa.text("true"), "text()"),
    (lambda: and_(VisitRow.number == 1, sa.text("note_encrypted = :keys")), "text()"),
    (lambda: True, "must be an SQLAlchemy expression.*type bool"),
    (lambda: VisitRow.number is None, "type bool"),
    (lambda: "number = 1", "type str"),
    (lambda: VisitRow, "must be an SQLAlchemy expression"),
    (lambda: None, "type NoneType"),
    (lambda: VisitRow.number == bindparam("keys", required=True, type_=sa.Integer), "'keys'.*no value"),
    (lambda: VisitRow.number == bindparam("x", 1, literal_execute=True), "literal_execute"),
    (lambda: and_(VisitRow.number == bindparam("x", 1), VisitRow.doctor == bindparam("x", 2)), "two parameters.*'x'"),
    (Smuggler, "parameter that is not its own"),
    # The driver numbers the parameters of a whole statement: such a cast once had the server log the keys, as no integer.
    (lambda: sa.literal_column("CAST($1 AS integer) = 1", sa.Boolean), "parameter that is not its own"),
    (lambda: VisitRow.keys.op("= $2 OR")(VisitRow.keys), "parameter that is not its own"),
    (lambda: exists(select(Doctor.id).prefix_with("$1,")), "parameter that is not its own"),
    (lambda: sa.column("reason_encrypted") == b"x", r"reason_encrypted is encrypted.*find\(reason=…\)"),
    (lambda: sa.table("visits", sa.column("code_index")).c.code_index == b"x", "code_index is encrypted"),
    (
        lambda: VisitRow.starts_at == sa.type_coerce("SECRET", sa.Enum("a", "b", validate_strings=True)),
        r"not valid for its type Enum \(LookupError\)",
    ),
    (lambda: VisitRow.keys.in_([sa.type_coerce(5, Shouting)]), "not valid for its type Shouting"),
    (lambda: sa.type_coerce(VisitRow.keys, Shouting).in_(["SECRET", 5]), "not valid for its type Shouting"),
    (lambda: Doctor.ward == "north", "joins doctors with visits"),
    (lambda: and_(VisitRow.number == 1, Doctor.ward == "north"), "joins doctors with visits"),
    (lambda: VisitRow.number.op("=")(sa.cast(sa.null(), sa.types.NullType())), "cannot be written in SQL"),
]


def test_what_is_no_criterion_is_refused(clinic: Database) -> None:
    """An encrypted column has nothing that PostgreSQL could compare; text could name anything, a key too."""
    with clinic.transaction() as tx:
        visits = tx.repository(Visits)
        for make, problem in REFUSED:
            for question in (visits.select, visits.count, visits.exists):
                with pytest.raises(ValueError, match=problem) as caught:
                    question(make())
                assert "SECRET" not in f"{caught.value} {caught.value.__context__}"
        assert numbers(visits.select(sa.type_coerce(VisitRow.keys, Shouting) == "k")) == []


# --- order and pages -------------------------------------------------------------------------------------------------


def _ranked(each: Any) -> tuple[bool, Any]:
    """Return what sorts as PostgreSQL does: None is the largest."""
    return (each is None, each)


def in_order(rows: list[Visit], order: list[tuple[str, bool]]) -> list[Visit]:
    """Return rows as ORDER BY and then the primary key sort them."""
    by = [*order, ("id", order[-1][1] if order else False)]
    for name, is_descending in reversed(by):
        rows = sorted(rows, key=lambda row, name=name: _ranked(getattr(row, name)), reverse=is_descending)  # type: ignore[misc]
    return rows


def test_pages_meet_every_row_once_in_any_order(database: Database) -> None:
    """With equal values, NULLs, several columns and both directions; by the last record, and by its values alone."""
    chance = random.Random(5)  # noqa: S311  # the same orders each time
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    rooms, moments = [None, "a", "B", "b", "é"], [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(days=1)]
    rows = [visit(chance.randrange(4), room=chance.choice(rooms), starts_at=chance.choice(moments)) for _ in range(40)]
    with database.transaction() as tx:
        tx.repository(Visits).add_many(rows)
    with database.engine.connect() as connection:
        collation = connection.scalar(sa.text("SELECT datcollate FROM pg_database WHERE datname = current_database()"))
        assert collation in {"C", "C.UTF-8", "C.utf8"}, "Python sorts as this collation does"
    names = ["number", "room", "starts_at", "keys", "id"]
    with database.transaction() as tx:
        visits = tx.repository(Visits)
        for _ in range(25):
            order = [(name, chance.random() < 0.5) for name in chance.sample(names, chance.randrange(4))]
            columns = [getattr(VisitRow, name).desc() if down else getattr(VisitRow, name) for name, down in order]
            expected = in_order(rows, order)
            assert visits.select(order_by=columns) == expected, order
            paged: list[Visit] = []
            place: Any = None
            while page := visits.select(
                VisitRow.number < 3, order_by=columns, after=place, limit=chance.randrange(1, 9)
            ):
                paged += page
                values = (*(getattr(page[-1], name) for name, _ in order), page[-1].id)
                place = page[-1] if chance.random() < 0.5 or ("id" in dict(order)) else values
            assert paged == [each for each in expected if each.number < 3], order


class Measured(EncryptedRecord, table="measured", metadata=sa.MetaData()):
    """Columns of each type that has an order, which may be NULL."""

    real: Annotated[float | None, sa.REAL] = None
    single: Annotated[float | None, sa.Float(24)] = None
    double: float | None = None
    number: Decimal | None = None
    few_digits: Annotated[float | None, sa.Numeric(15, 3, asdecimal=False)] = None
    small: Annotated[int | None, sa.SmallInteger] = None
    short: Annotated[str | None, sa.String(2)] = None
    day: date | None = None
    hour: Annotated[time | None, sa.Time(timezone=True)] = None
    moment: Annotated[datetime | None, sa.DateTime(timezone=False)] = None
    is_done: bool | None = None
    place: UUID | None = None
    note: Annotated[str | None, Encrypted()] = None
    id: int = key(init=False)


AWKWARD: dict[str, Any] = {
    "real": [0.1, -0.3, float("nan"), float("inf")],
    "single": [0.1, 16777216.0],
    "double": [0.1, 0.30000000000000004, float("nan"), -0.0],
    "number": [Decimal("0.1"), Decimal("0.12345678901234567890123"), Decimal("1e20")],
    "few_digits": [0.1, 123456789012.345],
    "small": [1, -1],
    "short": ["a", "b ", "b"],
    "day": [date(2026, 1, 1), date.min],
    "hour": [time(12, tzinfo=UTC), time(14, tzinfo=timezone(timedelta(hours=2))), time(12, 0, 0, 1, tzinfo=UTC)],
    "moment": [datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 1)],  # without a zone
    "is_done": [True, False],
    "place": [UUID(int=0), UUID(int=1 << 127)],
}


def test_pages_meet_every_row_once_by_columns_of_any_type(database: Database) -> None:
    """The place of a row is what Python has of it: it must be what PostgreSQL compares. Each value is there several times."""
    Measured.__table__.metadata.create_all(database.engine)
    columns = Measured.__table__.c
    with database.transaction() as tx:
        rows = tx.repository(Measured)
        rows.add_many(Measured(**{name: each}) for name, values in AWKWARD.items() for each in values * 3)
        every = rows.count()
        for name in AWKWARD:
            for order in (columns[name], columns[name].desc()):
                paged: list[int] = []
                place = None
                while len(paged) <= every and (
                    page := rows.select(order_by=order, after=place, limit=every // 5, fields=[])
                ):
                    paged += [each.id for each in page]
                    place = page[-1]
                assert len(paged) == len(set(paged)) == every, name


class Rounded(EncryptedRecord, table="rounded", metadata=sa.MetaData()):
    """Columns of which Python gets fewer digits than PostgreSQL has."""

    binary: Annotated[Decimal, sa.Float(asdecimal=True)]
    free: Annotated[float, sa.Numeric(asdecimal=False)]
    long: Annotated[float, sa.Numeric(16, asdecimal=False)]
    note: Annotated[str | None, Encrypted()] = None
    id: int = key(init=False)


@pytest.mark.parametrize("name", ["binary", "free", "long"])
def test_numbers_that_a_record_has_rounded_are_no_order(name: str) -> None:
    """A page would begin at another place, and meet rows twice or never."""
    with pytest.raises(ValueError, match=f"order_by cannot take {name}.*fewer digits"):
        Rounded.__repository__(None, None).select(order_by=Rounded.__table__.c[name])  # type: ignore[arg-type]  # nothing is asked


@pytest.mark.parametrize("descends", [False, True])
def test_an_index_answers_a_page(clinic: Database, descends: bool) -> None:
    """Rows before the page are neither read nor sorted, and only its own rows are decrypted."""
    column = VisitRow.starts_at.desc() if descends else VisitRow.starts_at
    fields = tuple(Visits._table.fields.values())
    order = Order(Visits._table, Visits._statements.plain, column)
    place = order.place(VISITS[2], Visit)
    prepared = Visits._statements.select(fields, Criteria(Visits._table, ()), order, place)
    with clinic.engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX by_start ON visits (starts_at, id)")
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        given = order.values(place) | keys_of(clinic.keys.keyring(connection), Visits._table, fields) | {"limit": 2}
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {prepared.sql}", given))
    assert f"Index Scan{' Backward' if descends else ''} using by_start" in plan
    assert "Index Cond: (ROW(starts_at, id)" in plan
    assert "Sort" not in plan


def test_a_page_goes_on_behind_a_row_that_is_gone(clinic: Database) -> None:
    """It begins behind a place, and not at a number of rows: what is added or deleted before it shifts nothing."""
    with clinic.transaction() as tx:
        visits = tx.repository(Visits)
        first = visits.select(order_by=VisitRow.starts_at.desc(), limit=2)
        assert numbers(first) == [4, 3]
        visits.delete(first[-1].id)
        visits.add(visit(9))
        assert numbers(visits.select(order_by=VisitRow.starts_at.desc(), after=first[-1], limit=2)) == [2, 1]
        assert numbers(visits.select(after=VISITS[1].id, limit=1)) == [2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"order_by": "number"}, "order_by takes columns of visits.*desc"),
        ({"order_by": VisitRow.reason_encrypted}, "order_by takes columns of visits"),
        ({"order_by": Doctor.ward}, "order_by takes columns of visits"),
        ({"order_by": VisitRow.number.desc().nulls_last()}, "order_by takes columns of visits"),
        ({"order_by": func.lower(VisitRow.room)}, "order_by takes columns of visits"),
        ({"order_by": VisitRow.key_version}, "order_by takes columns of visits"),
        ({"after": (1, 2)}, "after must be the last record.*id"),
        ({"after": 5}, "^id must be of type UUID"),
        ({"after": "x", "order_by": VisitRow.number}, "number, id"),
        ({"after": (None, VISITS[0].id), "order_by": VisitRow.number}, "^number"),
        ({"limit": 0}, "limit must be"),
        ({"limit": "1"}, "limit must be"),
        ({"fields": ["nothing"]}, "no field nothing"),
    ],
)
def test_orders_and_places_that_do_not_fit_are_refused(options: dict[str, Any], problem: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=problem):
        Visits(None, None).select(**options)  # type: ignore[arg-type]  # nothing is asked


def test_a_table_that_is_mapped_to_another_schema_is_refused(clinic: Database) -> None:
    """The statement is not translated, so it would look for the other table in a wrong place."""
    elsewhere = sa.Table("rooms", sa.MetaData(), sa.Column("name", sa.Text), schema="tenant")
    with clinic.engine.connect() as connection:
        mapped = connection.execution_options(schema_translate_map={"tenant": "one"})
        visits = clinic.using(mapped).repository(Visits)
        with pytest.raises(ConfigurationError, match="schema_translate_map"):
            visits.select(VisitRow.room == elsewhere.c.name)
        assert visits.count() == 5


def test_fields_that_are_not_asked_for_stay_encrypted(clinic: Database) -> None:
    """As for every read."""
    with clinic.transaction() as tx:
        (found,) = tx.repository(Visits).select(VisitRow.number == 2, fields=["note", "room"])
        assert (found.note, found.room) == ("dry", "1")
        with pytest.raises(FieldNotLoadedError):
            _ = found.reason


async def test_the_same_questions_on_an_event_loop(clinic: Database, database_url: sa.URL) -> None:
    """Through the other cursor."""
    made = AsyncDatabase(create_async_engine(database_url), clinic.keys.provider)
    async with made, made.transaction() as tx:

        def work(visits: Visits) -> Any:
            few = visits.select(VisitRow.number.in_([0, 1]), VisitRow.doctor == Doctor.id, limit=5)
            return few, visits.count(VisitRow.number > 1), visits.exists(VisitRow.number > 9), visits.find(code="A")

        answers = await tx.run(lambda tx: work(tx.repository(Visits)))
    assert answers == (VISITS[:2], 3, False, [VISITS[4]])
