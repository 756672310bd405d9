"""The registry of key versions and the journal of rotations. No column of these tables ever holds key material."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Double, ForeignKey, LargeBinary, func, true
from sqlalchemy.orm import Mapped, mapped_column

from voiceassist_db.models.base import Base


class EncryptionKeyRow(Base):
    """One version of the encryption key: how it is used, and the check value that proves a key to be the right one."""

    __tablename__ = "encryption_keys"
    __table_args__ = (
        CheckConstraint("version >= 1", name="encryption_keys_version"),
        CheckConstraint("scheme IN ('bound', 'direct')", name="encryption_keys_scheme"),
        CheckConstraint("state IN ('current', 'previous', 'retired')", name="encryption_keys_state"),
    )

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    scheme: Mapped[str]
    state: Mapped[str]
    check_value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    replaced_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    retired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class IndexKeyRow(Base):
    """One key of the blind indexes. They have no number in the key store, so the check value is what tells them apart."""

    __tablename__ = "index_keys"
    __table_args__ = (CheckConstraint("state IN ('current', 'previous', 'retired')", name="index_keys_state"),)

    check_value: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    state: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    retired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class DatabaseIdentityRow(Base):
    """What a database is called in the key store, whose list of databases says who needs its keys.

    Replicas and their promotion keep it. ``place`` is the server and the database that it was given in: elsewhere, in a copy or a
    restored dump, it is the identity of the original.
    """

    __tablename__ = "database_identity"
    __table_args__ = (CheckConstraint("is_only", name="database_identity_is_only"),)

    is_only: Mapped[bool] = mapped_column(primary_key=True, server_default=true())
    id: Mapped[UUID]
    place: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class KeyRotationRow(Base):
    """One rotation, and the lease of the process that is at it: whoever is its holder, until ``lease_until``, may write.

    ``heartbeat_at`` stands still when that process has died. The versions of the blind-index key are a count; a retirement is
    of ``from_version``. A run is ``superseded`` when its keys are no longer those of the secret: it can never be continued.
    """

    __tablename__ = "key_rotations"
    __table_args__ = (
        CheckConstraint("kind IN ('encryption', 'index', 'retirement')", name="key_rotations_kind"),
        CheckConstraint("state IN ('running', 'interrupted', 'finished', 'superseded')", name="key_rotations_state"),
        CheckConstraint("to_version > from_version", name="key_rotations_versions"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(server_default="encryption")
    from_version: Mapped[int]
    to_version: Mapped[int]
    state: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    rows: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rows_total: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rows_per_second: Mapped[float] = mapped_column(Double, server_default="0")
    holder: Mapped[UUID | None]
    holder_name: Mapped[str | None]
    lease_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class KeyRotationFailureRow(Base):
    """A row that a rotation could not read: where it is and how it failed, never what it holds."""

    __tablename__ = "key_rotation_failures"

    rotation: Mapped[UUID] = mapped_column(ForeignKey(KeyRotationRow.id), primary_key=True)
    table_name: Mapped[str] = mapped_column(primary_key=True)
    row_id: Mapped[str] = mapped_column(primary_key=True)
    sqlstate: Mapped[str]
    recorded_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


REGISTRY_ROWS: Final = (EncryptionKeyRow, IndexKeyRow, KeyRotationRow, KeyRotationFailureRow, DatabaseIdentityRow)
"""What this package keeps in a database beside the encrypted tables."""
