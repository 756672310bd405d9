"""What application code holds: frozen records that show no patient's value when printed.

Owns :class:`Record` and the records of the patient tables. Knows no SQL and no key.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar, dataclass_transform
from uuid import UUID

import uuid_utils.compat

from voiceassist_db import forks
from voiceassist_db.errors import FieldNotLoadedError

T = TypeVar("T")
R = TypeVar("R", bound="Record")


def uuid7() -> UUID:
    """Make a new id: a UUID of version 7 (RFC 9562), which begins with the time and which no other process makes."""
    forks.follow()
    return uuid_utils.compat.uuid7()


class Record:
    """Base of all records: masks its values, and refuses to give a field that was not read.

    Code that names a field gets its value. So does code that takes the whole record: ``dataclasses.asdict`` and ``pickle``.
    A record that was read with ``fields=`` can be compared, copied and pickled. It is equal to one with the same fields read and the same
    values. ``dataclasses.asdict`` and ``dataclasses.replace`` refuse it.
    What prints a record shows ``shown`` alone.

    Attributes:
        shown: Names of the fields that may appear in ``repr``; every other one is masked.
    """

    __slots__ = ()
    shown: ClassVar[frozenset[str]] = frozenset({"id"})

    def __repr__(self) -> str:
        parts = []
        for each in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass, by @record
            if not each.repr:
                continue
            try:
                value = object.__getattribute__(self, each.name)
            except AttributeError:
                parts.append(f"{each.name}=<not loaded>")
                continue
            parts.append(f"{each.name}={value!r}" if value is None or each.name in self.shown else f"{each.name}=•••")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __dir__(self) -> list[str]:
        # rich.inspect and debuggers print the value of each name in it.
        masked = {each.name for each in dataclasses.fields(self)} - self.shown  # type: ignore[arg-type]  # as above
        return [name for name in super().__dir__() if name not in masked]

    # By hand: where a dataclass made __eq__, pytest prints the values of all fields that differ.
    def __eq__(self, other: object) -> bool:
        return self._compared() == other._compared() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[Any, ...]:
        return tuple(_loaded(self, each.name) for each in dataclasses.fields(self) if each.compare)  # type: ignore[arg-type]  # as above

    # In place of what a dataclass does: that would ask for fields which were not read.
    def __reduce__(self) -> tuple[Any, ...]:
        read = ((each.name, _loaded(self, each.name)) for each in dataclasses.fields(self))  # type: ignore[arg-type]  # as above
        return _restored, (type(self), {name: value for name, value in read if value is not _NOT_LOADED})

    if not TYPE_CHECKING:  # or a type checker would let every misspelled field pass

        def __getattr__(self, name: str) -> NoReturn:
            # Only reached where the slot is empty, or where there is no such attribute at all.
            if name in getattr(type(self), "__dataclass_fields__", {}):
                raise FieldNotLoadedError(f"{type(self).__name__} was read without {name!r}: add it to fields=")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_NOT_LOADED: Final = object()


def _loaded(record: Record, name: str) -> Any:
    """Return a field's value; a marker where it was not read."""
    try:
        return object.__getattribute__(record, name)
    except AttributeError:
        return _NOT_LOADED


def lacks(record: Record, name: str) -> bool:
    """Say whether a record has no value of a field: it was not read, or the server makes it."""
    return _loaded(record, name) is _NOT_LOADED


def with_values(record: R, values: Mapping[str, Any]) -> R:
    """Return a copy of a record that has these values, too."""
    _, (cls, known) = record.__reduce__()
    made: R = _restored(cls, {**known, **values})
    return made


def _restored(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return a copied or unpickled record, which has the fields that the original had."""
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Turn a subclass of :class:`Record` into a frozen, keyword-only dataclass whose repr stays masked.

    Fields are named as the table's encrypted fields (``ssn``, not ``ssn_encrypted``) and plain columns.

    Args:
        cls: The class.

    Returns:
        The same class.

    Raises:
        TypeError: It is no subclass of ``Record``, or a field has a name by which no code could read it.
    """
    if not issubclass(cls, Record):
        raise TypeError(f"{cls.__name__} must be a subclass of Record")
    for name in vars(cls).get("__annotations__", {}):
        # Two underscores at the beginning make a name of the class alone, which Python mangles; and it reads source in NFKC.
        is_plain = name.isidentifier() and not iskeyword(name) and unicodedata.normalize("NFKC", name) == name
        if not is_plain or name.startswith("__"):
            raise TypeError(
                f"{cls.__name__} cannot have a field {name!r}, by which no code could read it: give the column another name"
            )
    made: type[T] = dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)(cls)
    for each in dataclasses.fields(made):  # type: ignore[arg-type]  # made just now
        # A field called shown would decide which fields the repr masks. A ClassVar of that name is no field.
        if hasattr(Record, each.name) or each.name == "self":
            raise TypeError(
                f"{cls.__name__} cannot have a field {each.name!r}, which means something else: give the column another name"
            )
    return made


@record
class Patient(Record):
    """One patient.

    Attributes:
        patient_id: The external id, such as ``PT-001``; unique, and not encrypted. New ones have one form: no blanks at the ends,
            no invisible characters, single spaces, plain hyphens, NFKC (``voiceassist_db.spelling``); case matters.
        ssn: Social security number, nine digits in any spelling; two patients may have the same.
        mrn: Medical record number; unique.
        name: Full name; like ssn and mrn, absent (None) rather than empty, for it is searched by.
        date_of_birth: Date of birth.
        address: Postal address, any JSON object.
        id: UUIDv7, made here so that values can be bound to it before the row exists.
        created_at: When the row was written; None on a record that was not read from the database.
        updated_at: When it was changed last.
    """

    shown: ClassVar[frozenset[str]] = frozenset({"id", "patient_id"})

    patient_id: str
    ssn: str | None = None
    mrn: str | None = None
    name: str | None = None
    date_of_birth: date | None = None
    address: Mapping[str, Any] | None = None
    id: UUID = field(default_factory=uuid7)
    created_at: datetime | None = field(default=None, compare=False, repr=False)
    updated_at: datetime | None = field(default=None, compare=False, repr=False)


@record
class ClinicalNote(Record):
    """One note on a patient.

    Attributes:
        patient: ``Patient.id`` of the patient.
        note: The text, of any length.
        metadata: Any JSON object: author, department, codes.
        id: UUIDv7, made here.
        created_at: When the row was written; None on a record that was not read from the database.
        updated_at: When it was changed last.
    """

    shown: ClassVar[frozenset[str]] = frozenset({"id", "patient"})

    patient: UUID
    note: str
    metadata: Mapping[str, Any] | None = None
    id: UUID = field(default_factory=uuid7)
    created_at: datetime | None = field(default=None, compare=False, repr=False)
    updated_at: datetime | None = field(default=None, compare=False, repr=False)
