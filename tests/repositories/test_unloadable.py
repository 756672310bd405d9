"""A value that PostgreSQL holds and Python cannot is an error that names its row and column, and verification finds it."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import (
    AsyncDatabase,
    Database,
    Patient,
    Record,
    Repositories,
    Repository,
    create_async_engine,
    record,
)
from voiceassist_db.errors import ValueFormatError
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.prepared import CHUNK_ROWS
from voiceassist_db.providers.vault import VaultKeyProvider

ROWS = 3 * CHUNK_ROWS + 7
MOMENTS = ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "12000-01-01", "0001-01-01 00:00:00 BC"]


@pytest.fixture
def filled(database: Database) -> Database:
    """Patients, in the order of their primary keys."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n:04d}", name=f"Secret {n}") for n in range(ROWS))
    return database


def spoil(database: Database, patient_id: str, column: str, value: str) -> str:
    """Put a value into a plain column by SQL; return the row's primary key."""
    change = text(f"UPDATE patient_data SET {column} = CAST(:value AS timestamptz) WHERE patient_id = :id RETURNING id")
    with database.engine.begin() as connection:
        return str(connection.execute(change, {"value": value, "id": patient_id}).scalar_one())


def named(error: ValueFormatError) -> tuple[str, str | None, str | None]:
    """Return where an error says that the value is, after a look at its message."""
    assert error.table in str(error)
    assert error.row_id is not None
    assert error.row_id in str(error)
    assert str(error.field) in str(error)
    assert "Secret" not in str(error)
    assert error.__cause__ is error.__context__ is None
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  # our own bytes
    return error.table, error.row_id, error.field


@pytest.mark.parametrize("value", MOMENTS)
@pytest.mark.parametrize("column", ["created_at", "updated_at"])
def test_get_names_row_and_column(filled: Database, column: str, value: str) -> None:
    """By key, many keys, name, and as the only row of a page; the transaction goes on."""
    row = spoil(filled, "PT-0007", column, value)
    with filled.transaction() as tx:
        previous = tx.patients.get("PT-0006")
        reads: list[Callable[[], object]] = [
            lambda: tx.patients.get("PT-0007"),
            lambda: tx.patients.get("PT-0007", fields=[]),
            lambda: tx.patients.get_many(["PT-0001", "PT-0007"]),
            lambda: tx.patients.find_by_name("Secret 7"),
            lambda: tx.patients.page(after=previous, limit=1),
        ]
        for read in reads:
            with pytest.raises(ValueFormatError) as caught:
                read()
            assert named(caught.value) == ("patient_data", row, column)
        assert tx.patients.get("PT-0008").name == "Secret 8"


@pytest.mark.parametrize("position", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, ROWS // 2, ROWS - 1])
def test_a_page_names_row_and_column(filled: Database, position: int) -> None:
    """Also one that is read while the server still makes it, wherever in it the row is."""
    row = spoil(filled, f"PT-{position:04d}", "updated_at", "infinity")
    for _ in range(3):  # the first of a process is not read so
        with pytest.raises(ValueFormatError) as caught, filled.transaction() as tx:
            tx.patients.page(limit=1000)
        assert named(caught.value) == ("patient_data", row, "updated_at")


def read_page(tx: Repositories, limit: int) -> list[Patient]:
    """Read patients."""
    return tx.patients.page(limit=limit)


async def test_an_asynchronous_get_names_row_and_column(filled: Database, provider: VaultKeyProvider) -> None:
    """SQLAlchemy's cursor for asyncio loads the rows itself."""
    row = spoil(filled, "PT-0007", "created_at", "-infinity")
    engine = create_async_engine(filled.engine.url)
    database = AsyncDatabase(engine, provider)
    for limit in (10, 1000):
        with pytest.raises(ValueFormatError) as caught:
            async with database.transaction() as tx:
                await tx.run(partial(read_page, limit=limit))
        assert named(caught.value) == ("patient_data", row, "created_at")
    await engine.dispose()


# --- columns of every type -----------------------------------------------------------------------------------------------


@record
class Gauge(Record):
    id: UUID
    reading: Any = None
    note: str | None = None


NESTED = "(repeat('[', 12000) || repeat(']', 12000))"
"""Deeper than Python's json reads: 3.11 stops at 1,000, 3.13 at 10,000. PostgreSQL accepts 16,000 by default."""

LONG = "('{\"n\": ' || repeat('9', 5000) || '}')"


def gauges(type_: sa.types.TypeEngine[Any]) -> type[Repository[Gauge]]:
    """Return the repository of a table with a plain column of a type."""

    class TeamBase(DeclarativeBase):
        pass

    class GaugeRow(EncryptedRow, TeamBase):
        __tablename__ = "gauges"
        id: Mapped[UUID] = mapped_column(primary_key=True)
        reading: Mapped[Any] = mapped_column(type_, nullable=True)
        note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

    class GaugeRepository(Repository[Gauge]):
        model = GaugeRow
        record = Gauge

    return GaugeRepository


@pytest.mark.wide
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (sa.Date(), "'infinity'"),
        (sa.Date(), "'0044-03-15 BC'"),
        (sa.DateTime(), "'-infinity'"),
        (sa.DateTime(timezone=True), "'infinity'"),
        (sa.Time(), "'24:00:00'"),
        (sa.Interval(), "'3000000 years'"),
        (sa.Interval(), "'178000000 years'"),
        (postgresql.ARRAY(sa.Interval()), "ARRAY['1 day', '178000000 years']"),
        (sa.JSON(), NESTED),
        (sa.JSON(), LONG),
        (postgresql.JSONB(), LONG),
        (postgresql.ARRAY(sa.Date()), "ARRAY['2026-01-01', 'infinity']"),
        (postgresql.DATERANGE(), "'[2026-01-01,12000-01-01)'"),
        (postgresql.TSTZMULTIRANGE(), "'{[0044-03-15 BC,2026-01-01)}'"),
    ],
)
def test_plain_columns_of_every_type(database: Database, type_: sa.types.TypeEngine[Any], value: str) -> None:
    """Whatever the driver cannot load is named by row and column, by repositories and by verification."""
    from voiceassist_db.verification import Failure, verify

    repository = gauges(type_)
    written = f"CAST({value} AS {type_.compile(dialect=postgresql.dialect())})"  # type: ignore[no-untyped-call]
    with database.engine.begin() as connection:
        repository.model.metadata.create_all(connection)
        rows = [UUID(int=n) for n in range(1, 4)]
    with database.transaction() as tx:
        for each in rows:
            tx.repository(repository).add(Gauge(id=each, note="Secret"))
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE gauges SET reading = {written} WHERE id = :id"), {"id": rows[1]})
    with database.transaction() as tx:
        assert tx.repository(repository).get(rows[0]).note == "Secret"
        with pytest.raises(ValueFormatError) as caught:
            tx.repository(repository).get(rows[1])
        assert named(caught.value) == ("gauges", str(rows[1]), "reading")
    (report,) = (each for each in verify(database.engine, database.keys) if each.table == "gauges")
    assert (report.rows, report.values, report.failed) == (3, 3, 1)
    assert report.failures == [Failure(str(rows[1]), "reading", report.failures[0].problem)]


@pytest.mark.parametrize("value", ["infinity", "-infinity"])
def test_an_infinite_interval_is_not_taken_for_none(database: Database, value: str) -> None:
    """PostgreSQL 17 has them, and psycopg reads 0."""
    repository = gauges(sa.Interval())
    with database.engine.begin() as connection:
        if (connection.dialect.server_version_info or ()) < (17,):
            pytest.skip("this server has no infinite intervals: PostgreSQL 17 brought them")
        if connection.execute(text("SELECT current_setting('server_version_num')::int")).scalar_one() < 170000:
            with pytest.raises(sa.exc.DBAPIError):
                connection.execute(text("SELECT CAST(:value AS interval)"), {"value": value})
            return
        repository.model.metadata.create_all(connection)
    with database.transaction() as tx:
        tx.repository(repository).add(Gauge(id=UUID(int=1), reading=timedelta(days=-400, seconds=1.5)))
        assert tx.repository(repository).get(UUID(int=1)).reading == timedelta(days=-400, seconds=1.5)
        tx.session.execute(text("UPDATE gauges SET reading = CAST(:value AS interval)"), {"value": value})
        with pytest.raises(ValueFormatError) as caught:
            tx.repository(repository).get(UUID(int=1))
    assert named(caught.value) == ("gauges", str(UUID(int=1)), "reading")


def test_numbers_that_python_holds_are_values(database: Database) -> None:
    """NaN and infinity of a numeric, and of a float, are read, and no failure."""
    for type_ in (sa.Numeric(), sa.Float()):
        repository = gauges(type_)
        with database.engine.begin() as connection:
            repository.model.metadata.create_all(connection)
        with database.transaction() as tx:
            tx.repository(repository).add(Gauge(id=UUID(int=1)))
            tx.session.execute(text("UPDATE gauges SET reading = 'infinity'"))
            assert tx.repository(repository).get(UUID(int=1)).reading == float("inf")
        with database.engine.begin() as connection:
            connection.execute(text("DROP TABLE gauges"))


def test_an_error_of_the_caller_stays_the_callers(engine: Engine) -> None:
    """A statement that fails to load nothing keeps its own error."""
    from voiceassist_db.loading import result_of

    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT 1")
        assert result_of(cursor, sa.exc.ArgumentError(secrets.token_hex(4))) is not None
        cursor.close()
        assert result_of(object(), ValueError()) is None


KEYED = """
CREATE TABLE shifts (day date, place text, note_encrypted bytea, key_version integer NOT NULL, PRIMARY KEY (day, place));
COMMENT ON COLUMN shifts.note_encrypted IS 'encrypted shifts.note as text';
INSERT INTO shifts SELECT day, 'a/b', NULL, 1 FROM unnest(CAST(ARRAY[
    '-infinity', '0044-03-15 BC', '0001-01-01', '2026-01-02', '9999-12-31', '12000-01-01', 'infinity'] AS date[])) day;
"""


@pytest.mark.parametrize("page_rows", [1, 2, 1000])
def test_keys_that_python_cannot_hold_are_named(
    database: Database, monkeypatch: pytest.MonkeyPatch, page_rows: int
) -> None:
    """Verification names each row as the server writes its key, and reads on behind it, wherever a page ends."""
    from voiceassist_db import verification

    monkeypatch.setattr(verification, "PAGE_ROWS", page_rows)
    with database.engine.begin() as connection:
        connection.execute(text(KEYED))
    (report,) = (each for each in verification.verify(database.engine, database.keys) if each.table == "shifts")
    days = ["-infinity", "0044-03-15 BC", "12000-01-01", "infinity"]
    assert [(each.row_id, each.field) for each in report.failures] == [(f"{day}/a%2Fb", "day") for day in days]
    assert (report.rows, report.failed) == (7, 4)
