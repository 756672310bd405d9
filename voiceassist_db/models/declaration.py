"""How a table says that a column is encrypted, and how every tool finds out.

Owns the declaration: :func:`encrypted_column` and :func:`blind_index_column` for models, :class:`EncryptedTable` for all who
read it back. The declaration is the column's SQL comment, so it lives in the database itself: rotation, status and verify
read it from the catalogue and need no list of tables and no application code. To Alembic it is a plain ``LargeBinary``
column with a comment and a CHECK, which ``alembic check`` keeps in step. Knows no key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from sqlalchemy import (
    CHAR,
    CheckConstraint,
    Column,
    Date,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Uuid,
    event,
)
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.types import TypeEngine

ENCRYPTED_SUFFIX: Final = "_encrypted"
INDEX_SUFFIX: Final = "_index"
VERSION_COLUMN: Final = "key_version"
FLOOR_SUFFIX: Final = "_key_version_floor"
FILLFACTOR: Final = 75
"""Room that a page keeps free for the next rotation's row versions (HOT), in percent used."""

_ENCRYPTED_COMMENT: Final = re.compile(r"encrypted (?P<context>[a-z0-9_.]+) as (?P<kind>[a-z]+)")
_INDEX_COMMENT: Final = re.compile(r"blind index of (?P<context>[a-z0-9_.]+) by (?P<normaliser>[a-z_]+)")
_BINDABLE: Final = (Integer, String, Date)


class Kind(StrEnum):
    """Python type of an encrypted value; ``pgcrypto.codec`` says how each is written."""

    TEXT = "text"
    BYTES = "bytes"
    DATE = "date"
    DATETIME = "datetime"
    INTEGER = "integer"
    DECIMAL = "decimal"
    JSON = "json"


def bound_format(column: str) -> str:
    """Return the SQL condition that a column holds a packet exactly as scheme ``bound`` writes it.

    Byte layout (OpenPGP, RFC 9580): ``c3`` symmetric-key packet, ``0c`` its length 12, ``04`` its version, ``09`` AES-256,
    ``01`` salted S2K, ``08`` SHA-256, 8 bytes of salt, then ``d2``: data with an integrity packet, never the bare ``c9``.
    """
    return (
        rf"substring({column} from 1 for 6) OPERATOR(pg_catalog.=) '\xc30c04090108' "
        rf"AND substring({column} from 15 for 1) OPERATOR(pg_catalog.=) '\xd2'"
    )


def any_format(column: str) -> str:
    """Return the SQL condition that a column holds any password-encrypted OpenPGP packet with an integrity packet."""
    return (
        rf"CASE WHEN {column} IS NULL THEN true "
        rf"WHEN (substring({column} from 1 for 1) OPERATOR(pg_catalog.=) '\xc3' "
        rf"OR substring({column} from 1 for 1) OPERATOR(pg_catalog.=) '\x8c') "
        rf"AND pg_catalog.octet_length({column}) OPERATOR(pg_catalog.>) 2 "
        rf"AND pg_catalog.get_byte({column}, 1) OPERATOR(pg_catalog.<) 192 "
        rf"THEN substring({column} from pg_catalog.get_byte({column}, 1) OPERATOR(pg_catalog.+) 3 for 1) OPERATOR(pg_catalog.=) '\xd2' "
        rf"ELSE false END"
    )


def format_constraint(table: str, column: str) -> str:
    """Return the name of the CHECK that holds a column to its ciphertext format."""
    return f"{table}_{column}_format"


def floor_constraint(table: str) -> str:
    """Return the name of the CHECK that keeps rows of retired key versions out of a table."""
    return f"{table}{FLOOR_SUFFIX}"


def encrypted_column(kind: Kind, *, context: str | None = None, nullable: bool = True) -> MappedColumn[Any]:
    """Declare an encrypted column; its attribute's name must end in ``_encrypted``.

    Args:
        kind: Type of the value that application code sees.
        context: What the values are bound to and their key is derived for, ``table.field`` by default. Name it when a table
            or column is renamed after it was filled: values keep the context that they were encrypted for.
        nullable: Whether a row may lack the value.

    Raises:
        ValueError: The attribute's name does not end in ``_encrypted``.
    """
    declared: MappedColumn[Any] = mapped_column(LargeBinary, nullable=nullable)

    def complete(column: Column[Any], table: Table) -> None:
        if column.comment is not None:
            return  # a copy of a complete table, as Alembic makes them
        field = _field_of(column.name, ENCRYPTED_SUFFIX)
        column.comment = f"encrypted {context or _default_context(table, field)} as {kind.value}"
        table.append_constraint(
            CheckConstraint(bound_format(column.name), name=format_constraint(table.name, column.name))
        )

    event.listen(declared.column, "after_parent_attach", complete, propagate=True)
    return declared


def blind_index_column(normaliser: str, *, context: str | None = None, unique: bool = False) -> MappedColumn[Any]:
    """Declare the search token of an encrypted field: ``ssn_index`` beside ``ssn_encrypted``.

    Args:
        normaliser: Which spelling differences do not matter: a name of ``blind_index.NORMALISERS``.
        context: As for :func:`encrypted_column`.
        unique: Whether no two rows may have the same value.
    """
    declared: MappedColumn[Any] = mapped_column(LargeBinary, index=not unique, unique=unique)

    def complete(column: Column[Any], table: Table) -> None:
        if column.comment is not None:
            return
        field = _field_of(column.name, INDEX_SUFFIX)
        column.comment = f"blind index of {context or _default_context(table, field)} by {normaliser}"

    event.listen(declared.column, "after_parent_attach", complete, propagate=True)
    return declared


def _field_of(column: str, suffix: str) -> str:
    if not column.endswith(suffix) or column == suffix:
        raise ValueError(f"column {column!r}: its name must be the field's name followed by {suffix!r}")
    return column.removesuffix(suffix)


def _default_context(table: Table, field: str) -> str:
    return f"{table.fullname}.{field}"


@dataclass(frozen=True, slots=True, eq=False)
class EncryptedField:
    """One encrypted column, as declared.

    Attributes:
        name: What application code calls it: ``ssn``.
        column: What the table calls it: ``ssn_encrypted``.
        context: What values are bound to, and the info of the column key: ``patient_data.ssn``.
        kind: Type of the value.
        index_column: Column of its blind index; None where it cannot be searched.
        normaliser: Name of the blind index's normaliser.
    """

    name: str
    column: str
    context: str
    kind: Kind
    index_column: str | None = None
    normaliser: str | None = None


@dataclass(frozen=True, eq=False)
class EncryptedTable:
    """A table with encrypted columns, as its comments declare it.

    Attributes:
        table: The SQLAlchemy table, declared by a model or reflected from the catalogue.
        key: Its primary key columns, in order: what every value is bound to.
        fields: Its encrypted fields by name, in the table's order.
    """

    table: Table
    key: tuple[Column[Any], ...]
    fields: dict[str, EncryptedField]

    @property
    def name(self) -> str:
        """The table's name, with its schema where that is not the default one."""
        return self.table.fullname

    @property
    def version(self) -> Column[Any]:
        """The column that holds the key version of each row."""
        return self.table.c[VERSION_COLUMN]

    @classmethod
    def of(cls, table: Table) -> Self:
        """Read a table's declaration.

        Raises:
            ValueError: It declares nothing encrypted, has no ``key_version`` or no primary key, or has a primary key of
                a type that values cannot be bound to.
        """
        fields = {field.name: field for field in _fields(table)}
        key = tuple(table.primary_key.columns)
        if not fields:
            raise ValueError(f"table {table.fullname} declares no encrypted column")
        if VERSION_COLUMN not in table.c or not key:
            raise ValueError(f"table {table.fullname} needs a primary key and a column {VERSION_COLUMN}")
        if len({field.context for field in fields.values()}) < len(fields):
            raise ValueError(
                f"table {table.fullname}: two columns have the same context, and their values could be swapped"
            )
        for field in fields.values():
            if field.index_column is not None and field.kind is not Kind.TEXT:
                raise ValueError(f"table {table.fullname}: {field.name} has a blind index, which only text can have")
        for column in key:
            if not _is_bindable(column.type):
                raise ValueError(
                    f"table {table.fullname}: values cannot be bound to a primary key of type {column.type}; "
                    "use uuid, an integer type, text, varchar or date"
                )
        return cls(table, key, fields)


def _is_bindable(type_: TypeEngine[Any]) -> bool:
    """Say whether a key of this type reads back as it was written, in the same text in Python and in SQL."""
    if isinstance(type_, Uuid):
        return bool(type_.as_uuid and type_.native_uuid)
    return isinstance(type_, _BINDABLE) and not isinstance(type_, CHAR | Enum)


def _fields(table: Table) -> list[EncryptedField]:
    indexes = {}
    for column in table.c:
        if found := _INDEX_COMMENT.fullmatch(column.comment or ""):
            indexes[found["context"]] = (column.name, found["normaliser"])
    fields = []
    for column in table.c:
        if found := _ENCRYPTED_COMMENT.fullmatch(column.comment or ""):
            name = _field_of(column.name, ENCRYPTED_SUFFIX)
            index, normaliser = indexes.get(found["context"], (None, None))
            fields.append(EncryptedField(name, column.name, found["context"], Kind(found["kind"]), index, normaliser))
    return fields


def declared_tables(metadata: MetaData) -> list[EncryptedTable]:
    """Return the encrypted tables of a metadata collection, by name."""
    return [EncryptedTable.of(table) for _, table in sorted(metadata.tables.items()) if _fields(table)]


def _is_binary(type_: TypeEngine[Any]) -> bool:
    return isinstance(type_.data_type if isinstance(type_, DOMAIN) else type_, LargeBinary)


def undeclared_columns(metadata: MetaData) -> list[str]:
    """Return ``table.column`` of the binary columns that look encrypted by their name, but carry no declaration."""
    return [
        f"{table.fullname}.{column.name}"
        for _, table in sorted(metadata.tables.items())
        for column in table.c
        if column.name.endswith(ENCRYPTED_SUFFIX)
        and _is_binary(column.type)
        and not _ENCRYPTED_COMMENT.fullmatch(column.comment or "")
    ]
