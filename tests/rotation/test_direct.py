"""Rows that a bare `pgp_sym_encrypt(value, key)` wrote become bound ones, and are readable at every moment of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, record
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, Progress, rotate
from voiceassist_db.schema import allow_direct_format, require_bound_format
from voiceassist_db.status import read_status


class TeamBase(DeclarativeBase):
    """Another team's base."""


class ScanRow(EncryptedRow, TeamBase):
    __tablename__ = "scans"
    place: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    image_encrypted: Mapped[bytes | None] = encrypted_column(Kind.BYTES)
    born_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATE)


class PersonRow(EncryptedRow, TeamBase):
    __tablename__ = "people"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Scan(Record):
    place: str
    day: date
    number: int
    note: str | None = None
    image: bytes | None = None
    born: date | None = None


@record
class Person(Record):
    id: UUID
    name: str | None = None


class ScanRepository(Repository[Scan]):
    model = ScanRow
    record = Scan


class PersonRepository(Repository[Person]):
    model = PersonRow
    record = Person


SCANS = [
    Scan(place=place, day=date(2026, 1, 2), number=number, note=note, image=image, born=born)
    for (place, number), (note, image, born) in zip(
        itertools.product(["a/b", "a", "%2F:é"], range(10)),
        itertools.cycle(
            [
                ("Zoë\r\n", b"\x00\xff\r\n", date(1980, 1, 2)),
                ("", b"", None),
                (None, None, date(2024, 2, 29)),
                ("scans.note:a/2026-01-02/1:looks bound", b"scans.image:", None),
            ]
        ),
        strict=False,
    )
]
PEOPLE = [Person(id=UUID(int=n), name=f"José {n}" if n % 3 else None) for n in range(30)]

GUIDE_SCAN = text(
    """
    INSERT INTO scans (place, day, number, note_encrypted, image_encrypted, born_encrypted, key_version)
    VALUES (:place, :day, :number, pgp_sym_encrypt(:note, :key), pgp_sym_encrypt_bytea(:image, :key),
            pgp_sym_encrypt(CAST(CAST(:born AS date) AS text), :key), 1)
    """
)
GUIDE_PERSON = text(
    "INSERT INTO people (id, name_encrypted, key_version) VALUES (:id, pgp_sym_encrypt(:name, :key), 1)"
)
"""As the guide writes, with pgcrypto's default options."""


@pytest.fixture
def guide(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> Database:
    """A database of scheme `direct`, its rows written by the guide's own statement."""
    provider = new_provider()
    with engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
        connection.execute(text("SET LOCAL search_path = public, pgcrypto"))
        key = {"key": provider.fetch().key.expose().decode()}
        of_scan, of_person = ("place", "day", "number", "note", "image", "born"), ("id", "name")
        connection.execute(GUIDE_SCAN, [key | {name: getattr(each, name) for name in of_scan} for each in SCANS])
        connection.execute(GUIDE_PERSON, [key | {name: getattr(each, name) for name in of_person} for each in PEOPLE])
    return Database(engine, provider)


def read(database: Database) -> tuple[list[Scan], list[Person]]:
    """Read every row through its repository."""
    with database.transaction() as tx:
        return tx.repository(ScanRepository).page(), tx.repository(PersonRepository).page()


def by_key(scan: Scan) -> tuple[str, date, int]:
    """Return a scan's primary key, to sort by."""
    return scan.place, scan.day, scan.number


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.wide), 2])
def test_rows_of_the_guide_become_bound_and_are_readable_throughout(guide: Database, workers: int) -> None:
    """At each moment of the rotation every row reads as it was written, under either scheme; in the end all are bound."""
    expected = read(guide)
    assert sorted(SCANS, key=by_key) == sorted(expected[0], key=by_key)
    assert expected[1] == PEOPLE

    def look(_: Progress) -> None:
        assert expected == read(guide)

    pace = Pace(workers=workers, max_rows_per_second=40)
    with guide.engine.connect() as other:
        other.execute(text("SELECT FROM scans WHERE place = 'a' AND number = 5 FOR UPDATE"))  # so one row is left over
        first = rotate(guide.engine, guide.keys, pace=replace(pace, patience_s=0.2), on_progress=look)
        assert not first.done
        assert {1: 1, 2: len(SCANS) - 1} == read_status(other).tables["scans"]
        assert expected == read(guide)
    report = rotate(guide.engine, guide.keys, pace=pace, on_progress=look)
    assert (first.rows + report.rows, report.done) == (len(SCANS) + len(PEOPLE), True)
    assert expected == read(guide)
    with guide.engine.begin() as connection:
        require_bound_format(connection)
        columns = "SELECT note_encrypted FROM scans UNION ALL SELECT image_encrypted FROM scans"
        stored = connection.execute(text(f"{columns} UNION ALL SELECT name_encrypted FROM people")).scalars()
        assert {each[:6].hex() for each in stored if each is not None} == {"c30c04090108"}
