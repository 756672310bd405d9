"""One class that declares an encrypted table and is the record of its rows.

Owns :class:`EncryptedRecord`. The columns, CHECKs and comments are made by ``models``, the record by ``records``, the repository by
``repository``, as where each has a class of its own.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import field
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, TypeVar, dataclass_transform, overload
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    MetaData,
    Table,
    Text,
    func,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from voiceassist_db.models import Base, EncryptedRow, blind_index_column, encrypted_column, table_of
from voiceassist_db.models.declaration import ENCRYPTED_SUFFIX, INDEX_SUFFIX
from voiceassist_db.repositories.annotations import Annotation, Encrypted, is_of_sqlalchemy
from voiceassist_db.repositories.records import Record, record
from voiceassist_db.repositories.repository import Repository
from voiceassist_db.repositories.rows import BOOKKEEPING

T = TypeVar("T")

_IS_KEY: Final = "voiceassist_db.key"
_TYPES: Final[dict[Any, Any]] = {str: Text, datetime: DateTime(timezone=True)}
"""SQL types of plain columns, where SQLAlchemy's own would cut or change values."""

_OF_FOREIGN_KEYS: Final = (
    "name",
    "onupdate",
    "ondelete",
    "deferrable",
    "initially",
    "match",
    "use_alter",
    "info",
    "comment",
)

KEY_FIRST: Final = -1
"""Sort order of the primary key's columns."""


@overload
def key(*, default_factory: Callable[[], T]) -> T: ...


@overload
def key(*, init: bool = True) -> Any: ...


def key(*, default_factory: Any = dataclasses.MISSING, init: bool = True) -> Any:
    """Declare a column of the primary key, to which values are bound. An example is in :class:`EncryptedRecord`.

    Args:
        default_factory: What makes the key of a new record. Without it, the application gives each key.
        init: False where the server makes the key, and ``add`` returns it: ``id: int = key(init=False)``.
    """
    return field(default_factory=default_factory, init=init, metadata={_IS_KEY: True})


class _Declaring(type):
    """Makes the classes of records that declare a table. A dataclass with slots is made anew, so ``__init_subclass__`` could not."""

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        table: str | None = None,
        metadata: MetaData | None = None,
        schema: str | None = None,
    ) -> Any:
        cell = namespace.get("__classcell__")
        made: Any = super().__new__(mcs, name, bases, namespace)
        if "__dataclass_fields__" in namespace or not any(isinstance(each, _Declaring) for each in bases):
            return made  # by dataclass, the second time; or EncryptedRecord itself
        if (table is None) != (metadata is None):
            raise TypeError(
                f"class {name} needs both, table= and metadata=; or none of them, as a base of other records"
            )
        made = record(made)
        if cell is not None:
            cell.cell_contents = made  # what super() in its methods refers to
        if table is None and hasattr(made, "__table__"):
            raise TypeError(
                f"class {name} has no table=, but inherits from a class that has one, whose rows are of that class: give it a table of its "
                "own, or put the fields that both have into a base without a table"
            )
        if table is not None and metadata is not None:
            made.__model__ = _model(made, table, metadata, schema)
            made.__table__ = table_of(made.__model__)
            body = {"record": made, "__module__": made.__module__, "__doc__": f"The rows of {table}."}
            made.__repository__ = type(f"{name}Repository", (Repository,), body)
        return made

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: Any) -> None:
        super().__init__(name, bases, namespace)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, key))
class EncryptedRecord(Record, metaclass=_Declaring):
    """Base of classes that declare an encrypted table and are the record of its rows.

    ::

        class Appointment(EncryptedRecord, table="appointments", metadata=Base.metadata):
            starts_at: datetime
            patient: Annotated[UUID, ForeignKey("patients.id")]
            reason: Annotated[str | None, Encrypted(search="name")] = None
            id: UUID = key(default_factory=uuid7)

    The class takes ``table``, its name; ``metadata``, the application's; and ``schema``. ``__table_args__`` is SQLAlchemy's. What stands
    in ``Annotated`` of a plain field is an argument of its column, or a ``mapped_column()``. Fields of a base class without a table are
    inherited. An annotation is evaluated when the class is made.

    ``tx.repository(Appointment)`` reads and writes it. A ``Repository`` with finders of its own names it as its ``record``.

    Attributes:
        __table__: The table.
    """

    __slots__ = ()
    __table__: ClassVar[Table]
    __model__: ClassVar[type[DeclarativeBase]]
    __repository__: ClassVar[type[Repository[Any]]]


def _model(made: Any, table: str, metadata: MetaData, schema: str | None) -> type[DeclarativeBase]:
    """Return the model of a record's table.

    Raises:
        TypeError: An annotation cannot be evaluated, or there is no column for it.
        ValueError: A declaration cannot be followed.
    """
    body: dict[str, Any] = {"__tablename__": table, "__module__": made.__module__}
    body["__table_args__"] = _table_args(made, metadata, schema)
    body |= _columns(made, metadata)
    of_its_own = {"metadata": metadata, "type_annotation_map": _TYPES, "__module__": __name__}
    base: Any = type("Base", (DeclarativeBase,), of_its_own)
    try:
        model: type[DeclarativeBase] = type(f"{made.__name__}Row", (EncryptedRow, base), body)
    except SQLAlchemyError as error:
        raise TypeError(f"{made.__name__}: {error}") from error
    for each in table_of(model).foreign_keys:
        if _of_package(each, metadata) is not None:
            raise TypeError(
                f"{made.__name__}: write ForeignKey({each.target_fullname!r}) beside mapped_column() in Annotated, and not within it"
            )
    return model


def _columns(made: Any, metadata: MetaData) -> dict[str, Any]:
    """Return the attributes of a model that make the columns of a record's fields, and their annotations.

    Raises:
        TypeError, ValueError: As for :func:`_model`.
    """
    mapped: dict[str, Any] = {}
    body: dict[str, Any] = {"__annotations__": mapped}
    annotations = _annotations(made)
    names: list[str] = []
    tokens: dict[str, Any] = {}
    for position, each in enumerate(dataclasses.fields(made)):
        if each.name in BOOKKEEPING:
            continue
        try:
            annotation = Annotation.of(annotations[each.name])
            mark = annotation.encrypted
            names += _column_names(each.name, mark)
            if mark is None:
                body[f"column_{position}"] = _plain(each, annotation, metadata)
                mapped[f"column_{position}"] = _mapped(annotation)
                continue
            body[f"{each.name}{ENCRYPTED_SUFFIX}"] = _encrypted(each, annotation, mark)
        except (TypeError, SQLAlchemyError) as error:
            raise TypeError(f"{made.__name__}.{each.name}: {error}") from None
        if mark.search is not None:
            token = blind_index_column(mark.search, context=mark.context, unique=mark.unique)
            tokens[f"{each.name}{INDEX_SUFFIX}"] = token
        for name, part in mark.also.items():
            tokens[f"{name}{INDEX_SUFFIX}"] = blind_index_column(part, of=each.name, context=mark.context)
    if twice := {each for each in names if names.count(each) > 1}:
        raise TypeError(f"{made.__name__}: two columns would be called {min(twice)}: choose another name")
    return body | tokens  # behind all others


def _column_names(field_name: str, mark: Encrypted | None) -> list[str]:
    """Return the names of a field's columns."""
    if mark is None:
        return [field_name]
    indexes = [field_name] if mark.search is not None else []
    return [f"{field_name}{ENCRYPTED_SUFFIX}", *(f"{name}{INDEX_SUFFIX}" for name in (*indexes, *mark.also))]


def _annotations(made: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(made, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{made.__name__}: its annotations cannot be evaluated ({error}): import what they name outside of TYPE_CHECKING, and declare the "
            "class where that name is global"
        ) from None


def _table_args(made: Any, metadata: MetaData, schema: str | None) -> Any:
    given = getattr(made, "__table_args__", ())
    options = {} if schema is None else {"schema": schema}
    if isinstance(given, dict):
        return given | options
    *items, last = given or ({},)
    items, options = (items, last | options) if isinstance(last, dict) else ([*given], options)
    return (*(_resolved(each, metadata) for each in items), options)


def _encrypted(each: dataclasses.Field[Any], annotation: Annotation, mark: Encrypted) -> MappedColumn[Any]:
    """Return the encrypted column of a field.

    Raises:
        TypeError: There is none for it.
    """
    if _IS_KEY in each.metadata:
        raise TypeError("a key cannot be encrypted: values are bound to it")
    return encrypted_column(annotation.kind(), context=mark.context, nullable=annotation.is_nullable)


def _plain(each: dataclasses.Field[Any], annotation: Annotation, metadata: MetaData) -> MappedColumn[Any]:
    """Return the column of a field that is not encrypted, named as the field: an attribute ``metadata`` would be SQLAlchemy's own.

    Raises:
        TypeError: There is none for it.
    """
    extras = [each for each in annotation.extras if is_of_sqlalchemy(each) and not isinstance(each, MappedColumn)]
    if odd := [each for each in extras if not _is_item(each)]:
        raise TypeError(
            f"{odd[0]!r} is no argument of a column: use mapped_column(…) in Annotated, or __table_args__ of the class"
        )
    # A copy: one alias, such as PatientId = Annotated[UUID, ForeignKey(…)], may stand for several columns.
    items = [_copied(each, metadata) if isinstance(each, SchemaItem) else each for each in extras]
    items.sort(key=lambda each: isinstance(each, SchemaItem))  # Column takes the type first
    if _IS_KEY not in each.metadata:
        return mapped_column(each.name, *items)
    options: dict[str, Any] = {"primary_key": True, "sort_order": KEY_FIRST}
    is_told = any(isinstance(item, Identity | Computed | MappedColumn) for item in annotation.extras)
    if each.init and not is_told:
        options["autoincrement"] = False  # the application makes the keys: no sequence
    elif not is_told:
        items += [Identity()] if annotation.members == (int,) else []
        options |= {"server_default": func.gen_random_uuid()} if annotation.members == (UUID,) else {}
    return mapped_column(each.name, *items, **options)


def _copied(item: Any, metadata: MetaData) -> Any:
    """Return a copy; a foreign key to a table of this package names its column, for another metadata would not find it by its name."""
    if isinstance(item, ForeignKey) and (column := _of_package(item, metadata)) is not None:
        return ForeignKey(column, **{name: getattr(item, name) for name in _OF_FOREIGN_KEYS})
    return item._copy()  # noqa: SLF001  # as Table.to_metadata does


def _resolved(item: Any, metadata: MetaData) -> Any:
    """Return an item of ``__table_args__``, where a foreign key to a table of this package names its columns."""
    if not isinstance(item, ForeignKeyConstraint):
        return item
    columns = [found for each in item.elements if (found := _of_package(each, metadata)) is not None]
    if len(columns) < len(item.elements):
        return item
    return ForeignKeyConstraint(item.column_keys, columns, **{name: getattr(item, name) for name in _OF_FOREIGN_KEYS})


def _of_package(key: ForeignKey, metadata: MetaData) -> Column[Any] | None:
    """Return the column of this package to which a foreign key refers by its name, where the metadata has no table of this name."""
    if not isinstance(key._colspec, str):  # noqa: SLF001  # there is no other way to ask before it has a table
        return None
    table, _, column = key.target_fullname.rpartition(".")
    if table in metadata.tables or table not in Base.metadata.tables:
        return None
    return Base.metadata.tables[table].c.get(column)


def _is_item(extra: Any) -> bool:
    """Say whether ``Column`` takes an object beside the name."""
    if isinstance(extra, type):
        return issubclass(extra, TypeEngine)
    return isinstance(extra, TypeEngine | ForeignKey | Identity | Computed | CheckConstraint)


def _mapped(annotation: Annotation) -> Any:
    """Return the annotation by which SQLAlchemy chooses the type, whether a column may be NULL, and what a ``mapped_column`` adds."""
    columns = [each for each in annotation.extras if isinstance(each, MappedColumn)]
    return Mapped[Annotated[(annotation.type, *columns)] if columns else annotation.type]  # type: ignore[misc]  # made at run time
