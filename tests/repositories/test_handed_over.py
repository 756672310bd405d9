"""What libraries hand over is stored as plain values, or refused with nothing written: in fields, plain columns, keys and searches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests import handed_over
from tests.handed_over import REFUSED, is_same
from voiceassist_db import ClinicalNote, Database, Patient, Record, Repository, field, record, uuid7
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column


class OtherBase(DeclarativeBase):
    pass


class SampleRow(EncryptedRow, OtherBase):
    __tablename__ = "samples"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    plain_text: Mapped[str | None]
    plain_bytes: Mapped[bytes | None]
    plain_integer: Mapped[int | None]
    plain_decimal: Mapped[Decimal | None]
    plain_date: Mapped[date | None]
    plain_datetime: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    plain_json: Mapped[Any | None] = mapped_column(sa.JSON)
    plain_jsonb: Mapped[Any | None] = mapped_column(postgresql.JSONB)
    plain_float: Mapped[float | None]
    plain_boolean: Mapped[bool | None]
    plain_time: Mapped[time | None]
    plain_span: Mapped[timedelta | None]
    plain_uuid: Mapped[UUID | None]
    plain_texts: Mapped[list[str | None] | None] = mapped_column(sa.ARRAY(sa.Text))
    text_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    bytes_encrypted: Mapped[bytes | None] = encrypted_column(Kind.BYTES)
    integer_encrypted: Mapped[bytes | None] = encrypted_column(Kind.INTEGER)
    decimal_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DECIMAL)
    date_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATE)
    datetime_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATETIME)
    json_encrypted: Mapped[bytes | None] = encrypted_column(Kind.JSON)


@record
class Sample(Record):
    plain_text: Any = None
    plain_bytes: Any = None
    plain_integer: Any = None
    plain_decimal: Any = None
    plain_date: Any = None
    plain_datetime: Any = None
    plain_json: Any = None
    plain_jsonb: Any = None
    plain_float: Any = None
    plain_boolean: Any = None
    plain_time: Any = None
    plain_span: Any = None
    plain_uuid: Any = None
    plain_texts: Any = None
    text: Any = None
    bytes: Any = None
    integer: Any = None
    decimal: Any = None
    date: Any = None
    datetime: Any = None
    json: Any = None
    id: UUID = field(default_factory=uuid7)


class SampleRepository(Repository[Sample]):
    model = SampleRow
    record = Sample


OF_FIELD: dict[str, list[tuple[Any, Any]]] = {
    **{kind.value: values for kind, values in handed_over.OF_KIND.items()},
    **{f"plain_{kind.value}": values for kind, values in handed_over.OF_KIND.items()},
    "plain_jsonb": [
        *((value, expected) for value, expected in handed_over.JSONS if expected != {"a": "\x00"}),
        ({"a": "\x00"}, REFUSED),
        ({"a": 1e16}, REFUSED),
        ({"a": 1e15}, {"a": 1e15}),
    ],
    "plain_float": handed_over.FLOATS,
    "plain_boolean": handed_over.BOOLEANS,
    "plain_time": handed_over.TIMES,
    "plain_span": handed_over.SPANS,
    "plain_uuid": handed_over.UUIDS,
    "plain_texts": [([handed_over.Mood.GOOD, None], ["good", None]), (["a\x00"], REFUSED), (("a",), REFUSED)],
}


@pytest.fixture
def samples(database: Database) -> Iterator[SampleRepository]:
    """The repository of a table with every kind of field and of plain column, in a transaction."""
    with database.engine.begin() as connection:
        OtherBase.metadata.create_all(connection)
    with database.transaction() as tx:
        yield tx.repository(SampleRepository)


def _add(samples: SampleRepository, name: str, value: Any) -> UUID:
    sample = Sample(**{name: value})
    samples.add(sample)
    return sample.id


def _add_many(samples: SampleRepository, name: str, value: Any) -> UUID:
    sample = Sample(**{name: value})
    samples.add_many([sample])
    return sample.id


def _update(samples: SampleRepository, name: str, value: Any) -> UUID:
    sample = Sample()
    samples.add(sample)
    try:
        samples.update(sample.id, **{name: value})
    except ValueError:
        assert sample == samples.get(sample.id)
        samples.delete(sample.id)
        raise
    return sample.id


@pytest.mark.parametrize("write", [_add, _add_many, _update])
def test_what_a_library_hands_over_is_stored_as_its_data(
    samples: SampleRepository, write: Callable[[SampleRepository, str, Any], UUID]
) -> None:
    """A value comes back equal and of the plain type; or the write is a ValueError that names the field, and no row is there."""
    for name, (value, expected) in ((name, pair) for name, pairs in OF_FIELD.items() for pair in pairs):
        if expected is REFUSED:
            with pytest.raises(ValueError, match=f"^{name} "):
                write(samples, name, value)
            assert samples.page(fields=()) == []
            continue
        id_ = write(samples, name, value)
        found = getattr(samples.get(id_), name)
        if name in {"plain_datetime", "plain_jsonb"}:  # in the session's time zone; with its names sorted
            assert expected == found
        else:
            assert is_same(expected, found), (name, type(value), found)
        samples.delete(id_)


# --- keys ------------------------------------------------------------------------------------------------------------


def _keyed(kind: str, type_: Any) -> tuple[type[DeclarativeBase], type[Any]]:
    """Return a base and the repository of a table with a primary key of a type."""

    class Base(DeclarativeBase):
        pass

    class KeyedRow(EncryptedRow, Base):
        __tablename__ = f"keyed_{kind}"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

    @record
    class Keyed(Record):
        id: Any
        note: str | None = None

    class KeyedRepository(Repository[Keyed]):
        model = KeyedRow
        record = Keyed

    return Base, KeyedRepository


KEYS: dict[str, tuple[Any, list[tuple[Any, Any]]]] = {
    "text": (sa.Text(), handed_over.TEXTS),
    "varchar": (sa.String(10), handed_over.TEXTS),
    "int2": (sa.SmallInteger(), handed_over.INTEGERS),
    "int4": (sa.Integer(), handed_over.INTEGERS),
    "int8": (sa.BigInteger(), handed_over.INTEGERS),
    "date": (sa.Date(), handed_over.DATES),
    "uuid": (sa.Uuid(), handed_over.UUIDS),
}


@pytest.mark.parametrize("many", [False, True])
def test_a_row_is_named_by_the_data_of_its_key(database: Database, many: bool) -> None:
    """A row that was added by a subclass's instance is read, changed, paged and deleted by it, and by the plain key."""
    for kind, (type_, keys) in KEYS.items():
        base, repository = _keyed(kind, type_)
        with database.engine.begin() as connection:
            base.metadata.create_all(connection)
        for value, expected in keys:
            with database.transaction() as tx:
                rows = tx.repository(repository)
                row = repository.record(id=value, note="first")
                if expected is REFUSED:
                    _require_refused(rows, row, many)
                else:
                    _require_named(rows, row, expected, many)


def _require_refused(rows: Any, row: Any, many: bool) -> None:
    acts: tuple[Callable[[], Any], ...] = (
        lambda: rows.add_many([row]) if many else rows.add(row),
        lambda: rows.get(row.id),
        lambda: rows.get_many([row.id]),
        lambda: rows.update(row.id, note="x"),
        lambda: rows.delete(row.id),
        lambda: rows.page(after=row),
    )
    for act in acts:
        with pytest.raises(ValueError, match="^id "):
            act()
    assert rows.page() == []


def _require_named(rows: Any, row: Any, expected: Any, many: bool) -> None:
    if many:
        rows.add_many([row])
    else:
        rows.add(row)
    for key in (row.id, expected):
        found = rows.get(key)
        assert is_same(expected, found.id)
        assert found.note == "first"
        assert [expected] == list(rows.get_many([key]))
        rows.update(key, note="second")
        assert [(expected, "second")] == [(each.id, each.note) for each in rows.page()]
        rows.update(key, note="first")
    assert rows.page(after=row) == []
    rows.delete(row.id)
    assert rows.page() == []


def test_a_search_is_for_the_data(database: Database) -> None:
    """Finders, and notes of a patient, take instances of subclasses by their data, and refuse what is of another type."""
    patient = Patient(patient_id="PT-1", name=handed_over.LoudText("É Good"), mrn=handed_over.LoudText("m-1"))
    with database.transaction() as tx:
        tx.patients.add(patient)
        for name in ("é good", handed_over.LoudText("É  GOOD")):
            assert [patient.id] == [each.id for each in tx.patients.find_by_name(name)]
        assert tx.patients.find_by_name("other") == []
        assert [patient.id] == [each.id for each in tx.patients.with_mrns([handed_over.LoudText("M-1")])]
        note = ClinicalNote(patient=handed_over.LoudUUID(str(patient.id)), note="text")
        tx.clinical_notes.add(note)
        for id_ in (patient.id, note.patient, handed_over.ForeignUUID(str(patient.id))):
            assert ["text"] == [each.note for each in tx.clinical_notes.of_patient(id_)]
        wrong: Any
        for wrong in (str(patient.id), None, 1):
            with pytest.raises(ValueError, match="patient must be of type UUID"):
                tx.clinical_notes.of_patient(wrong)
        for wrong in (b"x", 1, handed_over.Coded.GOOD, handed_over.UnequalText("x")):
            with pytest.raises(ValueError, match="^name "):
                tx.patients.find_by_name(wrong)
        for limit in (0, -1, 1.5, 2**63, None):
            with pytest.raises(ValueError, match="limit must be an int"):
                tx.patients.page(limit=limit)  # type: ignore[arg-type]  # on purpose
        assert len(tx.patients.page(limit=handed_over.Level.LOW)) == 1


def test_a_unique_value_is_kept_unique_by_its_data(database: Database) -> None:
    """A row may keep its own record number, however its key is handed over."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", mrn="M-1"))
        tx.patients.update(handed_over.LoudText("PT-1"), mrn=handed_over.LoudText("m-1"))
        assert tx.patients.get("PT-1").mrn == "m-1"


def test_values_that_the_server_would_change_are_refused(database: Database) -> None:
    """Each plain type gives back what it was given, at the ends of its range, and refuses what is beyond."""
    base, repository = _plain()
    with database.engine.begin() as connection:
        base.metadata.create_all(connection)
    with database.transaction() as tx:
        rows = tx.repository(repository)
        ids = itertools.count()
        for name, (taken, refused) in ENDS.items():
            for value in taken:
                one, many = (repository.record(id=next(ids), **{name: value}) for _ in range(2))
                rows.add(one)
                rows.add_many([many])
                for each in (one, many):
                    assert is_same(value, getattr(rows.get(each.id), name)), (name, value)
            for value in refused:
                row = repository.record(id=next(ids), **{name: value})
                with pytest.raises(ValueError, match=f"^{name} "):
                    rows.add(row)
                with pytest.raises(ValueError, match=f"^{name} "):
                    rows.add_many([row])
                with pytest.raises(ValueError, match=f"^{name} "):
                    rows.update(0, **{name: value})
                assert rows.get_many([row.id]) == {}


_NAIVE = datetime(2024, 2, 29, 12, 0, 0, 123456)  # on purpose
ENDS: dict[str, tuple[list[Any], list[Any]]] = {
    "int2": ([-(2**15), 2**15 - 1], [-(2**15) - 1, 2**15]),
    "int4": ([-(2**31), 2**31 - 1], [-(2**31) - 1, 2**31]),
    "int8": ([-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63, 10**5000]),
    "varchar3": (["", "abc", "ä€𝄞", "a  "], ["abcd", "abc ", "a\x00", "\ud800", 1, b"abc"]),
    "char3": (["abc", "a  ", "   "], ["ab", "abcd", "", "ab\x00"]),
    "numeric52": (
        [Decimal("0.00"), Decimal("999.99"), Decimal("-0.01")],
        [Decimal(1000), Decimal("0.001"), Decimal("1E+999999"), Decimal("1E-999999"), Decimal("NaN"), 0.5, "1"],
    ),
    "numeric": (
        [Decimal("1." + "0" * 16_382 + "1"), Decimal("-" + "9" * 131_072), Decimal("0.000")],
        [Decimal("1E-16384"), Decimal("1E+131072"), Decimal("0E+999999999"), Decimal("Infinity")],
    ),
    "real": ([0.1, 0.0, 3.4e38, float("inf"), 1e-45, 16777216.0], [0.123456789, 16777217.0, 1e39, 1e-46, 1e300]),
    "double": ([0.1, 1.7976931348623157e308, 5e-324, float("-inf")], [10**400, "0.1"]),
    "decimal": (
        [Decimal("0.1000000000"), Decimal("-123456.7891000000"), Decimal("0.0000000001")],
        [
            Decimal("0.12345678901"),
            Decimal("1234567.1234567891"),
            Decimal("1E-11"),
            Decimal("NaN"),
            Decimal(10) ** 400,
            0.1,
        ],
    ),
    "naive": ([_NAIVE, datetime.min, datetime.max], [_NAIVE.replace(tzinfo=UTC), date(2024, 1, 1), "2024-01-01"]),
    "seconds": ([_NAIVE.replace(microsecond=120000)], [_NAIVE]),
    "aware": ([], [_NAIVE, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
    "aware_time": (
        [time(1, 2, 3, 4, UTC), time(1, tzinfo=timezone(timedelta(hours=-15, minutes=-59, seconds=-59)))],
        [
            time(1),
            *(
                time(1, tzinfo=timezone(timedelta(hours=hours, microseconds=us)))
                for hours, us in ((16, 0), (15, 1), (0, -1))
            ),
        ],
    ),
    "span": ([timedelta.min, timedelta.max, timedelta(microseconds=-1)], [1, "1 day"]),
    "uuid_text": (["018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f"], ["018F3F5E-7B1C-7CC2-9D5B-0A1B2C3D4E5F", "x", ""]),
    "choice": (["a"], ["c", 1, handed_over.Mood.GOOD]),
    "member": ([handed_over.Level.LOW], ["LOW", 1, handed_over.Degree.LOW]),
    "integers": (
        [[], [1, None, -5], [[1, 2], [3, 4]], [[[[[[1]]]]]]],
        [
            *([2**31], ["1"], [[1.5]], 1),
            *([[]], [[], []], [[1], []], [[1], [2, 3]], [1, [2]], [None, [1]], [[1], [[2]]], [[[[[[[1]]]]]]]),
        ],
    ),
}


def _plain() -> tuple[type[DeclarativeBase], type[Any]]:
    """Return a base and the repository of a table with plain columns of these types."""

    class Base(DeclarativeBase):
        pass

    class PlainRow(EncryptedRow, Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        int2 = mapped_column(sa.SmallInteger)
        int4 = mapped_column(sa.Integer)
        int8 = mapped_column(sa.BigInteger)
        varchar3 = mapped_column(sa.String(3))
        char3 = mapped_column(sa.CHAR(3))
        numeric52 = mapped_column(sa.Numeric(5, 2))
        numeric = mapped_column(sa.Numeric)
        real = mapped_column(sa.REAL)
        double = mapped_column(sa.Double)
        decimal = mapped_column(sa.Double(asdecimal=True))
        naive = mapped_column(sa.DateTime)
        seconds = mapped_column(postgresql.TIMESTAMP(precision=2))
        aware = mapped_column(sa.DateTime(timezone=True))
        aware_time = mapped_column(sa.Time(timezone=True))
        span = mapped_column(sa.Interval)
        uuid_text = mapped_column(sa.Uuid(as_uuid=False))
        choice = mapped_column(sa.Enum("a", "b", name="choices"))
        member = mapped_column(sa.Enum(handed_over.Level))
        integers = mapped_column(sa.ARRAY(sa.Integer))
        note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

    @record
    class Plain(Record):
        id: int
        int2: Any = None
        int4: Any = None
        int8: Any = None
        varchar3: Any = None
        char3: Any = None
        numeric52: Any = None
        numeric: Any = None
        real: Any = None
        double: Any = None
        decimal: Any = None
        naive: Any = None
        seconds: Any = None
        aware: Any = None
        aware_time: Any = None
        span: Any = None
        uuid_text: Any = None
        choice: Any = None
        member: Any = None
        integers: Any = None
        note: Any = None

    class PlainRepository(Repository[Plain]):
        model = PlainRow
        record = Plain

    return Base, PlainRepository
