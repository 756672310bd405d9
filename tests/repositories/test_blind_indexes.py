"""Blind indexes of any kind: dates, integers, parts of values, and an application's own; through the life of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any
from unittest.mock import patch
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, field, normalisers, record, uuid7
from voiceassist_db.errors import ConfigurationError, DuplicateError
from voiceassist_db.models import EncryptedRow, Kind, blind_index_column, encrypted_column
from voiceassist_db.normalisers import register_normaliser
from voiceassist_db.rotation import rotate, rotate_index_key
from voiceassist_db.verification import verify


def number_of_clinic(value: str) -> str:
    """The form of a clinic's own record numbers: ``7`` and ``CL-007`` are one."""
    digits = value.upper().removeprefix("CL-").lstrip("0")
    if not digits.isdigit():
        raise ValueError(f"no number of the clinic: {value}")
    return digits


register_normaliser("number_of_clinic", number_of_clinic)


class TeamBase(DeclarativeBase):
    """A team's base."""


class PersonRow(EncryptedRow, TeamBase):
    __tablename__ = "persons"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    name_index: Mapped[bytes | None] = blind_index_column("name")
    name_start_index: Mapped[bytes | None] = blind_index_column("name:3", of="name")
    born_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATE, context="kept.born")
    born_index: Mapped[bytes | None] = blind_index_column("date", context="kept.born")
    born_month_index: Mapped[bytes | None] = blind_index_column("date:month", context="kept.born")
    born_year_index: Mapped[bytes | None] = blind_index_column("date:year", context="kept.born")
    insurance_encrypted: Mapped[bytes | None] = encrypted_column(Kind.INTEGER)
    insurance_index: Mapped[bytes | None] = blind_index_column("integer", unique=True)
    number_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    number_index: Mapped[bytes | None] = blind_index_column("number_of_clinic", unique=True)
    phone_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    phone_index: Mapped[bytes | None] = blind_index_column("phone")
    zip_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    zip_area_index: Mapped[bytes | None] = blind_index_column("postcode:3", of="zip")


@record
class Person(Record):
    name: str | None = None
    born: date | None = None
    insurance: int | None = None
    number: str | None = None
    phone: str | None = None
    zip: str | None = None
    id: UUID = field(default_factory=uuid7)


class Persons(Repository[Person]):
    model = PersonRow
    record = Person


ANN = Person(
    name="Ann O\u2019Hara",
    born=date(1990, 4, 7),
    insurance=10**30,
    number="CL-007",
    phone="+1 202 555 0100",
    zip="02139",
)
BEA = Person(name="Anna Lee", born=date(1990, 4, 30), insurance=-7, number="70", phone="+12025550101", zip="021-40")
CAT = Person(name="O'Hara", born=date(1990, 5, 1), insurance=0, number="8", phone="+12025550100", zip="10001")
DAN = Person(name="Li")
EVE = Person()
PERSONS = [ANN, BEA, CAT, DAN, EVE]

SEARCHES: list[tuple[dict[str, Any], list[Person]]] = [
    ({"name": "ann o'hara"}, [ANN]),
    ({"name_start": "Ann"}, [ANN, BEA]),
    ({"name_start": " ANNA"}, [ANN, BEA]),
    ({"name_start": "o\u02bbhara"}, [CAT]),
    ({"name_start": ["O\u2019H", "lee"]}, [CAT]),
    ({"born": date(1990, 4, 30)}, [BEA]),
    ({"born": [date(1990, 4, 30), date(1990, 5, 1)]}, [BEA, CAT]),
    ({"born_month": date(1990, 4, 1)}, [ANN, BEA]),
    ({"born_year": date(1990, 12, 31)}, [ANN, BEA, CAT]),
    ({"born_year": date(1991, 1, 1)}, []),
    ({"born_month": date(1990, 4, 1), "name_start": "ann", "zip_area": "021 99"}, [ANN, BEA]),
    ({"born_month": date(1990, 4, 1), "born": date(1990, 4, 7)}, [ANN]),
    ({"insurance": 10**30}, [ANN]),
    ({"insurance": {-7, 0}}, [BEA, CAT]),
    ({"number": "cl-7"}, [ANN]),
    ({"number": ["70", "CL-8"]}, [BEA, CAT]),
    ({"phone": "+1 (202) 555-0100"}, [ANN, CAT]),
    ({"zip_area": "021"}, [ANN, BEA]),
]


@pytest.fixture
def people(database: Database) -> Database:
    """A database with persons, who were written one by one, many at once, and by changes."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    with database.transaction() as tx:
        persons = tx.repository(Persons)
        persons.add(ANN)
        persons.add_many([BEA, DAN, Person(id=EVE.id, name="Ann", born=date(1990, 4, 7), insurance=5, number="5")])
        persons.add(Person(id=CAT.id, name="Cat", born=date(1990, 4, 7), insurance=1, zip="02139", phone="+491234567"))
        persons.update(EVE.id, name=None, born=None, insurance=None, number=None)
        changed = ("name", "born", "insurance", "number", "phone", "zip")
        persons.update(CAT.id, **{name: getattr(CAT, name) for name in changed})
    return database


def assert_found(database: Database) -> None:
    """Assert that each search finds what it must."""
    for values, expected in SEARCHES:
        with database.transaction() as tx:
            found = tx.repository(Persons).find(**values)
        assert {each.id for each in found} == {each.id for each in expected}, values
        assert all(each in PERSONS for each in found)


def test_every_index_is_searched_before_and_after_rotations(people: Database) -> None:
    """Of both keys; and the verification calls every token right."""
    assert_found(people)
    rotate(people.engine, people.keys)
    assert_found(people)
    assert rotate_index_key(people.engine, people.keys).done
    assert_found(people)
    reports = {each.table: each for each in verify(people.engine, people.keys)}
    assert (reports["persons"].failed, reports["persons"].unindexed, reports["persons"].rows) == (0, 0, 5)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"name_start": "Li"}, "name_start compares the first 3 characters of name: give so many"),
        ({"name_start": ["Ann", "\u200bA\u200b"]}, "give so many"),
        ({"zip_area": "02"}, "^zip must be a postal code"),
        ({"zip": "02139"}, "zip has no blind index of whole values.*zip_area"),
        ({"born": "1990-04-07"}, "^born must be a datetime.date"),
        ({"born": datetime(2026, 1, 1)}, "^born must be a datetime.date"),  # any is refused
        ({"born_month": "1990-04"}, "^born must be a datetime.date"),
        ({"born_month": None}, "^born must be a datetime.date"),
        ({"insurance": "7"}, "^insurance must be an int"),
        ({"insurance": True}, "^insurance must be an int"),
        ({"number": "SECRET"}, r"^number is refused by the normaliser number_of_clinic \(ValueError\)"),
        ({"phone": "202 555 0100"}, r"^phone must begin with \+"),
    ],
)
def test_what_has_no_form_is_not_searched(values: dict[str, Any], problem: str) -> None:
    """Before anything is sent; the message holds no value."""
    with pytest.raises(ValueError, match=problem) as caught:
        Persons(None, None).find(**values)  # type: ignore[arg-type]  # nothing is asked
    assert "SECRET" not in f"{caught.value} {caught.value.__context__}"


def test_what_is_unique_is_so_by_its_form(people: Database) -> None:
    """Also of integers, and by an application's own rule."""
    for bad in (Person(number="CL-0070"), Person(insurance=-7)):
        with pytest.raises(DuplicateError), people.transaction() as tx:
            tx.repository(Persons).add(bad)
    with pytest.raises(ValueError, match="number is refused"), people.transaction() as tx:
        tx.repository(Persons).add(Person(number="none"))


def tokens(database: Database) -> list[dict[str, Any]]:
    """Return the tokens of all rows, by their columns."""
    columns = [each for each in PersonRow.__table__.c if each.name.endswith("_index")]
    with database.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.select(PersonRow.id, *columns))]


def test_each_index_has_tokens_of_its_own(people: Database) -> None:
    """Equal where the part is equal, and never the token of another column: nobody can compare a part with a whole."""
    rows = {row["id"]: row for row in tokens(people)}
    assert rows[ANN.id]["name_start_index"] == rows[BEA.id]["name_start_index"] != rows[CAT.id]["name_start_index"]
    assert rows[ANN.id]["born_month_index"] == rows[BEA.id]["born_month_index"] != rows[CAT.id]["born_month_index"]
    assert len({rows[each.id]["born_year_index"] for each in (ANN, BEA, CAT)}) == 1
    assert {rows[EVE.id][name] for name in rows[EVE.id] if name != "id"} == {None}
    assert rows[DAN.id]["name_index"] != rows[DAN.id]["name_start_index"], "of the same form li"
    seen: dict[bytes, str] = {}
    for row in rows.values():
        for name, token in row.items():
            if name != "id" and token is not None:
                assert seen.setdefault(token, name) == name


@pytest.mark.parametrize("column", ["name_start_index", "number_index"])
def test_a_wrong_or_missing_token_is_found_and_made_again(people: Database, column: str) -> None:
    """By the verification, and by a rotation of the index key; a search takes a wrong one for nothing."""
    with people.engine.begin() as connection:
        connection.execute(
            sa.text(f"UPDATE persons SET {column} = decode(md5('x'), 'hex') WHERE id = :id"), {"id": ANN.id}
        )
        connection.execute(sa.text(f"UPDATE persons SET {column} = NULL WHERE id = :id"), {"id": BEA.id})
    report = next(each for each in verify(people.engine, people.keys) if each.table == "persons")
    problems = {each.row_id: each.problem for each in report.failures}
    assert (report.failed, report.unindexed) == (2, 0)
    assert "blind index of another value" in problems[str(ANN.id)]
    assert "no blind index" in problems[str(BEA.id)]
    assert rotate_index_key(people.engine, people.keys).done
    assert_found(people)
    assert [each.failed for each in verify(people.engine, people.keys)] == [0, 0, 0]


def test_a_token_of_another_row_finds_nothing(people: Database) -> None:
    """The part of the decrypted value decides."""
    with people.engine.begin() as connection:
        for column in ("name_start_index", "born_month_index", "number_index"):
            connection.execute(sa.text(f"UPDATE persons SET {column} = NULL WHERE id = :id"), {"id": BEA.id})
            swap = f"UPDATE persons SET {column} = (SELECT {column} FROM persons WHERE id = :other) WHERE id = :id"
            if column != "number_index":
                connection.execute(sa.text(swap), {"id": CAT.id, "other": ANN.id})
    with people.transaction() as tx:
        persons = tx.repository(Persons)
        assert persons.find(name_start="ann") == [ANN]
        assert persons.find(born_month=date(1990, 4, 9)) == [ANN]


@contextmanager
def without_the_application() -> Iterator[None]:
    """Be a process that lacks what the application registers, as our commands are."""
    with patch.object(normalisers, "_registered", {}), patch.object(normalisers, "_forms", {}):
        yield


def test_a_process_that_lacks_a_normaliser_says_so(people: Database) -> None:
    """It neither writes nor finds by it, and reads and rotates all; a rotation of the index key changes nothing."""
    lacking = r"'number_of_clinic'.*register_normaliser"
    attempts: list[Callable[[Persons], Any]] = [
        lambda persons: persons.add(Person(number="9")),
        lambda persons: persons.add_many([Person(number="9")]),
        lambda persons: persons.update(DAN.id, number="9"),
        lambda persons: persons.find(number="9"),
    ]
    with without_the_application():
        for attempt in attempts:
            with people.transaction() as tx, pytest.raises(ConfigurationError, match=lacking):
                attempt(tx.repository(Persons))
        with people.transaction() as tx:
            persons = tx.repository(Persons)
            assert persons.find(name_start="ann", born=date(1990, 4, 7)) == [ANN]
            assert {each.id: each for each in persons.page()} == {each.id: each for each in PERSONS}
            persons.update(DAN.id, name="Lia")
            persons.add(Person(name="Fay"))
        assert rotate(people.engine, people.keys).done
        before, keys = tokens(people), people.keys.provider.fetch()
        with pytest.raises(ConfigurationError, match=rf"persons\.number_index.*{lacking}.*Nothing was changed"):
            rotate_index_key(people.engine, people.keys)
        assert (tokens(people), people.keys.provider.fetch().revision) == (before, keys.revision)
        report = next(each for each in verify(people.engine, people.keys) if each.table == "persons")
        assert [(each.row_id, each.field) for each in report.failures] == [("", "number")]
        assert "not checked" in report.failures[0].problem
    assert rotate_index_key(people.engine, people.keys).done
    assert [each.failed for each in verify(people.engine, people.keys)] == [0, 0, 0]
