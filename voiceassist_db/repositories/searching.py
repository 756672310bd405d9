"""A search by blind indexes: which tokens it looks for, and which of the rows that have one hold the value itself.

Owns one condition of a search. Executes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from voiceassist_db import normalisers
from voiceassist_db.blind_index import spellings, token, unified
from voiceassist_db.errors import ValueFormatError
from voiceassist_db.keyring import Keyring
from voiceassist_db.models import BlindIndex, EncryptedTable
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import dumped_tokens
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.repositories.parameters import Parameters
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rows import normalised


class Searched:
    """A blind index that a repository searches.

    Args:
        table: The table.
        index: The blind index.

    Attributes:
        index: The blind index.
        field: Its field.
        parameter: Name of the parameter for the tokens that are looked for.
        length: How many characters of the form it compares; 0 where it compares all.
        spells: Whether a form can be spelled in several ways, of which a row may have any.
        is_own_form: Whether a form is its own form.
    """

    __slots__ = ("field", "index", "is_own_form", "length", "parameter", "spells")

    def __init__(self, table: EncryptedTable, index: BlindIndex) -> None:
        self.index = index
        self.field = table.fields[index.field]
        self.parameter = Parameters(table.table).where(index.column)
        self.length = normalisers.part_of(index.normaliser)
        self.spells = index.normaliser == "name"
        self.is_own_form = normalisers.is_ours(index.normaliser)


def searched(table: EncryptedTable) -> dict[str, Searched]:
    """Return what a repository searches, by the names that ``find`` takes."""
    return {each.name: Searched(table, each) for each in table.indexes}


class Condition:
    """One blind index of a search, and the values of which a row may have any.

    Args:
        table: The table.
        by: What is searched.
        values: The values.

    Attributes:
        index: The blind index.
        field: Its field.
        parameter: Name of the parameter for :meth:`tokens`.
        forms: The forms of the values; rows without one of them are not found.

    Raises:
        ValueError: A value has no form by which it could be searched.
    """

    __slots__ = ("_by", "_sought", "_table", "field", "forms", "index", "parameter")

    def __init__(self, table: EncryptedTable, by: Searched, values: Iterable[Any]) -> None:
        self._table = table
        self._by = by
        index = by.index
        self.index, self.field, self.parameter = index, by.field, by.parameter
        self.forms = self._sought = {normalised(index, value) for value in values}
        if by.spells:
            self._sought = {each for form in self.forms for each in spellings(form)}
            self.forms = {unified(form) for form in self.forms}
        elif by.length and min(map(len, self.forms), default=by.length) < by.length:
            raise ValueError(f"{index.name} compares the first {by.length} characters of {index.field}: give so many")

    def tokens(self, keyring: Keyring) -> Array:
        """Return the tokens of the values under all live index keys, as one parameter."""
        keys = keyring.index_column_keys(self.index.info)
        return dumped_tokens([token(key, form) for key in keys for form in self._sought])

    def holds(self, record: Record) -> bool:
        """Say whether a record has one of the values: a token says where to look, and only the value says that it is the one.

        Raises:
            ValueFormatError: It has a value that an earlier version indexed and that has no form now.
        """
        stored = getattr(record, self.index.field)
        if self._by.is_own_form and stored in self.forms:
            return True
        return stored is not None and self._form(record, stored) in self.forms

    def _form(self, record: Record, stored: Any) -> str:
        try:
            form = normalised(self.index, stored)
            return unified(form) if self._by.spells else form
        except ValueError as error:
            problem = error.args[0]
        row_id = codec.row_id([getattr(record, each.name) for each in self._table.key])
        raise ValueFormatError(
            f"{self._table.name} has a value that an earlier version indexed and that cannot be searched: in row {row_id}, "
            f"{problem}. Correct it by update().",
            table=self._table.name,
            field=self.index.field,
            row_id=row_id,
        )


def conditions(table: EncryptedTable, known: Mapping[str, Searched], values: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of a search.

    Args:
        table: The table.
        known: What can be searched, by name.
        values: By name, a value; or a list, tuple or set of values, of which a row may have any.

    Raises:
        ValueError: There is no such index, or a value has no form by which it could be searched.
        ConfigurationError: This process lacks the normaliser of an index.
    """
    made = []
    for name, value in values.items():
        by = known.get(name)
        if by is None:
            raise _unsearchable(table, name)
        made.append(Condition(table, by, value if isinstance(value, list | tuple | set | frozenset) else (value,)))
    if not made:
        raise ValueError(f"name what to search for. {_searchable(table)}")
    return made


def _unsearchable(table: EncryptedTable, name: str) -> ValueError:
    if name in table.fields:
        problem = f"{name} has no blind index of whole values, so PostgreSQL cannot search it"
    elif name in table.table.c:
        problem = f"{name} is not encrypted: select() searches it, by a criterion such as Row.{name} == value"
    else:
        problem = f"{table.name} has no field {name}"
    return ValueError(f"{problem}. {_searchable(table)}")


def _searchable(table: EncryptedTable) -> str:
    names = [each.name for each in table.indexes]
    if names:
        return f"find() searches {table.name} by {', '.join(names)}"
    return f"No field of {table.name} has a blind index: declare one with blind_index_column()"
