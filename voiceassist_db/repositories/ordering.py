"""The order in which ``select`` returns rows, and where a page in it begins.

Every order ends with the primary key, so that a page begins behind one row, whatever was added or deleted. Executes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    CHAR,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    Time,
    Uuid,
    and_,
    bindparam,
    cast,
    false,
    or_,
    tuple_,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.types import TypeEngine

from voiceassist_db.models import EncryptedTable
from voiceassist_db.pgcrypto.arrays import unlimited
from voiceassist_db.repositories.checks import checker
from voiceassist_db.repositories.parameters import Parameters
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rules import is_real

_ORDERED: Final = (Boolean, Date, DateTime, Float, Integer, Numeric, String, Time, Uuid)
_UNORDERED: Final = (CHAR, CITEXT, Enum)

_FLOAT_DIGITS: Final = sys.float_info.dig
"""Decimal digits of a number that a float holds in every case."""

Direction = tuple[Column[Any], bool]


class Order:
    """An order in which no two rows are equal: by columns of the record, then by the primary key.

    Args:
        table: The table.
        plain: Its plain columns that the record has.
        order_by: A column of the model, ``column.desc()``, or several of them.

    Attributes:
        shape: What statements in this order are kept by.

    Raises:
        ValueError: Something else was given.
    """

    def __init__(self, table: EncryptedTable, plain: Iterable[Column[Any]], order_by: Any) -> None:
        self._names = Parameters(table.table)
        known = {each.name: each for each in (*table.key, *plain)}
        given = order_by if isinstance(order_by, list | tuple) else () if order_by is None else (order_by,)
        self._by = [_direction(table, known, each) for each in given]
        named = [column.name for column, _ in self._by]
        is_descending = bool(self._by) and self._by[-1][1]
        self._by += [(each, is_descending) for each in table.key if each.name not in named]
        self.shape = tuple((column.name, is_descending) for column, is_descending in self._by)

    def place(self, after: Any, record: type[Record]) -> tuple[Any, ...]:
        """Return the place of a row in this order: its values of the columns, and its primary key.

        Args:
            after: The row's record; or its values of the columns of ``order_by``, followed by its primary key.
            record: The class of the table's records.

        Raises:
            ValueError: It is of another record, or has too few or too many values, or one is not of its column's type.
        """
        names = [column.name for column, _ in self._by]
        if type(after) is record:
            after = tuple(getattr(after, name) for name in names)
        values = after if isinstance(after, tuple) else (after,)
        if len(values) != len(names):
            raise ValueError(f"after must be the last record of the page before, or a tuple of its {', '.join(names)}")
        return tuple(
            checker(column, names_row=not column.nullable)(value)
            for (column, _), value in zip(self._by, values, strict=True)
        )

    def values(self, place: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of :meth:`after`."""
        return {
            self._names.after(column.name): value
            for (column, _), value in zip(self._by, place, strict=True)
            if value is not None
        }

    def columns(self) -> list[ColumnElement[Any]]:
        """Return what ``ORDER BY`` takes."""
        return [column.desc() if is_descending else column for column, is_descending in self._by]

    def after(self, place: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that a row comes after a place. Of its values only those matter that are NULL."""
        is_uniform = len({is_descending for _, is_descending in self._by}) == 1
        if is_uniform and not any(column.nullable for column, _ in self._by):
            # As one comparison, which an index of these columns answers.
            columns = tuple_(*(column for column, _ in self._by))
            values = tuple_(*(self._value(column) for column, _ in self._by))
            return columns < values if self._by[0][1] else columns > values
        later: ColumnElement[bool] = false()
        for direction, value in reversed([*zip(self._by, place, strict=True)]):
            beyond, same = self._compared(direction, value)
            later = or_(beyond, and_(same, later))
        return later

    def _compared(self, direction: Direction, value: Any) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        """Return the conditions that a column's value comes after another, and that it is the same. NULL is the largest."""
        column, is_descending = direction
        if value is None:
            return column.is_not(None) if is_descending else false(), column.is_(None)
        other = self._value(column)
        if is_descending:
            return column < other, column == other
        return (or_(column > other, column.is_(None)) if column.nullable else column > other), column == other

    def _value(self, column: Column[Any]) -> ColumnElement[Any]:
        given = bindparam(self._names.after(column.name), type_=unlimited(column.type))
        # The driver sends double precision, where 0.1 is another number than in real.
        return cast(given, column.type) if is_real(column.type) else given


def _direction(table: EncryptedTable, known: Mapping[str, Column[Any]], given: Any) -> Direction:
    """Return a column of the table, and whether it is ordered downwards."""
    element = given.__clause_element__() if hasattr(given, "__clause_element__") else given
    is_descending = False
    if isinstance(element, UnaryExpression) and element.modifier in {operators.desc_op, operators.asc_op}:
        is_descending = element.modifier is operators.desc_op
        element = element.element
    column = known.get(getattr(element, "name", ""))
    if column is None or getattr(element, "table", None) != table.table:
        raise ValueError(
            f"order_by takes columns of {table.name} that its record has, or column.desc(): {', '.join(sorted(known))}"
        )
    if not isinstance(column.type, _ORDERED) or isinstance(column.type, _UNORDERED):
        raise ValueError(
            f"order_by cannot take {column.name}, which is of type {column.type!r}: use a column of text, numbers, dates, times or uuid"
        )
    if _is_rounded(column.type):
        raise ValueError(
            f"order_by cannot take {column.name}, which is of type {column.type!r}: Python gets its numbers with fewer digits than "
            "PostgreSQL compares. Declare it as Double() or as Numeric()"
        )
    return column, is_descending


def _is_rounded(type_: TypeEngine[Any]) -> bool:
    """Say whether a record may hold less of a number than the column does, so that it does not say where its row stands."""
    if isinstance(type_, Float):
        return type_.asdecimal
    return isinstance(type_, Numeric) and not type_.asdecimal and not 0 < (type_.precision or 0) <= _FLOAT_DIGITS
