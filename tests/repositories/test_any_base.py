"""An application's base may have its own metadata, schema, conventions and types, and may make dataclasses; keys refer by name."""

from __future__ import annotations

import warnings
from typing import Annotated, Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column
from sqlalchemy.schema import CreateSchema

from voiceassist_db import Database, Encrypted, EncryptedRecord, Patient, Record, Repository, key, record, uuid7
from voiceassist_db.errors import ConstraintError
from voiceassist_db.models import (
    EncryptedInPlace,
    EncryptedRow,
    EncryptedTable,
    Kind,
    PatientRow,
    blind_index_column,
    encrypted_column,
)


class Base(MappedAsDataclass, DeclarativeBase):
    """Dataclasses in a schema of the application's own, with big numbers and a convention for every name."""

    type_annotation_map = {int: sa.BigInteger, bytes: sa.Text, str: sa.String(30)}  # noqa: RUF012  # SQLAlchemy's
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        },
    )


class Room(Base):
    """A table without anything encrypted, which refers to a table of this package and to an encrypted one of its own."""

    __tablename__ = "rooms"
    __table_args__ = {"schema": "clinic"}  # noqa: RUF012  # SQLAlchemy\'s
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    patient: Mapped[UUID | None] = mapped_column(ForeignKey(PatientRow.id), default=None)
    stay: Mapped[UUID | None] = mapped_column(ForeignKey("clinic.stays.id"), default=None)


class Guest(EncryptedInPlace, Base):
    """A table with encrypted columns in place."""

    __tablename__ = "guests"
    __table_args__ = {"schema": "clinic"}  # noqa: RUF012  # SQLAlchemy\'s
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(default="nobody")
    ssn_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    ssn_index: Mapped[bytes | None] = blind_index_column("ssn")


class Staff(EncryptedRow, Base):
    """A table of three classes."""

    __tablename__ = "staff"
    __table_args__ = {"schema": "clinic"}  # noqa: RUF012  # SQLAlchemy\'s
    id: Mapped[UUID] = mapped_column(primary_key=True)
    ssn_encrypted: Mapped[bytes] = encrypted_column(Kind.TEXT, nullable=False)


class Stay(EncryptedRecord, table="stays", metadata=Base.metadata, schema="clinic"):
    """A table of one class."""

    patient: Annotated[UUID, ForeignKey("patient_data.id", ondelete="CASCADE", name="stays_patient")]
    guest: Annotated[int, ForeignKey("clinic.guests.id"), sa.BigInteger] | None = None
    reason: Annotated[str | None, Encrypted(search="exact", unique=True)] = None
    id: UUID = key(default_factory=uuid7)


class GuestSecrets(EncryptedRecord, table="guest_secrets", metadata=Base.metadata, schema="clinic"):
    """A side table: its key is the guest's."""

    guest: Annotated[int, ForeignKey("clinic.guests.id", ondelete="CASCADE"), sa.BigInteger] = key()
    diagnosis: Annotated[str | None, Encrypted()] = None


@record
class GuestRecord(Record):
    id: int
    ssn: str | None = None


class Guests(Repository[GuestRecord]):
    model = Guest
    record = GuestRecord


@record
class StaffRecord(Record):
    id: UUID
    ssn: str


class StaffRepository(Repository[StaffRecord]):
    model = Staff
    record = StaffRecord


@pytest.fixture
def clinic(database: Database) -> Database:
    """A database in which the migration has run that Alembic writes for all of it."""

    def is_theirs(_: object, name: str | None, kind: str, *__: object) -> bool:
        return kind != "table" or name in {each.name for each in Base.metadata.tables.values()}

    with database.engine.begin() as connection:
        connection.execute(CreateSchema("clinic"))
        options = {"include_object": is_theirs, "include_schemas": True}
        context = MigrationContext.configure(connection, opts=options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Cannot correctly sort tables")  # rooms and stays refer to each other's
            upgrade = produce_migrations(context, Base.metadata).upgrade_ops
        assert upgrade is not None
        code = render_python_code(upgrade)
        names: dict[str, Any] = {**vars(sa), "op": Operations(context), "sa": sa, "postgresql": postgresql}
        exec(f"def upgrade():\n    {code}", names)  # noqa: S102  # Alembic's own
        names["upgrade"]()
        again = produce_migrations(MigrationContext.configure(connection, opts=options), Base.metadata).upgrade_ops
        assert again is not None
        assert again.is_empty()
    return database


def test_all_forms_work_on_one_base(clinic: Database) -> None:
    """The ORM and the repositories write into one transaction; dataclasses take no argument for what is encrypted."""
    with Session(clinic.engine) as session, session.begin():
        tx = clinic.using(session)
        patient = Patient(patient_id="PT-1", ssn="900-00-0001")
        assert tx.patients.add(patient) == patient.id
        stay = Stay(patient=patient.id, reason="SECRET")
        tx.repository(Stay).add(stay)
        session.add_all([guest := Guest(), Room(patient=patient.id, stay=stay.id)])
        session.flush()
        assert tx.repository(GuestSecrets).add(GuestSecrets(guest=guest.id, diagnosis="SECRET")) == guest.id
        tx.repository(Guests).update(guest.id, ssn="900-00-0002")
        tx.repository(Stay).update(stay.id, guest=guest.id)
        assert tx.repository(Stay).get(stay.id).guest == guest.id
        assert tx.repository(Guests).find(ssn="900000002") == [tx.repository(Guests).get(guest.id)]
        assert tx.repository(GuestSecrets).get(guest.id).diagnosis == "SECRET"
        staff = StaffRecord(id=uuid7(), ssn="900-00-0003")
        assert tx.repository(StaffRepository).add(staff) == staff.id
        assert "SECRET" not in repr(guest)
    with pytest.raises(ConstraintError), clinic.transaction() as tx:
        tx.repository(GuestSecrets).add(GuestSecrets(guest=99, diagnosis="SECRET"))


def test_a_base_decides_nothing_about_our_columns() -> None:
    """Their types are ours, whatever the base's annotations mean."""
    of_guests = {each.name: each for each in Guest.__table__.c}
    assert isinstance(of_guests["ssn_encrypted"].type, sa.LargeBinary)
    assert type(of_guests["key_version"].type) is sa.Integer
    assert isinstance(of_guests["name"].type, sa.String)
    assert {each.name for each in Stay.__table__.foreign_keys} == {"stays_patient", None}
    assert Stay.__table__.fullname == "clinic.stays"

    class Elsewhere(EncryptedRecord, table="stays", metadata=MetaData(schema="ward")):
        note: Annotated[str, Encrypted()]
        id: UUID = key(default_factory=uuid7)

    assert EncryptedTable.of(Elsewhere.__table__).fields["note"].context == "ward.stays.note"
