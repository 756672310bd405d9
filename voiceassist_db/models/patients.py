"""The patient tables of the HIPAA guide: names of tables and ``*_encrypted`` columns are the guide's."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import ForeignKey, Uuid
from sqlalchemy.orm import Mapped, mapped_column

from voiceassist_db.models.base import Base, EncryptedRow
from voiceassist_db.models.declaration import Kind, blind_index_column, encrypted_column


class PatientRow(EncryptedRow, Base):
    """One patient. ``id`` is a UUIDv7 made by the client, so that values can be bound to it before the INSERT."""

    __tablename__ = "patient_data"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    patient_id: Mapped[str] = mapped_column(unique=True)
    ssn_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    mrn_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    name_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)
    date_of_birth_encrypted: Mapped[bytes | None] = encrypted_column(Kind.DATE)
    address_encrypted: Mapped[bytes | None] = encrypted_column(Kind.JSON)
    ssn_index: Mapped[bytes | None] = blind_index_column("ssn")
    mrn_index: Mapped[bytes | None] = blind_index_column("mrn", unique=True)
    name_index: Mapped[bytes | None] = blind_index_column("name")


class ClinicalNoteRow(EncryptedRow, Base):
    """One note on a patient, keyed by (patient, id) so that notes can live beside their patient on a sharded server."""

    __tablename__ = "clinical_notes"

    patient: Mapped[UUID] = mapped_column(ForeignKey(PatientRow.id), primary_key=True)
    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    note_encrypted: Mapped[bytes] = encrypted_column(Kind.TEXT, nullable=False)
    metadata_encrypted: Mapped[bytes | None] = encrypted_column(Kind.JSON)
