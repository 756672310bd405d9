"""Declarations as somebody might write them: names of any case, length, quoting and script, and all that goes with them."""

from __future__ import annotations

import keyword
import types
import unicodedata
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from voiceassist_db import Encrypted, EncryptedRecord, Record, Repository, field, key, record
from voiceassist_db.models import EncryptedInPlace, EncryptedRow, Kind, blind_index_column, encrypted_column

HAS_STORAGE_OPTIONS: Final = "with" in sa.Table("t", sa.MetaData()).dialect_options["postgresql"]
"""Whether a table can say how it is stored, which it cannot in SQLAlchemy 2.0."""

INTERNAL: Final = (
    *(
        "keys",
        "version_current",
        "version_previous",
        "tolerated_state",
        "index_check",
        "tokens",
        "known",
        "limit",
        "first",
    ),
    *(
        "end",
        "numbers",
        "pass_",
        "nap_share",
        "given",
        "stored",
        "always",
        "one",
        "key_0",
        "k0",
        "old_0",
        "new_0",
        "after_id",
    ),
    *("after_0", "where_id", "where_0", "plain_0", "plaintext_0", "token_0", "oid", "schema", "table", "name", "path"),
    *(
        "suffix",
        "default",
        "row_id",
        "rows",
        "found",
        "patient_data",
        "encryption_keys",
        "version",
        "id",
        "key",
        "value",
    ),
    *(
        "context",
        "columns",
        "lookup",
        "fields",
        "model",
        "record",
        "forms",
        "session",
        "values",
        "metadata",
        "registry",
        "column_0",
        "row",
    ),
)
"""Names of our parameters, aliases, attributes and arguments."""

RESERVED: Final = (
    "select",
    "from",
    "order",
    "user",
    "group",
    "default",
    "check",
    "all",
    "end",
    "null",
    "true",
    "primary",
)
REFUSED: Final = ("shown", "self", "xmin", "ctid", "tableoid", "__init__", "class", "None", "key_version", "created_at")
INTERNAL_TABLES: Final = frozenset({"patient_data", "encryption_keys"})
ODD: Final = (
    *("Visits", "camelCase", "UPPER", "größe", "ñandú", "Ωμέγα", "имя", "名前", "é", "x́", "ß", "İ", "_", "__", "a1"),
    *(
        "a b",
        "a.b",
        'a"b',
        "a'b",
        "it''s",
        "5%",
        "%s",
        "%(id)s",
        "%%",
        ":x",
        "a:b",
        "::",
        "a\\b",
        "\\:x",
        "-",
        "--x",
        "/*",
        ";",
    ),
    *(
        "$1",
        "{x}",
        "?",
        "@",
        "a\nb",
        "\t",
        "\x1b[31m",
        "\u202e",
        "\u200b",
        " ",
        "😀",
        "1",
        "0x",
        "a,b",
        "(",
        "'); DROP TABLE x;--",
    ),
    *("ﬁ", "Å", "E\u0301"),
)


def _long(draw: Any) -> str:
    """Return a name about as long as PostgreSQL keeps, in bytes, of one or of several bytes a character."""
    letter: str = draw(st.sampled_from("aAéñ字😀"))  # not _, of which PostgreSQL makes the names of its array types
    size: int = draw(st.integers(36, 66))
    ending: str = draw(st.sampled_from(["", "1", "2"]))
    return (letter * size).encode()[:size].decode(errors="ignore") + ending


@st.composite
def names(draw: Any, *, identifier: bool = False) -> str:
    """Return a name of a schema, table or column; one that is an identifier of Python, if a record must have it."""
    kind = draw(st.integers(0, 9))
    if kind <= 2:
        name = draw(st.sampled_from(INTERNAL + RESERVED))
    elif kind <= 4:
        name = draw(st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True))
    elif kind <= 6:
        name = draw(st.sampled_from(ODD))
    elif kind == 7:
        name = draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20))
    elif kind == 8:
        name = _long(draw)
    else:
        name = draw(st.sampled_from(REFUSED + ODD))
    return as_identifier(str(name)) if identifier else str(name)


def as_identifier(name: str) -> str:
    """Return a name of the same script that a record's field can have."""
    name = unicodedata.normalize("NFKC", name)
    name = "".join(each if f"a{each}".isidentifier() else "_" for each in name)
    is_fit = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")
    return unicodedata.normalize("NFKC", name if is_fit else f"n{name}")


def cut(name: str, size: int) -> str:
    """Return a name of at most so many bytes."""
    return name.encode()[:size].decode(errors="ignore")


KEY_TYPES: Final[dict[str, Any]] = {
    "uuid": sa.Uuid(),
    "integer": sa.Integer(),
    "bigint": sa.BigInteger(),
    "text": sa.Text(),
    "collated": sa.Text(collation="C"),
    "varchar": sa.String(40),
    "date": sa.Date(),
}
PLAIN_TYPES: Final[dict[str, Any]] = {
    "text": sa.Text(),
    "varchar": sa.String(40),
    "integer": sa.Integer(),
    "boolean": sa.Boolean(),
    "moment": sa.DateTime(timezone=True),
    "json": JSONB(),
    "bytes": sa.LargeBinary(),
    "decimal": sa.Numeric(12, 2),
    "list": ARRAY(sa.Integer()),
}
UNKEYABLE: Final[dict[str, Any]] = {"char": sa.CHAR(8), "numeric": sa.Numeric(), "nocase": sa.Text(collation="nocase")}

CONVENTIONS: Final[tuple[dict[str, str] | None, ...]] = (
    None,
    {
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    },
    {
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    },
    {"ck": "%(table_name)s_%(constraint_name)s_check", "pk": "%(table_name)s_pkey"},
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """An encrypted field: its kind, whether it has a context of its own, its blind index, and one of a part of its values."""

    kind: Kind
    has_context: bool = False
    normaliser: str | None = None
    is_unique: bool = False
    part: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plain:
    """An unencrypted column: its type, and whether the record has it, it may be NULL, and rows are named by it."""

    type_: str
    is_nullable: bool = False
    is_kept: bool = True
    is_lookup: bool = False


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A table as it is to be declared; fields, keys and plain columns by their names."""

    schema: str | None
    table: str
    key: dict[str, str]
    fields: dict[str, Field]
    plain: dict[str, Plain]
    convention: dict[str, str] | None = None
    args: str = "none"
    has_mixin: bool = True
    form: str = "three classes"
    has_server_key: bool = False
    number: str = ""

    def declare(self) -> type[Repository[Any]]:
        """Declare model, record and repository, or one class.

        Raises:
            ValueError, TypeError: It is refused.
        """
        if self.form == "one class":
            return self._declare_one()
        base: Any = type("Base", (DeclarativeBase,), {"metadata": sa.MetaData(naming_convention=self.convention)})
        body: dict[str, Any] = {
            "__tablename__": self.table,
            "__module__": __name__,
            "__table_args__": self._table_args(),
        }
        types = KEY_TYPES | UNKEYABLE
        # Alembic's comparison fails on a sequence with an apostrophe in its name.
        serial: Any = False if any("'" in name for name in (self.schema or "", self.table, *self.key)) else "auto"
        for position, (name, type_) in enumerate(self.key.items()):
            options: dict[str, Any] = {"primary_key": True, "autoincrement": serial}
            body[f"key{position}"] = mapped_column(name, types[type_], *self._identity(), **options | self._default())
        for position, (name, plain) in enumerate(self.plain.items()):
            body[f"plain{position}"] = mapped_column(
                name, PLAIN_TYPES[plain.type_], nullable=plain.is_nullable, unique=plain.is_lookup
            )
        for position, (name, each) in enumerate(self.fields.items()):
            context = f"given-{self.number}.{position}" if each.has_context else None
            body[f"{name}_encrypted"] = encrypted_column(each.kind, context=context)
            if each.normaliser is not None:
                body[f"{name}_index"] = blind_index_column(each.normaliser, context=context, unique=each.is_unique)
            if each.part is not None:
                body[f"{name}_part_index"] = blind_index_column(each.part, of=name, context=context)
        if not self.has_mixin:
            body["version"] = mapped_column("key_version", sa.BigInteger, nullable=False)
        mixin = EncryptedInPlace if self.form == "in place" else EncryptedRow
        row: Any = type("Row", (*((mixin,) if self.has_mixin else ()), base), body)
        kept = [*self.key, *(name for name, plain in self.plain.items() if plain.is_kept), *self.fields]
        of_record: dict[str, Any] = {"__annotations__": dict.fromkeys(kept, Any), "__module__": __name__}
        if self.has_server_key:
            of_record |= {name: field(init=False) for name in self.key}
        made: Any = record(type("Made", (Record,), of_record))
        lookup = next(((name,) for name, plain in self.plain.items() if plain.is_lookup), ())
        return type("Rows", (Repository,), {"model": row, "record": made, "lookup": lookup})

    def _identity(self) -> list[Any]:
        return [sa.Identity()] if self.has_server_key and "uuid" not in self.key.values() else []

    def _default(self) -> dict[str, Any]:
        return {"server_default": sa.func.gen_random_uuid()} if self.has_server_key and not self._identity() else {}

    def _declare_one(self) -> type[Repository[Any]]:
        """Declare it by one class, which has no column but its fields."""
        annotations: dict[str, Any] = {}
        body: dict[str, Any] = {"__annotations__": annotations, "__module__": __name__}
        for name, type_ in self.key.items():
            of_server = [mapped_column(*self._identity(), **self._default())] if self.has_server_key else []
            annotations[name] = Annotated[(Any, (KEY_TYPES | UNKEYABLE)[type_], *of_server)]
            body[name] = key(init=not self.has_server_key)
        for name, plain in self.plain.items():
            if plain.is_kept:
                made = mapped_column(PLAIN_TYPES[plain.type_], nullable=plain.is_nullable, unique=plain.is_lookup)
                annotations[name] = Annotated[Any, made]
        for position, (name, each) in enumerate(self.fields.items()):
            context = f"given-{self.number}.{position}" if each.has_context else None
            also = {f"{name}_part": each.part} if each.part else {}
            mark = Encrypted(search=each.normaliser, also=also, unique=each.is_unique, context=context)
            annotations[name] = Annotated[PYTHON_TYPES[each.kind] | None, mark]
        *items, options = self._table_args()
        schema = options.pop("schema")
        body["__table_args__"] = (*items, options)
        metadata = sa.MetaData(naming_convention=self.convention)
        given: dict[str, Any] = {"table": self.table, "metadata": metadata, "schema": schema}
        declared: Any = types.new_class("Made", (EncryptedRecord,), given, lambda namespace: namespace.update(body))
        lookup = next(((name,) for name, plain in self.plain.items() if plain.is_lookup), ())
        return type("Rows", (Repository,), {"record": declared, "lookup": lookup})

    def _table_args(self) -> Any:
        first = next(iter(self.key))
        options: dict[str, Any] = {"schema": self.schema}
        items: tuple[Any, ...] = ()
        if self.args == "index":
            items = (sa.Index(None if self.convention and "ix" in self.convention else f"own_{self.number}", first),)
        elif self.args in {"storage", "fillfactor"} and not HAS_STORAGE_OPTIONS:
            pass
        elif self.args == "storage":
            options["postgresql_with"] = {"autovacuum_enabled": "off"}
        elif self.args == "fillfactor":
            options["postgresql_with"] = {"fillfactor": "60"}
        elif self.args == "partitions":
            quoted = first.replace('"', '""')
            options["postgresql_partition_by"] = f'HASH ("{quoted}")'
        elif self.args == "check":
            items = (sa.CheckConstraint("key_version > 0", name="positive"),)
        return (*items, options)


PYTHON_TYPES: Final[dict[Kind, Any]] = {
    Kind.TEXT: str,
    Kind.BYTES: bytes,
    Kind.DATE: date,
    Kind.DATETIME: datetime,
    Kind.INTEGER: int,
    Kind.DECIMAL: Decimal,
    Kind.JSON: dict[str, Any],
}
NORMALISERS: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.TEXT: ("exact", "mrn", "name", "ssn", "phone", "email", "postcode"),
    Kind.DATE: ("date",),
    Kind.INTEGER: ("integer",),
}
PARTS: Final = {"name": ("name:1", "name:3"), "postcode": ("postcode:3",), "date": ("date:month", "date:year")}


@st.composite
def fields(draw: Any) -> Field:
    """Return an encrypted field."""
    kind = draw(st.sampled_from(Kind))
    known = NORMALISERS.get(kind, ())
    normaliser = draw(st.none() | st.sampled_from(known)) if known else None
    is_unique = normaliser is not None and draw(st.booleans())
    part = draw(st.none() | st.sampled_from(PARTS[normaliser])) if normaliser in PARTS else None
    return Field(kind=kind, has_context=draw(st.booleans()), normaliser=normaliser, is_unique=is_unique, part=part)


@st.composite
def plain_columns(draw: Any) -> Plain:
    """Return a plain column."""
    is_kept = draw(st.booleans())
    return Plain(
        type_=draw(st.sampled_from(sorted(PLAIN_TYPES))),
        is_nullable=not is_kept or draw(st.booleans()),
        is_kept=is_kept,
    )


@st.composite
def declarations(draw: Any) -> Declaration:
    """Return a declaration. Three in four are sound, with names of every kind; of the others something may have to be refused."""
    is_sound = draw(st.integers(0, 3)) > 0
    any_name = names()
    in_record = names(identifier=is_sound or draw(st.booleans()))
    types = sorted(KEY_TYPES) if is_sound else sorted(KEY_TYPES) * 3 + sorted(UNKEYABLE)
    key: dict[str, str] = draw(st.dictionaries(in_record, st.sampled_from(types), min_size=1, max_size=3))
    made: dict[str, Field] = draw(st.dictionaries(in_record, fields(), min_size=1, max_size=4))
    made.pop("_", None)  # SQLAlchemy takes no notice of an attribute __encrypted
    made = made or {"note": Field(kind=Kind.TEXT)}
    plain: dict[str, Plain] = {}
    for name, column in draw(st.dictionaries(any_name, plain_columns(), max_size=4)).items():
        is_kept = column.is_kept and as_identifier(name) == name
        plain[name] = replace(column, is_nullable=column.is_nullable or not is_kept, is_kept=is_kept)
    has_mixin = draw(st.booleans())
    table, schema = draw(any_name), draw(st.none() | any_name)
    # What SQLAlchemy itself refuses: two columns of one name.
    taken = {"key_version", *(("created_at", "updated_at") if has_mixin else ())}
    taken |= {f"{name}_{suffix}" for name in made for suffix in ("encrypted", "index", "part_index")}
    if is_sound:
        table, schema = cut(table.replace(".", ""), 63) or "t", schema and cut(schema.replace(".", ""), 63)
        if table in INTERNAL_TABLES:
            schema = schema or "team"
        if schema is not None and schema.startswith("pg_"):
            schema = None
        made = _sound_fields(made)
        taken |= {*REFUSED, *made, *(name.casefold() for name in made)}
    key = {name: type_ for name, type_ in key.items() if _is_free(name, taken, is_sound)} or {"id_": "uuid"}
    plain = {name: each for name, each in plain.items() if _is_free(name, taken, is_sound) and name not in key}
    args = draw(st.sampled_from(["none", "none", "index", "storage", "fillfactor", "partitions", "check"]))
    if args == "partitions":  # whose unique indexes must hold the partition key
        made = {name: Field(kind=each.kind, has_context=each.has_context) for name, each in made.items()}
    elif draw(st.booleans()) and "code" not in {*key, *made}:
        plain["code"] = Plain(type_=draw(st.sampled_from(["text", "varchar", "integer", "bytes"])), is_lookup=True)
    form = draw(st.sampled_from(["one class", "in place", "three classes", "three classes"]))
    has_mixin = has_mixin or form != "three classes"
    # Alembic's comparison fails on a sequence with an apostrophe in its name.
    is_quoted = any("'" in each for each in (schema or "", table, *key))
    has_server_key = args != "partitions" and form != "in place" and not is_quoted and draw(st.integers(0, 2)) == 0
    if has_server_key:
        key = {next(iter(key)): draw(st.sampled_from(["uuid", "integer", "bigint"]))}
    convention = draw(st.sampled_from(CONVENTIONS))
    return Declaration(
        schema=schema,
        table=table,
        key=key,
        fields=made,
        plain=plain,
        convention=convention,
        args=args,
        has_mixin=has_mixin,
        form=form,
        has_server_key=has_server_key,
    )


def _sound_fields(made: dict[str, Field]) -> dict[str, Field]:
    """Return fields whose columns' names are not cut, of which none is like another one."""
    sound: dict[str, Field] = {}
    for name, each in made.items():
        short = as_identifier(cut(name, 52))
        if short.casefold() not in {other.casefold() for other in sound} and short not in REFUSED:
            sound[short] = each
    return sound or {"note": Field(kind=Kind.TEXT)}


def _is_free(name: str, taken: set[str], is_sound: bool) -> bool:
    return name not in taken and not (is_sound and (name.casefold() in taken or len(name.encode()) > 63))
