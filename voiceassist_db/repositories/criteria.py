"""Criteria of an application's own: SQLAlchemy expressions over plain columns, beside which a statement may hold keys.

Owns what a criterion may be. Its parameters get names of their own, so that none can take the place of a key, or ask for one.
Executes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, Column, ColumnElement, TableClause, TextClause, and_, select, tuple_
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, ColumnClause, Null
from sqlalchemy.sql.visitors import ExternallyTraversible, cloned_traverse

from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.declaration import is_declared
from voiceassist_db.qualified import AsWritten, binder, compiled, others

GIVEN: Final = "given_"
"""Names of an application's own parameters begin so, and no name of ours does."""

_PLACEHOLDER: Final = re.compile(r"(?<!%)(?:%%)*%\((.*?)\)s")
_NUMBERED: Final = re.compile(r"(?<![\w$])\$[0-9]")
"""A parameter as PostgreSQL itself names it. The driver numbers those of the whole statement, so ``$1`` is one of ours."""

_NULL_TESTS: Final = frozenset({operators.is_, operators.is_not})


class Criteria:
    """What the rows of a read must fulfil, beside being there.

    Args:
        table: The table.
        criteria: SQLAlchemy expressions; a row must fulfil all.

    Attributes:
        shape: What statements with such criteria are kept by: the same for other values. None where SQLAlchemy cannot tell.
        values: The values of the parameters, by the names that :meth:`conditions` gives them.

    Raises:
        ValueError: A criterion is no SQLAlchemy expression, is about an encrypted column, or has a parameter without a value.
    """

    def __init__(self, table: EncryptedTable, criteria: Sequence[Any]) -> None:
        self._table = table
        self._whole: ColumnElement[bool] | None = None
        self._names: dict[str, str] = {}
        self.shape: object = ()
        self.values: dict[str, Any] = {}
        if not criteria:
            return
        self._whole = and_(*map(_expression, criteria))
        for element in _elements(self._whole, set()):
            if isinstance(element, BindParameter):
                self._take(element)
            else:
                self._require_plain(element)
        key = self._whole._generate_cache_key()  # noqa: SLF001  # SQLAlchemy's own way to know a statement again
        self.shape = None if key is None else key.key

    def _take(self, parameter: BindParameter[Any]) -> None:
        if parameter.required and parameter.callable is None:
            raise ValueError(f"the parameter {parameter.key!r} of a criterion has no value: give it one in bindparam()")
        if parameter.literal_execute:
            raise ValueError(
                f"the parameter {parameter.key!r} of a criterion would be written into the statement's text, which servers log: leave out "
                "literal_execute"
            )
        name = self._names.setdefault(parameter.key, f"{GIVEN}{len(self._names)}")
        value: Any = parameter.effective_value
        if name in self.values and self.values[name] is not value and self.values[name] != value:
            raise ValueError(f"two parameters of the criteria are called {parameter.key!r}, and have different values")
        self.values[name] = value
        process = binder(parameter)
        if process is None or parameter.type._is_tuple_type:  # noqa: SLF001  # there is no other way to ask
            return
        try:
            for each in value if parameter.expanding else (value,):
                process(each)
        except Exception as error:  # noqa: BLE001  # whatever a type raises, it may quote the value
            problem = type(error).__name__
        else:
            return
        raise ValueError(
            f"a value in a criterion is not valid for its type {type(parameter.type).__name__} ({problem})"
        )

    def _require_plain(self, element: ExternallyTraversible) -> None:
        if isinstance(element, TextClause):
            raise ValueError(
                "text() in a criterion could name an encrypted column or a key: write it as an SQLAlchemy expression"
            )
        if not isinstance(element, ColumnClause):
            return
        if element.is_literal and any(name in element.name for name in self._table.covered):
            raise ValueError(
                f"literal_column() in a criterion names an encrypted column of {self._table.name}: use find()"
            )
        if self._is_named(element):
            raise _encrypted(self._table, element.name)
        for column in element.base_columns:
            if is_declared(column):  # type: ignore[arg-type]  # a column without a comment is none
                raise _encrypted(self._table, column.name)

    def _is_named(self, element: ColumnClause[Any]) -> bool:
        """Say whether an expression names an encrypted column of the table without the table's own declaration."""
        if isinstance(element, Column) or element.is_literal or element.name not in self._table.covered:
            return False
        table: Any = element.table
        return table is None or (isinstance(table, TableClause) and table.name == self._table.table.name)

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions for a SELECT from the table, with parameters that are named as in :attr:`values`.

        Criteria about other tables too become a subquery, so that each row of the table is found once at most.

        Raises:
            ValueError: SQLAlchemy cannot compile the criteria; or nothing in them joins another table with this one.
        """
        if self._whole is None:
            return []
        condition = AsWritten(self._renamed(self._whole))
        key = self._table.key
        whole = select(*key).where(condition)
        self._require_own_parameters(whole)
        tables, loose = others(whole, self._table.table)
        if not tables:
            return [condition]
        if loose:
            raise ValueError(
                f"no criterion joins {', '.join(sorted(loose))} with {self._table.name}, so that every row would be found, or none: compare "
                "their columns in a criterion, or use exists()"
            )
        return [tuple_(*key).in_(whole.correlate(None))]

    def _renamed(self, whole: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return the criteria with parameters of our names and without values: the statement is kept, and must not keep one."""
        done: set[int] = set()

        def rename(parameter: Any) -> None:
            if id(parameter) not in done:  # a copy within a subquery is met again
                done.add(id(parameter))
                parameter.key, parameter.unique = self._names[parameter.key], False
                parameter.value, parameter.callable = None, None

        # Subqueries that only columns lead to are copied too, as Select.params() does it.
        return cloned_traverse(whole, {"maintain_key": True, "detect_subquery_cols": True}, {"bindparam": rename})

    def _require_own_parameters(self, whole: Any) -> None:
        try:
            made = compiled(whole)
        except CompileError as error:
            problem = str(error)
        else:
            text = str(made)
            if {*made.binds, *_PLACEHOLDER.findall(text)} <= set(self._names.values()) and not _NUMBERED.search(text):
                return
            problem = "it has a parameter that is not its own"
        raise ValueError(f"a criterion cannot be written in SQL: {problem}")


def _expression(criterion: Any) -> Any:
    element = criterion.__clause_element__() if hasattr(criterion, "__clause_element__") else criterion
    if isinstance(element, ColumnElement | TextClause):
        return criterion
    raise ValueError(
        f"a criterion must be an SQLAlchemy expression, such as Row.starts_at > moment, and not of type {type(criterion).__name__}"
    )


def _elements(element: ExternallyTraversible, seen: set[int]) -> Iterator[ExternallyTraversible]:
    """Yield what an expression is made of, but for columns of which it only asks whether they are NULL: that is no secret."""
    if id(element) in seen or _is_null_test(element):
        return
    seen.add(id(element))
    yield element
    for child in element.get_children():
        yield from _elements(child, seen)
    if (
        isinstance(element, ColumnClause) and element.table is not None
    ):  # a subquery, which may have criteria of its own
        yield from _elements(element.table, seen)


def _is_null_test(element: ExternallyTraversible) -> bool:
    return (
        isinstance(element, BinaryExpression)
        and element.operator in _NULL_TESTS
        and isinstance(element.right, Null)
        and isinstance(element.left, ColumnClause)
    )


def _encrypted(table: EncryptedTable, column: str) -> ValueError:
    fields = (each for each in table.fields.values() if column == each.column)
    indexes = [
        *(index for field in fields for index in field.indexes),
        *(each for each in table.indexes if each.column == column),
    ]
    advice = (
        f"search it by find({indexes[0].name}=…)"
        if indexes
        else "find() searches fields with a blind index, and docs/querying.md says what to do about others"
    )
    return ValueError(f"{column} is encrypted, so PostgreSQL cannot compare its values: {advice}")
