"""Rows are named by whatever column a team chooses: one by one and many at once give the same."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import ClinicalNote, Database, Patient, Record, Repositories, Repository, field, record, uuid7
from voiceassist_db.errors import TransactionConflictError, WrongRowError
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.prepared import Prepared
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
    tenant: Mapped[UUID] = mapped_column(unique=True)
    serial: Mapped[bytes] = mapped_column(sa.LargeBinary, unique=True)
    number: Mapped[int] = mapped_column(unique=True)
    made: Mapped[date] = mapped_column(unique=True)
    label: Mapped[str] = mapped_column(sa.String(40), unique=True)
    code: Mapped[str] = mapped_column(sa.CHAR(5), unique=True)
    grade: Mapped[Grade] = mapped_column(unique=True)
    hint: Mapped[str | None]
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
    hint: str | None = None
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


def test_columns_that_several_rows_may_share_name_no_row() -> None:
    """One of them would be read, and all of them would be changed."""
    with pytest.raises(TypeError, match="several rows of devices may have the same hint"):
        type("ByHint", (Devices,), {"lookup": ("hint",)})


Read = Callable[[Repositories], Any]
OWN_ID = uuid7()
OTHERS_ID = uuid7()


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (lambda tx: tx.patients.get("PT-1"), lambda tx: tx.patients.get("PT-2")),
        (lambda tx: tx.patients.get("PT-1", fields=[]), lambda tx: tx.patients.get("PT-2", fields=[])),
        (lambda tx: tx.patients.get_many(["PT-1", "PT-3"]), lambda tx: tx.patients.get_many(["PT-2"])),
        (
            lambda tx: tx.clinical_notes.of_patient(OWN_ID, limit=9),
            lambda tx: tx.clinical_notes.of_patient(OTHERS_ID, limit=9),
        ),
    ],
    ids=["get", "get without values", "get_many", "of_patient"],
)
def test_a_row_that_was_not_asked_for_is_never_returned(
    database: Database, monkeypatch: pytest.MonkeyPatch, asked: Read, answered: Read
) -> None:
    """Where two processes share a connection, one may get the answer to the other's question."""
    with database.transaction() as tx:
        tx.patients.add_many(
            [
                Patient(patient_id="PT-1", name="Name 1", id=OWN_ID),
                Patient(patient_id="PT-2", name="Name 2", id=OTHERS_ID),
            ]
        )
        tx.clinical_notes.add(ClinicalNote(patient=OTHERS_ID, note="a note"))
    rows = Prepared.rows
    answers = []

    def kept(*args: Any, **options: Any) -> Any:
        answers.append(rows(*args, **options))
        return answers[-1]

    with monkeypatch.context() as patch, database.transaction() as tx:
        patch.setattr(Prepared, "rows", kept)
        assert answered(tx)
    monkeypatch.setattr(Prepared, "rows", lambda *_, **__: answers[-1])
    with database.engine.connect() as connection:
        tx = database.using(connection)
        with pytest.raises(WrongRowError, match="another process or thread") as raised:
            asked(tx)
        assert "Name" not in str(raised.value)
        assert connection.invalidated


def test_rows_that_are_read_for_update_wait_for_nobody_else(database: Database) -> None:
    """Until its transaction ends, no other one changes a row that ``get_many`` has locked."""
    with database.transaction() as tx:
        tx.patients.add_many([Patient(patient_id="PT-1", name="Ana"), Patient(patient_id="PT-2")])
    with database.transaction() as first:
        assert first.patients.get_many(["PT-1"], for_update=True)["PT-1"].name == "Ana"
        with pytest.raises(TransactionConflictError), database.transaction() as second:
            second.session.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
            second.patients.update("PT-2", name="Bo")
            second.patients.update("PT-1", name="Other")
        first.patients.update("PT-1", name="Ana Ruiz")
    with database.transaction() as tx:
        assert {key: each.name for key, each in tx.patients.get_many(["PT-1", "PT-2"]).items()} == {
            "PT-1": "Ana Ruiz",
            "PT-2": None,
        }


@pytest.mark.parametrize(
    "stored",
    [
        *("O'Brien", "O\u2019Brien", "O\u02bcBRIEN", "o`brien", "O\u00b4Brien", "\u00b4Abd", "Sa\u02bfdab"),
        *(
            "D\u2019Arcy O'Brien",
            "D\u00b4Arcy O\u2019Brien",
            "a'b'c'd",
            "a\u2019b\u2019c\u2019d",
            "a\u00b4b\u00b4c\u00b4d",
        ),
    ],
)
def test_any_apostrophe_finds_any_other(database: Database, stored: str) -> None:
    """A name is found by each sign for its apostrophes, and by no other name; accents matter."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name=stored))
        for sign in "'\u2019\u2018\u201b\u02bc\u02bb\u2032`\uff07\u00b4\u02b9\u05f3":
            asked = stored.translate(dict.fromkeys(map(ord, "'\u2019\u02bc`\u00b4\u02bf"), sign))
            assert [stored] == [each.name for each in tx.patients.find_by_name(asked)]
        assert tx.patients.find_by_name(stored.replace("a", "\u00e4").replace("B", "P").replace("b", "p")) == []


def test_a_date_that_the_server_writes_is_refused(database: Database) -> None:
    """A record that was read is not added again with its dates, which would be ignored; without them it is."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1"))
        read = replace(tx.patients.get("PT-1"), patient_id="PT-2", id=uuid7())
        for name, other in (("created_at", "updated_at"), ("updated_at", "created_at")):
            without: dict[str, Any] = {other: None}
            given = replace(read, **without)
            with pytest.raises(ValueError, match=f"^{name} is written by the server"):
                tx.patients.add(given)
            with pytest.raises(ValueError, match=f"^{name} is written by the server"):
                tx.patients.add_many([given])
        tx.patients.add(replace(read, created_at=None, updated_at=None))
        assert len(tx.patients.page()) == 2
