"""A team's own encrypted table: a model, a migration and a repository. Rotation, status and verify find it untold."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from voiceassist_db import Record, Repository, field, record, uuid7
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column


class TeamBase(DeclarativeBase):
    """The team's own base, with its own metadata and migrations."""


class AppointmentRow(EncryptedRow, TeamBase):
    __tablename__ = "appointments"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Appointment(Record):
    starts_at: datetime
    reason: str | None = None
    id: UUID = field(default_factory=uuid7)


class AppointmentRepository(Repository[Appointment]):
    model = AppointmentRow
    record = Appointment


def upgrade(op: Operations) -> None:
    """What `alembic revision --autogenerate` writes for the model above, with plain SQLAlchemy only."""
    op.create_table(
        "appointments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason_encrypted", sa.LargeBinary(), comment="encrypted appointments.reason as text"),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "substring(reason_encrypted from 1 for 6) = '\\xc30c04090108' "
            "AND substring(reason_encrypted from 15 for 1) = '\\xd2'",
            name="appointments_reason_encrypted_format",
        ),
        sa.PrimaryKeyConstraint("id", name="appointments_pkey"),
    )
    op.execute("ALTER TABLE appointments SET (fillfactor = 75)")
