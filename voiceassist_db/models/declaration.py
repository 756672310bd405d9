"""How a table says that a column is encrypted, and how every tool finds out.

Owns the declaration: :func:`encrypted_column` and :func:`blind_index_column` for models, :class:`EncryptedTable` for all who
read it back. The declaration is the column's SQL comment, so it lives in the database itself: rotation, status and verify
read it from the catalogue and need no list of tables and no application code. To Alembic it is a plain ``LargeBinary``
column with a comment and a CHECK, which ``alembic check`` keeps in step. Knows no key.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from sqlalchemy import (
    CHAR,
    DDL,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Date,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Uuid,
    and_,
    event,
    or_,
)
from sqlalchemy.dialects.postgresql import CITEXT, DOMAIN
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.sql.elements import conv
from sqlalchemy.types import TypeEngine

from voiceassist_db import normalisers
from voiceassist_db.models.names import (
    CONTEXT,
    NAME_BYTES,
    default_context,
    fitted,
    problem_with,
    quoted,
    require_context,
)

ENCRYPTED_SUFFIX: Final = "_encrypted"
INDEX_SUFFIX: Final = "_index"
VERSION_COLUMN: Final = "key_version"
FLOOR_SUFFIX: Final = "_key_version_floor"
FILLFACTOR: Final = 75
"""Room that a page keeps free for the next rotation's row versions (HOT), in percent used."""
FILLFACTOR_INFO: Final = "voiceassist_db.fillfactor"
"""Where a table of SQLAlchemy 2.0 has its fillfactor, which later versions have as an option of the table."""

IN_PLACE_COMMENT: Final = "key version, NULL where no value is encrypted"
"""Comment of a version column that may be NULL: rows are inserted by others, who know nothing of encryption."""

_DETACHED: Final = " in a detached partition"
_ENCRYPTED_COMMENT: Final = re.compile(
    rf"encrypted (?P<context>{CONTEXT}) as (?P<kind>[a-z]+)(?P<detached>{_DETACHED})?"
)
_INDEX_COMMENT: Final = re.compile(rf"blind index of (?P<context>{CONTEXT}) by (?P<normaliser>{normalisers.PATTERN})")
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


_SEARCHABLE: Final = (Kind.TEXT, Kind.DATE, Kind.INTEGER)
"""Kinds of which two equal values always have the same text."""


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
    return fitted(f"{table}_{column}", "_format")


def version_constraint(table: str, column: str) -> str:
    """Return the name of the CHECK that keeps values out of rows without a key version."""
    return fitted(f"{table}_{column}", "_version")


def with_version(column: str) -> str:
    """Return the SQL condition that a row without a key version has no value in a column."""
    return f"{column} IS NULL OR {VERSION_COLUMN} IS NOT NULL"


def floor_constraint(table: str) -> str:
    """Return the name of the CHECK that keeps rows of retired key versions out of a table."""
    return fitted(table, FLOOR_SUFFIX)


def encrypted_column(kind: Kind, *, context: str | None = None, nullable: bool = True) -> MappedColumn[Any]:
    """Declare an encrypted column; its attribute's name must end in ``_encrypted``.

    The table gets the CHECK of the column's format, and room on its pages for rotation unless it has a ``fillfactor`` of its own. Beside
    ``EncryptedInPlace`` it gets the CHECK that a value has a key version.

    Args:
        kind: Type of the value that application code sees.
        context: What the values are bound to and their key is derived for, ``table.field`` by default. Name it when a table
            or column is renamed after it was filled: values keep the context that they were encrypted for.
        nullable: Whether a row may lack the value.

    Raises:
        ValueError: There is no such kind, or the context has other characters than letters, digits, ``_``, ``.`` and ``-``. When the
            table is made: the name does not end in ``_encrypted``, or what stands before that cannot be a record's field.
    """
    kind = Kind(kind)
    given = None if context is None else require_context(context)
    declared: MappedColumn[Any] = _not_of_constructor(mapped_column(LargeBinary, nullable=nullable, init=False))

    def complete(column: Column[Any], table: Table) -> None:
        if column.comment is not None:
            return  # a copy of a complete table, as Alembic makes them
        field = _new_field(table, column, ENCRYPTED_SUFFIX)
        column.comment = f"encrypted {given or default_context(table.schema, table.name, field)} as {kind.value}"
        condition = bound_format(quoted(column.name))
        # conv() keeps a naming convention from changing a name by which rotation finds the constraint.
        table.append_constraint(CheckConstraint(condition, name=conv(format_constraint(table.name, column.name))))
        # When the table has its version column, too.
        event.listen(table, "after_parent_attach", lambda table, _: require_versions(table, column.name))
        _leave_room(table)

    event.listen(declared.column, "after_parent_attach", complete, propagate=True)
    return declared


def blind_index_column(
    normaliser: str, *, of: str | None = None, context: str | None = None, unique: bool = False
) -> MappedColumn[Any]:
    """Declare the search token of an encrypted field: ``ssn_index`` beside ``ssn_encrypted``.

    A field has one blind index of whole values. It may have others of a part: of the first characters (``name:3``), or of the month or year
    of a date (``date:month``). Each tells whoever reads the table which rows share that part.

    Args:
        normaliser: Which spelling differences do not matter: ``date``, ``email``, ``exact``, ``integer``, ``mrn``, ``name``, ``phone``,
            ``postcode``, ``ssn``, or one that ``register_normaliser`` was given; and, behind a colon, which part is compared.
        of: The field, where the column is not named after it: ``name_start_index`` of ``name``.
        context: As for :func:`encrypted_column`.
        unique: Whether no two rows may have the same value.

    Raises:
        ValueError: There is no such normaliser, or a part is to be unique; otherwise as for :func:`encrypted_column`.
    """
    if (
        not isinstance(normaliser, str)
        or not re.fullmatch(normalisers.PATTERN, normaliser)
        or not normalisers.is_known(normaliser)
    ):
        raise ValueError(
            f"there is no normaliser {normaliser!r}; there are {', '.join(normalisers.names())}. Give your own to register_normaliser() before"
        )
    if unique and normalisers.part_of(normaliser):
        raise ValueError(f"{normaliser} compares a part of values only, so that it cannot be unique")
    given = None if context is None else require_context(context)
    declared: MappedColumn[Any] = _not_of_constructor(
        mapped_column(LargeBinary, index=not unique, unique=unique, init=False)
    )

    def complete(column: Column[Any], table: Table) -> None:
        if column.comment is not None:
            return
        field = _new_field(table, column, INDEX_SUFFIX) if of is None else of
        column.comment = f"blind index of {given or default_context(table.schema, table.name, field)} by {normaliser}"
        for index in table.indexes:
            if column.name in index.columns and (index.name is None or len(index.name.encode()) > NAME_BYTES):
                # A naming convention without "ix" gives no name, and SQLAlchemy counts characters.
                index.name = conv(fitted(f"ix_{table.name}_{column.name.removesuffix(INDEX_SUFFIX)}", INDEX_SUFFIX))

    event.listen(declared.column, "after_parent_attach", complete, propagate=True)
    return declared


def _not_of_constructor(declared: MappedColumn[Any]) -> MappedColumn[Any]:
    """Return a column without an argument of the constructor, where the model is a dataclass; other models refuse ``init=``."""
    declared._has_dataclass_arguments = False  # noqa: SLF001  # SQLAlchemy has no other way to say it for both
    return declared


def _new_field(table: Table, column: Column[Any], suffix: str) -> str:
    """Return the field's name of a column that a model declares, if a record can have it."""
    for name in (table.name, column.name):
        if problem := problem_with(name):
            raise ValueError(f"column {column.name!r} of table {table.fullname!r}: {name!r} {problem}")
    field = _field_of(table, column.name, suffix)
    if not field.isidentifier() or keyword.iskeyword(field) or unicodedata.normalize("NFKC", field) != field:
        raise ValueError(
            f"column {column.name!r}: {field!r} cannot be the name of a record's field; use a Python identifier in its normal form (NFKC)"
        )
    return field


def require_versions(table: Table, *columns: str) -> None:
    """Give a table whose rows may lack the key version the CHECKs that values have one.

    Args:
        table: The table.
        columns: Encrypted columns; all that lack their CHECK by default.
    """
    version = table.c.get(VERSION_COLUMN)
    if version is None or version.comment != IN_PLACE_COMMENT:
        return
    known = {each.name for each in table.constraints}
    for column in columns or [each.name for each in table.c if declared_in(each.comment)]:
        name = conv(version_constraint(table.name, column))
        if name not in known:
            table.append_constraint(CheckConstraint(with_version(quoted(column)), name=name))


def _leave_room(table: Table) -> None:
    """Give a table its fillfactor, unless the application has given it one, or it has no pages of its own."""
    options = table.dialect_options["postgresql"]
    if options["partition_by"]:
        return
    if "with" not in options:  # SQLAlchemy 2.0 has no option of a table for it
        if not table.info.setdefault(FILLFACTOR_INFO, 0):
            table.info[FILLFACTOR_INFO] = FILLFACTOR
            event.listen(table, "after_create", _set_fillfactor, propagate=True)
        return
    storage = dict(options["with"] or {})
    if "fillfactor" not in {name.lower() for name in storage}:
        # By the argument's name, for Alembic renders those that were given.
        table.dialect_kwargs["postgresql_with"] = storage | {"fillfactor": str(FILLFACTOR)}


def _set_fillfactor(table: Table, connection: Connection, **_: Any) -> None:
    """Give a table that was just created its fillfactor."""
    if connection.dialect.name == "postgresql":
        name = ".".join(quoted(each) for each in (table.schema, table.name) if each)
        # DDL() reads percent signs as a format.
        statement = f"ALTER TABLE {name} SET (fillfactor = {FILLFACTOR})".replace("%", "%%")
        connection.execute(DDL(statement))  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def _field_of(table: Table, column: str, suffix: str) -> str:
    if not column.endswith(suffix) or column == suffix:
        raise ValueError(
            f"column {column!r} of table {table.fullname}: its name must be the field's name followed by {suffix!r}"
        )
    return column.removesuffix(suffix)


@dataclass(frozen=True, slots=True)
class BlindIndex:
    """One column of tokens, as declared.

    Attributes:
        name: What a search calls it: the field, or for a part of its values the column without ``_index``.
        column: What the table calls it: ``ssn_index``.
        normaliser: What its tokens are made by: ``name``, or ``name:3``.
        info: What the key of its tokens is derived for, so that tokens of two indexes cannot be compared.
        field: The field.
        kind: Type of the field's values.
    """

    name: str
    column: str
    normaliser: str
    info: str
    field: str
    kind: Kind


@dataclass(frozen=True, slots=True, eq=False)
class EncryptedField:
    """One encrypted column, as declared.

    Attributes:
        name: What application code calls it: ``ssn``.
        column: What the table calls it: ``ssn_encrypted``.
        context: What values are bound to, and the info of the column key: ``patient_data.ssn``.
        kind: Type of the value.
        indexes: Its blind indexes; none where it cannot be searched.
        is_detached: Whether the table was a partition, so that the table that it was part of has the same context.
    """

    name: str
    column: str
    context: str
    kind: Kind
    indexes: tuple[BlindIndex, ...] = ()
    is_detached: bool = False


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

    @property
    def is_in_place(self) -> bool:
        """Whether rows without encrypted values have no key version, as they have where others insert them."""
        return bool(self.version.nullable) and self.version.comment == IN_PLACE_COMMENT

    def has_no_version(self) -> ColumnElement[bool]:
        """Return the condition that a row has an encrypted value and no key version, so that nobody knows its key."""
        values = (self.table.c[each.column].is_not(None) for each in self.fields.values())
        return and_(self.version.is_(None), or_(*values))

    @property
    def indexes(self) -> list[BlindIndex]:
        """The blind indexes of all fields."""
        return [index for field in self.fields.values() for index in field.indexes]

    @property
    def covered(self) -> list[str]:
        """The names of its encrypted columns and of their blind indexes."""
        columns = ([each.column, *(index.column for index in each.indexes)] for each in self.fields.values())
        return [name for names in columns for name in names]

    def beside(self, name: str) -> str:
        """Return a name for a subquery that stands beside the table: another one, should the table itself be called so."""
        return f"{name}_" if name == self.table.name else name

    @classmethod
    def of(cls, table: Table) -> Self:
        """Read a table's declaration.

        Raises:
            ValueError: It declares nothing encrypted, has no ``key_version`` or no primary key, has a primary key of a type that
                values cannot be bound to, or its declarations contradict each other or are incomplete.
        """
        fields = {field.name: field for field in _fields(table)}
        key = tuple(table.primary_key.columns)
        if not fields:
            raise ValueError(f"table {table.fullname} declares no encrypted column")
        if VERSION_COLUMN not in table.c or not key:
            raise ValueError(f"table {table.fullname} needs a primary key and a column {VERSION_COLUMN}")
        for field in fields.values():
            if field.indexes and field.kind not in _SEARCHABLE:
                raise ValueError(
                    f"table {table.fullname}: {field.name} has a blind index, which only text, dates and integers can have"
                )
            for index in field.indexes:
                if problem := normalisers.problem_with(index.normaliser, field.kind):
                    raise ValueError(f"column {table.fullname}.{index.column}: {problem}")
        for column in key:
            if not is_bindable(column.type):
                raise ValueError(
                    f"table {table.fullname}: values cannot be bound to a primary key of type {column.type!r} ({column.name}); "
                    "use uuid, an integer type, text, varchar or date"
                )
        return cls(table, key, fields)


def is_bindable(type_: TypeEngine[Any]) -> bool:
    """Say whether a key of this type reads back as it was written, in the same text in Python and in SQL.

    Two such keys are equal in SQL exactly where they are in Python; a collation can change that.
    """
    if isinstance(type_, Uuid):
        return bool(type_.as_uuid and type_.native_uuid)
    return isinstance(type_, _BINDABLE) and not isinstance(type_, CHAR | Enum | CITEXT)


def _fields(table: Table) -> list[EncryptedField]:
    """Return the fields that a table's comments declare.

    Raises:
        ValueError: A declaration cannot be followed.
    """
    indexes = _indexes(table)
    fields: dict[str, EncryptedField] = {}
    for column in table.c:
        if not (found := _ENCRYPTED_COMMENT.fullmatch(column.comment or "")):
            continue
        where, context = f"column {table.fullname}.{column.name}", found["context"]
        _require_binary(table, column)
        if found["kind"] not in set(Kind):
            raise ValueError(f"{where}: there is no kind {found['kind']!r}; there are {', '.join(sorted(Kind))}")
        if context in fields:
            raise ValueError(
                f"{where} and {fields[context].column} have the same context {context}, so that their values could be swapped"
            )
        name, kind = _field_of(table, column.name, ENCRYPTED_SUFFIX), Kind(found["kind"])
        made = tuple(_index(context, name, kind, *each) for each in indexes.pop(context, {}).items())
        fields[context] = EncryptedField(name, column.name, context, kind, made, found["detached"] is not None)
    for context, found_indexes in indexes.items():
        index = next(iter(found_indexes.values()))
        raise ValueError(
            f"column {table.fullname}.{index} is the blind index of {context}, but no encrypted column of the table has this context: "
            "give both the same context"
        )
    return list(fields.values())


def _index(context: str, field: str, kind: Kind, normaliser: str, column: str) -> BlindIndex:
    if not normalisers.part_of(normaliser):
        return BlindIndex(field, column, normaliser, context, field, kind)
    # No context has a colon, so that no other column's key is derived for the same.
    return BlindIndex(column.removesuffix(INDEX_SUFFIX), column, normaliser, f"{context}:{normaliser}", field, kind)


def _indexes(table: Table) -> dict[str, dict[str, str]]:
    """Return the blind indexes of each context: columns by their normalisers."""
    indexes: dict[str, dict[str, str]] = {}
    for column in table.c:
        if not (found := _INDEX_COMMENT.fullmatch(column.comment or "")):
            continue
        context, normaliser = found["context"], found["normaliser"]
        _require_binary(table, column)
        known = indexes.setdefault(context, {})
        is_whole = not normalisers.part_of(normaliser)
        for other, name in known.items():
            if other == normaliser or (is_whole and not normalisers.part_of(other)):
                raise ValueError(
                    f"column {table.fullname}.{column.name} and {name} are both the blind index of {context}: drop one of them"
                )
        known[normaliser] = column.name
    return indexes


def _require_binary(table: Table, column: Column[Any]) -> None:
    if not _is_binary(column.type):
        raise ValueError(f"column {table.fullname}.{column.name} is declared as encrypted, but is not of type bytea")


def is_declared(column: Column[Any]) -> bool:
    """Say whether a column is declared as an encrypted one, or as a blind index."""
    comment = getattr(column, "comment", None) or ""  # a column of a subquery has none
    return bool(_ENCRYPTED_COMMENT.fullmatch(comment) or _INDEX_COMMENT.fullmatch(comment))


def _is_declared(table: Table) -> bool:
    return any(map(is_declared, table.c))


def of_detached(comment: str | None) -> str | None:
    """Return the declaration of a column in a partition that was detached, for that of the same column in its table; None where that has none."""
    if found := _ENCRYPTED_COMMENT.fullmatch(comment or ""):
        return f"encrypted {found['context']} as {found['kind']}{_DETACHED}"
    return comment if _INDEX_COMMENT.fullmatch(comment or "") else None


def contexts_of(table: Table) -> set[str]:
    """Return the contexts of a table's encrypted columns, whatever else is wrong with their declaration."""
    found = (_ENCRYPTED_COMMENT.fullmatch(column.comment or "") for column in table.c)
    return {each["context"] for each in found if each}


def declared_tables(metadata: MetaData) -> list[EncryptedTable]:
    """Return the encrypted tables of a metadata collection, by name.

    Raises:
        ValueError: A declaration cannot be followed, or two tables have the same context.
    """
    tables = [EncryptedTable.of(table) for _, table in sorted(metadata.tables.items()) if _is_declared(table)]
    owners: dict[str, str] = {}
    for table in tables:
        for field in table.fields.values():
            if field.is_detached:
                continue
            place = f"{table.name}.{field.column}"
            if (other := owners.setdefault(field.context, place)) != place:
                raise ValueError(
                    f"columns {other} and {place} have the same context {field.context}, so that a value of one would be accepted in "
                    "the other. If one table is a copy, drop it. If both are needed, declare one with a context of its own, and write "
                    "its rows again by its repository."
                )
    return tables


def _is_binary(type_: TypeEngine[Any]) -> bool:
    while isinstance(type_, DOMAIN):
        type_ = type_.data_type
    return isinstance(type_, LargeBinary)


def undeclared_in(table: Table) -> list[str]:
    """Return the binary columns of a table that look encrypted by their name, but carry no declaration."""
    return [
        column.name
        for column in table.c
        if column.name.endswith(ENCRYPTED_SUFFIX)
        and _is_binary(column.type)
        and not _ENCRYPTED_COMMENT.fullmatch(column.comment or "")
    ]


def undeclared_columns(metadata: MetaData) -> list[str]:
    """Return ``table.column`` of all such columns of a metadata collection."""
    return [f"{table.fullname}.{name}" for _, table in sorted(metadata.tables.items()) for name in undeclared_in(table)]


def declared_in(comment: str | None) -> tuple[str, str] | None:
    """Return the context and the kind that the comment of an encrypted column declares; None where it is none."""
    found = _ENCRYPTED_COMMENT.fullmatch(comment or "")
    return (found["context"], found["kind"]) if found else None
