"""What every table of this project shares.

Owns the metadata, the naming of constraints, and the columns that each encrypted row carries.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import DateTime, Integer, MetaData, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, mapped_column

from voiceassist_db.models.declaration import IN_PLACE_COMMENT, require_versions


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


# Without annotations: the type map of an application's base changes nothing, and a base of MappedAsDataclass asks no argument for them.


class EncryptedRow:
    """Mixin of a table with encrypted columns: one key version per row, and the dates."""

    key_version = mapped_column(Integer, nullable=False, sort_order=100)
    created_at = mapped_column(DateTime(timezone=True), nullable=False, server_default=func.now(), sort_order=101)
    updated_at = mapped_column(DateTime(timezone=True), nullable=False, server_default=func.now(), sort_order=102)


class EncryptedInPlace:
    """Mixin of an application's table that gets encrypted columns, and whose rows others insert without them.

    Such a row has no key version until a repository writes an encrypted value. A CHECK for each encrypted column keeps values out of rows
    without one.
    """

    key_version = mapped_column(Integer, nullable=True, comment=IN_PLACE_COMMENT, sort_order=100)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        table = getattr(cls, "__table__", None)
        if isinstance(table, Table):  # which may be that of a base, whose rows others insert (single-table inheritance)
            require_versions(table)
