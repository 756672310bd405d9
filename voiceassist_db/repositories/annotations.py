"""What the annotation of a field says of its column: the type, whether it may be NULL, and whether it is encrypted.

Owns :class:`Encrypted` and the reading of annotations. Makes no column and no class.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Union

from voiceassist_db.models import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """Marks a field as encrypted: ``Annotated[str | None, Encrypted(search="name")]``.

    Attributes:
        search: Normaliser of the field's blind index; None where nobody searches it.
        also: Normalisers of further blind indexes, of a part of the values, by the names that ``find`` takes: ``{"name_start": "name:3"}``.
        unique: Whether no two rows may have the same value. Needs ``search``.
        context: As for ``encrypted_column``.
    """

    search: str | None = None
    also: Mapping[str, str] = field(default_factory=dict, hash=False)
    unique: bool = False
    context: str | None = None

    def __post_init__(self) -> None:
        if self.unique and self.search is None:
            raise ValueError("Encrypted(unique=True) needs search=: only a blind index can be unique")


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation, taken apart.

    Attributes:
        members: Its types, without None.
        is_nullable: Whether None is one of them.
        extras: What stands behind the type in ``Annotated``.
    """

    members: tuple[Any, ...]
    is_nullable: bool
    extras: tuple[Any, ...]

    @classmethod
    def of(cls, annotation: Any) -> Annotation:
        """Take an annotation apart, in whichever order ``Annotated`` and ``None`` are nested."""
        extras: list[Any] = []
        members = tuple(_members(annotation, extras))
        kept = tuple(each for each in members if each is not types.NoneType)
        return cls(kept, len(kept) < len(members), tuple(extras))

    @property
    def type(self) -> Any:
        """The type as Python has it, without extras."""
        return Union[(*self.members, *((None,) if self.is_nullable else ()))]

    @property
    def encrypted(self) -> Encrypted | None:
        """What says that the field is encrypted; None where it is not.

        Raises:
            TypeError: It is said twice, or beside a column's own arguments, which an encrypted column does not take.
        """
        found = [Encrypted() if each is Encrypted else each for each in self.extras]
        marks = [each for each in found if isinstance(each, Encrypted)]
        if not marks:
            return None
        for each in found:
            if each is not marks[0] and (type(each) is Encrypted or is_of_sqlalchemy(each)):
                raise TypeError(f"{type(each).__name__} cannot stand beside Encrypted, which makes the column")
        return marks[0]

    def kind(self) -> Kind:
        """Return the kind of encrypted value that the type is.

        Raises:
            TypeError: There is none for it.
        """
        if len(self.members) == 1 and (kind := _KINDS.get(self.members[0])) is not None:
            return kind
        if self.members and all(map(_is_json, self.members)):
            return Kind.JSON
        raise TypeError(
            f"values of type {self.type} cannot be encrypted: use str, bytes, date, datetime, int, Decimal, or dict, list or Any for JSON"
        )


def _members(annotation: Any, extras: list[Any]) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        first, *others = typing.get_args(annotation)
        extras += others
        yield from _members(first, extras)
    elif origin in {Union, types.UnionType}:
        for each in typing.get_args(annotation):
            yield from _members(each, extras)
    elif type(annotation).__name__ == "TypeAliasType":  # of Python 3.12: type Reason = …
        yield from _members(annotation.__value__, extras)
    else:
        yield annotation


_KINDS: Final[dict[Any, Kind]] = {
    str: Kind.TEXT,
    bytes: Kind.BYTES,
    date: Kind.DATE,
    datetime: Kind.DATETIME,
    int: Kind.INTEGER,
    Decimal: Kind.DECIMAL,
}
_OF_JSON: Final = (Any, dict, list, Mapping, MutableMapping, Sequence, MutableSequence)


def _is_json(member: Any) -> bool:
    return (typing.get_origin(member) or member) in _OF_JSON or typing.is_typeddict(member)


def is_of_sqlalchemy(extra: Any) -> bool:
    """Say whether an extra is SQLAlchemy's, and not another library's."""
    kind = extra if isinstance(extra, type) else type(extra)
    return kind.__module__.startswith("sqlalchemy.")
