"""What every table of this project shares.

Owns the metadata, the naming of constraints, and the columns that each encrypted row carries.
"""

from __future__ import annotations

from datetime import datetime
from typing import cast

from sqlalchemy import DateTime, MetaData, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Declarative base of all tables. Constraints have fixed names, so that a migration can always find them."""

    type_annotation_map = {str: Text}  # noqa: RUF012  # SQLAlchemy reads it from the class
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def table_of(model: type[DeclarativeBase]) -> Table:
    """Return a model's table, which SQLAlchemy types as anything that a model can be mapped to."""
    return cast(Table, model.__table__)


class EncryptedRow:
    """Mixin of a table with encrypted columns: one key version per row, and the dates."""

    key_version: Mapped[int] = mapped_column(sort_order=100)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), sort_order=101)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), sort_order=102)
