"""A search by blind indexes: which tokens it looks for, and which of the rows that have one hold the value itself.

Owns one condition of a search. Executes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from voiceassist_db.blind_index import spellings, token, unified
from voiceassist_db.errors import ValueFormatError
from voiceassist_db.keyring import Keyring
from voiceassist_db.models import EncryptedField, EncryptedTable
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import dumped_tokens
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rows import normalised


class Condition:
    """One field of a search, and the values of which it may have any.

    Args:
        table: The table.
        field: A field with a blind index.
        values: The values.

    Attributes:
        field: The field.
        column: Its index column.
        forms: The forms of the values; rows without one of them are not found.

    Raises:
        ValueError: A value has no form by which it could be searched.
    """

    __slots__ = ("_sought", "_table", "column", "field", "forms")

    def __init__(self, table: EncryptedTable, field: EncryptedField, values: Iterable[Any]) -> None:
        assert field.index_column is not None
        self._table = table
        self.field = field
        self.column = field.index_column
        self.forms = self._sought = {normalised(field, value) for value in values}
        if field.normaliser == "name":
            self._sought = {each for form in self.forms for each in spellings(form)}
            self.forms = {unified(form) for form in self.forms}

    def tokens(self, keyring: Keyring) -> Array:
        """Return the tokens of the values under all live index keys, as one parameter."""
        keys = keyring.index_column_keys(self.field.context)
        return dumped_tokens([token(key, form) for key in keys for form in self._sought])

    def holds(self, record: Record) -> bool:
        """Say whether a record has one of the values: a token says where to look, and only the value says that it is the one.

        Raises:
            ValueFormatError: It has a value that an earlier version indexed and that has no form now.
        """
        stored = getattr(record, self.field.name)
        return stored in self.forms or (stored is not None and self._form(record, stored) in self.forms)

    def _form(self, record: Record, stored: Any) -> str:
        try:
            form = normalised(self.field, stored)
            return unified(form) if self.field.normaliser == "name" else form
        except ValueError as error:
            problem = error.args[0]
        row_id = codec.row_id([getattr(record, each.name) for each in self._table.key])
        raise ValueFormatError(
            f"{self._table.name} has a value that an earlier version indexed and that cannot be searched: in row {row_id}, "
            f"{problem}. Correct it by update().",
            table=self._table.name,
            field=self.field.name,
            row_id=row_id,
        )


def conditions(table: EncryptedTable, values: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of a search.

    Args:
        table: The table.
        values: By field, a value; or a list, tuple or set of values, of which a row may have any.

    Raises:
        ValueError: A field cannot be searched, or a value has no form by which it could be.
    """
    made = []
    for name, value in values.items():
        field = table.fields.get(name)
        if field is None or field.index_column is None:
            raise _unsearchable(table, name)
        made.append(Condition(table, field, value if isinstance(value, list | tuple | set | frozenset) else (value,)))
    if not made:
        raise ValueError(f"name what to search for. {_searchable(table)}")
    return made


def _unsearchable(table: EncryptedTable, name: str) -> ValueError:
    if name in table.fields:
        problem = f"{name} has no blind index, so PostgreSQL cannot search it"
    elif name in table.table.c:
        problem = f"{name} is not encrypted: select() searches it, by a criterion such as Row.{name} == value"
    else:
        problem = f"{table.name} has no field {name}"
    return ValueError(f"{problem}. {_searchable(table)}")


def _searchable(table: EncryptedTable) -> str:
    names = [each.name for each in table.fields.values() if each.index_column]
    if names:
        return f"find() searches these fields of {table.name}: {', '.join(names)}"
    return f"No field of {table.name} has a blind index: declare one with blind_index_column()"
