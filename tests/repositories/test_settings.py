"""No setting of a session changes what a plain column stores, or what is read of it: what is accepted comes back equal."""

from __future__ import annotations

import enum
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, DOMAIN, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, field, record, uuid7
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column


class TeamBase(DeclarativeBase):
    """Another team's base."""


class Level(enum.Enum):
    """An enumeration in arrays."""

    LOW = "low"
    NULL = "NULL"


class ListRow(EncryptedRow, TeamBase):
    __tablename__ = "lists"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    moment: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    day: Mapped[date]
    span: Mapped[timedelta] = mapped_column(sa.Interval)
    blob: Mapped[bytes]
    number: Mapped[float]
    wide: Mapped[str]
    texts: Mapped[list[Any]] = mapped_column(ARRAY(sa.Text))
    short: Mapped[list[Any]] = mapped_column(ARRAY(sa.String(6)))
    grid: Mapped[list[Any]] = mapped_column(ARRAY(sa.Text, dimensions=2))
    integers: Mapped[list[Any]] = mapped_column(ARRAY(sa.BigInteger))
    numbers: Mapped[list[Any]] = mapped_column(ARRAY(sa.Double))
    reals: Mapped[list[Any]] = mapped_column(ARRAY(sa.REAL))
    pairs: Mapped[tuple[Any, ...]] = mapped_column(ARRAY(sa.Double, as_tuple=True, dimensions=2))
    decimals: Mapped[list[Any]] = mapped_column(ARRAY(sa.Numeric))
    moments: Mapped[list[Any]] = mapped_column(ARRAY(sa.DateTime(timezone=True)))
    days: Mapped[list[Any]] = mapped_column(ARRAY(sa.Date))
    times: Mapped[list[Any]] = mapped_column(ARRAY(sa.Time))
    spans: Mapped[list[Any]] = mapped_column(ARRAY(sa.Interval))
    blobs: Mapped[list[Any]] = mapped_column(ARRAY(sa.LargeBinary))
    ids: Mapped[list[Any]] = mapped_column(ARRAY(sa.Uuid))
    flags: Mapped[list[Any]] = mapped_column(ARRAY(sa.Boolean))
    levels: Mapped[list[Any]] = mapped_column(ARRAY(sa.Enum(Level, name="level")))
    documents: Mapped[list[Any]] = mapped_column(ARRAY(JSONB, dimensions=1))
    own: Mapped[list[Any]] = mapped_column(DOMAIN("codes", ARRAY(sa.Integer)))
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Lists(Record):
    moment: datetime
    day: date
    span: timedelta
    blob: bytes
    number: float
    wide: str
    texts: list[Any] | None
    short: list[Any] | None
    grid: list[Any] | None
    integers: list[Any] | None
    numbers: list[Any] | None
    reals: list[Any] | None
    pairs: tuple[Any, ...] | None
    decimals: list[Any] | None
    moments: list[Any] | None
    days: list[Any] | None
    times: list[Any] | None
    spans: list[Any] | None
    blobs: list[Any] | None
    ids: list[Any] | None
    flags: list[Any] | None
    levels: list[Any] | None
    documents: list[Any] | None
    own: list[Any] | None
    note: str | None = None
    id: UUID = field(default_factory=uuid7)


class ListRepository(Repository[Lists]):
    model = ListRow
    record = Lists


WORDS: Final = ["NULL", None, "null", "", '"', "\\", "{a,NULL}", "é'\n", "\\x41", "%s", ' "NULL" ', "\U0001f600"]
GIVEN: Final = Lists(
    moment=datetime(2026, 2, 3, 4, 5, 6, 7, UTC),
    day=date(2026, 2, 3),
    span=timedelta(days=-1, microseconds=1),
    blob=b"\\x\x00'\xff",
    number=0.1 + 0.2,
    wide="\\' NULL",
    texts=WORDS,
    short=["NULL", None, "  a   "],
    grid=[[None, "NULL"], ["", "x"]],
    integers=[1, None, -(2**63), 2**63 - 1],
    numbers=[0.1 + 0.2, None, 5e-324, -0.0, float("inf"), 1.7976931348623157e308],
    reals=[0.1, None, 3.4028235e38, float("-inf")],
    pairs=((0.1 + 0.2, None), (None, 1e22)),
    decimals=[Decimal("0.10"), None, Decimal("-12345678901234567890.123456789")],
    moments=[datetime(1999, 12, 31, 23, 59, 59, 999999, UTC), None],
    days=[date(1, 2, 3), None, date(9999, 12, 31)],
    times=[time(23, 59, 59, 999999), None],
    spans=[timedelta(days=1, seconds=-1), None, timedelta(days=-400, microseconds=5)],
    blobs=[b"", None, b"\\", b"NULL", bytes(range(256))],
    ids=[UUID(int=7), None],
    flags=[True, None, False],
    levels=[Level.NULL, None, Level.LOW],
    documents=[{"a": ["NULL", None]}, ["b", [1]], "NULL", 1.5],
    own=[1, None],
    note="NULL",
)

SETTINGS: Final = {
    "array_nulls": "off",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "backslash_quote": "off",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "xmloption": "document",
    "xmlbinary": "hex",
    "TimeZone": "<+14>-14",
    "lc_numeric": "C",
    "escape_string_warning": "off",
}
"""Settings under which rows are written and read."""

WRITING: Final = {"DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard"}
"""Settings under which rows are written only: psycopg reads no moments, and no intervals, under these styles."""

NAMES: Final = [name for name in ListRow.__table__.columns.keys() if hasattr(GIVEN, name)]  # noqa: SIM118  # no dict
ARRAYS: Final = [name for name in NAMES if isinstance(getattr(GIVEN, name), list | tuple)]
EMPTY: Final[dict[str, Any]] = {name: type(getattr(GIVEN, name))() for name in ARRAYS}
WAYS: Final = (
    "add",
    "add_many",
    pytest.param("update", marks=pytest.mark.wide),
    "update beside a trigger",
    pytest.param("add beside a trigger", marks=pytest.mark.wide),
)


@pytest.fixture
def with_lists(database: Database) -> Database:
    """A database with the team's table."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    return database


def write(tx: Any, way: str, given: Lists) -> None:
    """Store a record in one of the ways."""
    lists = tx.repository(ListRepository)
    if not way.startswith("update"):
        lists.add_many([given]) if way == "add_many" else lists.add(given)
        return
    lists.add(replace(given, **EMPTY))
    lists.update(given.id, **{name: getattr(given, name) for name in NAMES if name != "id"})


def typed(value: Any) -> Any:
    """Return what tells values apart that are equal: types, and the sign of zero."""
    if isinstance(value, list | tuple):
        return type(value), [typed(each) for each in value]
    return repr(value) if isinstance(value, float) else type(value)


def check(tx: Any, given: Lists, what: str) -> None:
    """Assert that a record reads back as it was given, by each of the ways to read."""
    lists = tx.repository(ListRepository)
    for found in (lists.get(given.id), lists.get_many([given.id])[given.id], *lists.page(limit=1), *lists.page()):
        assert found == given, what
        for name in NAMES:
            assert typed(getattr(found, name)) == typed(getattr(given, name)), f"{what}: {name}"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_accepted_comes_back_equal_under_each_setting(with_lists: Database, way: str) -> None:
    """Of each type, and in an array of each; None in an array is None, and the text NULL is a text."""
    if "trigger" in way:
        with with_lists.engine.begin() as connection:
            connection.connection.cursor().execute(
                "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
                "CREATE TRIGGER same BEFORE INSERT OR UPDATE ON lists FOR EACH ROW EXECUTE FUNCTION same()"
            )
        with_lists.engine.dispose()
    groups = [{name: value} for name, value in (SETTINGS | WRITING).items()] + [SETTINGS | WRITING]
    for settings in groups:
        given = replace(GIVEN, id=uuid7())
        with with_lists.transaction() as tx:
            for name, value in settings.items():
                tx.session.execute(sa.text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
            write(tx, way, given)
            for name, value in {"DateStyle": "ISO", "IntervalStyle": "postgres"}.items():
                tx.session.execute(sa.text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
            check(tx, given, str(settings))
            tx.repository(ListRepository).delete(given.id)


def test_an_array_may_be_none_or_empty(with_lists: Database) -> None:
    """None is no array, and an empty one is one."""
    with with_lists.engine.begin() as connection:
        for name in ARRAYS:
            connection.execute(sa.text(f"ALTER TABLE lists ALTER {name} DROP NOT NULL"))
    absent: dict[str, Any] = dict.fromkeys(ARRAYS)
    with with_lists.transaction() as tx:
        lists = tx.repository(ListRepository)
        for changes in (absent, EMPTY):
            one, many = replace(GIVEN, id=uuid7(), **changes), replace(GIVEN, id=uuid7(), **changes)
            lists.add(one)
            lists.add_many([many])
            assert [lists.get(one.id), lists.get(many.id)] == [one, many]
            lists.update(one.id, **{name: getattr(GIVEN, name) for name in ARRAYS})
            lists.update(one.id, **changes)
            assert lists.get(one.id) == one
