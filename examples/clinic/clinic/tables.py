"""The clinic's tables: two of its own, and the encrypted visits."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from sqlalchemy import ForeignKey, Identity, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Encrypted, EncryptedRecord, key, uuid7


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pk",
            "fk": "%(table_name)s_%(column_0_name)s_fk",
            "ix": "%(table_name)s_%(column_0_name)s_ix",
            "uq": "%(table_name)s_%(column_0_name)s_uq",
            "ck": "%(table_name)s_%(constraint_name)s_ck",
        }
    )


class Doctor(Base):
    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)


class Access(Base):
    """Who read which visit."""

    __tablename__ = "accesses"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    visit: Mapped[UUID]
    doctor: Mapped[int] = mapped_column(ForeignKey("doctors.id"))


class Visit(EncryptedRecord, table="visits", metadata=Base.metadata):
    doctor: Annotated[int, ForeignKey("doctors.id")]
    starts_at: datetime
    patient: Annotated[str, Encrypted(search="name")]
    reason: Annotated[str | None, Encrypted()] = None
    id: UUID = key(default_factory=uuid7)
