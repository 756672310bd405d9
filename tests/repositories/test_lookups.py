"""Rows are named by whatever column a team chooses: one by one and many at once give the same."""

from __future__ import annotations

import enum
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Database, Record, Repository, field, record, uuid7
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.repositories import PatientRepository


class OwnBase(DeclarativeBase):
    """A base of this module's own."""


class Grade(enum.Enum):
    """An enumeration to name rows by."""

    LOW = "low"
    HIGH = "high"


class DeviceRow(EncryptedRow, OwnBase):
    __tablename__ = "devices"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[UUID]
    serial: Mapped[bytes] = mapped_column(sa.LargeBinary)
    number: Mapped[int]
    made: Mapped[date]
    label: Mapped[str] = mapped_column(sa.String(40))
    code: Mapped[str] = mapped_column(sa.CHAR(5))
    grade: Mapped[Grade]
    note_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Device(Record):
    tenant: UUID
    serial: bytes
    number: int
    made: date
    label: str
    code: str
    grade: Grade
    note: str | None = None
    id: UUID = field(default_factory=uuid7)


class Devices(Repository[Device]):
    model = DeviceRow
    record = Device


ONE = Device(
    tenant=uuid7(),
    serial=b'\x00"\\\xff',
    number=-7,
    made=date(1, 1, 1),
    label='a "{NULL}", \\ %s é',
    code="ab   ",
    grade=Grade.LOW,
    note="one",
)
OTHER = Device(
    tenant=uuid7(),
    serial=b"",
    number=2**31 - 1,
    made=date(9999, 12, 31),
    label="",
    code="abcde",
    grade=Grade.HIGH,
    note="other",
)
NAMED_BY = [
    ("id",),
    ("tenant",),
    ("serial",),
    ("number",),
    ("made",),
    ("label",),
    ("code",),
    ("grade",),
    ("tenant", "number"),
]


@pytest.mark.parametrize("names", NAMED_BY, ids="+".join)
def test_many_rows_are_found_by_what_one_is_found_by(database: Database, names: tuple[str, ...]) -> None:
    """Of every type, with characters that arrays have to escape; and a key that is not there is not in the answer."""
    repository: type[Repository[Device]] = type("DevicesBy", (Devices,), {"lookup": names})
    with database.engine.begin() as connection:
        OwnBase.metadata.create_all(connection)
    with database.transaction() as tx:
        devices = tx.repository(repository)
        devices.add_many([ONE, OTHER])
        keys: list[Any] = [tuple(getattr(each, name) for name in names) for each in (ONE, OTHER)]
        keys = [key[0] if len(key) == 1 else key for key in keys]
        for key, each in zip(keys, (ONE, OTHER), strict=True):
            assert devices.get(*key if isinstance(key, tuple) else [key]) == each
        assert devices.get_many(keys) == dict(zip(keys, (ONE, OTHER), strict=True))
        devices.delete(*keys[0] if isinstance(keys[0], tuple) else [keys[0]])
        assert devices.get_many(keys) == {keys[1]: OTHER}


def test_a_subclass_may_name_rows_by_another_column(database: Database) -> None:
    """Without a model of its own, it is a repository of the same table."""

    class ById(PatientRepository):
        lookup = ("id",)

    with database.transaction() as tx:
        patient = tx.patients.record(patient_id="PT-1", name="Zoe")
        tx.patients.add(patient)
        tx.repository(ById).update(patient.id, name="Zoë")
        assert tx.repository(ById).get_many([patient.id]) == {patient.id: replace(patient, name="Zoë")}
        assert tx.patients.get("PT-1").name == "Zoë"
