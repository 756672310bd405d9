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
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rows import normalised


class Condition:
    """One blind index of a search, and the values of which a row may have any.

    Args:
        table: The table.
        index: The blind index.
        values: The values.

    Attributes:
        index: The blind index.
        forms: The forms of the values; rows without one of them are not found.

    Raises:
        ValueError: A value has no form by which it could be searched.
    """

    __slots__ = ("_is_own_form", "_sought", "_spells", "_table", "forms", "index")

    def __init__(self, table: EncryptedTable, index: BlindIndex, values: Iterable[Any]) -> None:
        self._table = table
        self.index = index
        self._spells = index.normaliser == "name"
        self._is_own_form = normalisers.is_ours(index.normaliser)
        self.forms = self._sought = {normalised(index, value) for value in values}
        if self._spells:
            self._sought = {each for form in self.forms for each in spellings(form)}
            self.forms = {unified(form) for form in self.forms}
        elif (length := normalisers.part_of(index.normaliser)) and any(len(form) < length for form in self.forms):
            raise ValueError(f"{index.name} compares the first {length} characters of {index.field}: give so many")

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
        if self._is_own_form and stored in self.forms:
            return True
        return stored is not None and self._form(record, stored) in self.forms

    def _form(self, record: Record, stored: Any) -> str:
        try:
            form = normalised(self.index, stored)
            return unified(form) if self._spells else form
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


def conditions(table: EncryptedTable, values: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of a search.

    Args:
        table: The table.
        values: By name of a blind index, a value; or a list, tuple or set of values, of which a row may have any.

    Raises:
        ValueError: There is no such index, or a value has no form by which it could be searched.
        ConfigurationError: This process lacks the normaliser of an index.
    """
    indexes = {each.name: each for each in table.indexes}
    made = []
    for name, value in values.items():
        index = indexes.get(name)
        if index is None:
            raise _unsearchable(table, name)
        made.append(Condition(table, index, value if isinstance(value, list | tuple | set | frozenset) else (value,)))
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
