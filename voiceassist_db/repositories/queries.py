"""What a repository can be asked beside reads by key: searches of encrypted fields, criteria over plain columns, pages, counts.

Owns the questions. What a search compares is ``searching``'s, what a criterion may be ``criteria``'s.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

from voiceassist_db.keyring import Keyring
from voiceassist_db.pgcrypto.arrays import dumped_tokens
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.criteria import Criteria
from voiceassist_db.repositories.ordering import Order
from voiceassist_db.repositories.reading import LONG_ROWS, Reading
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.refusals import wrong_row
from voiceassist_db.repositories.searching import conditions
from voiceassist_db.repositories.statements import Statements
from voiceassist_db.sessions import connection_of
from voiceassist_db.tracebacks import forgetful

R = TypeVar("R", bound=Record)

PAGE_ROWS: Final = 1000

MAX_ROWS: Final = (1 << 63) - 1
"""What PostgreSQL takes as a limit."""


class Queries(Reading[R]):
    """Searches, selects, counts and pages; see ``Repository``."""

    @forgetful
    def find(
        self, values: Mapping[str, Any] | None = None, /, *, fields: Iterable[str] | None = None, **more: Any
    ) -> list[R]:
        """Search by the blind indexes of encrypted fields, such as ``find(name="José Núñez")``.

        The index's normaliser says which spellings are the same. Whole values are compared: ``find(name="José")`` does not find ``José
        Núñez``. A row must have all values that are given, and of a list, tuple or set any.

        Args:
            values: Values by field, where a field has a name that an argument cannot have.
            fields: As for :meth:`get`.
            more: Values by field.

        Returns:
            The records, each once. There may be none.

        Raises:
            ValueError: A field cannot be searched, or a value has not the form of its index. The message does not hold the value.
        """
        sought = conditions(self._table, self._indexes, {**values, **more} if values else more)
        asked = chosen = self._chosen(fields)
        is_many = False
        for each in sought:
            if not each.forms:
                return []
            is_many = is_many or len(each.forms) > 1
            if each.field not in chosen:
                chosen = (*chosen, each.field)

        def tokens(keyring: Keyring) -> dict[str, Any]:
            given: dict[str, Any] = {"known": _known(keyring.index_checks)}
            for each in sought:
                given[each.parameter] = each.tokens(keyring)
            return given

        columns = tuple([each.index.column for each in sought])
        found = self._read(Statements.find, (columns, chosen), tokens, chosen, searches=True, is_many=is_many)
        for each in sought:
            found = [row for row in found if each.holds(row)]
        for field in chosen[len(asked) :]:
            for row in found:
                object.__delattr__(row, field.name)
        return found

    @forgetful
    def select(
        self,
        *criteria: Any,
        order_by: Any = None,
        after: Any = None,
        limit: int | None = None,
        fields: Iterable[str] | None = None,
    ) -> list[R]:
        """Read the records whose plain columns fulfil criteria, such as ``select(Row.starts_at > moment, limit=20)``.

        Other tables may take part: by ``exists()``, or by criteria that join them. Each record is returned once.

        Args:
            criteria: SQLAlchemy expressions over plain columns; all must be fulfilled. Without any, all records are meant.
            order_by: A plain column of the record, ``column.desc()``, or a list of these. The primary key comes last, and is the order by
                default. NULL counts as the largest value.
            after: The last record of the page before; or a tuple of its values of ``order_by``, followed by its primary key.
            limit: Most records to return; all by default.
            fields: As for :meth:`get`.

        Returns:
            The records in their order.

        Raises:
            ValueError: A criterion is about an encrypted column, or no expression; or ``order_by``, ``after`` or ``limit`` do not fit.
        """
        limit = _limit(MAX_ROWS if limit is None else limit)
        chosen = self._chosen(fields)
        asked = Criteria(self._table, criteria)
        order = Order(self._table, self._statements.plain, order_by)
        place = None if after is None else order.place(after, self.record)
        values = {**asked.values, "limit": limit} | ({} if place is None else order.values(place))
        return self._read(Statements.select, (chosen, asked, order, place), values, chosen, is_long=limit >= LONG_ROWS)

    @forgetful
    def count(self, *criteria: Any) -> int:
        """Return how many rows fulfil criteria.

        Args:
            criteria: As for :meth:`select`.

        Raises:
            ValueError: As for :meth:`select`.
        """
        asked = Criteria(self._table, criteria)
        count: int = self._answer(self._statements.count(asked), asked)
        return count

    @forgetful
    def exists(self, *criteria: Any) -> bool:
        """Say whether a row fulfils criteria.

        Args:
            criteria: As for :meth:`select`.

        Raises:
            ValueError: As for :meth:`select`.
        """
        asked = Criteria(self._table, criteria)
        there: bool = self._answer(self._statements.exists(asked), asked)
        return there

    def _answer(self, statement: Prepared, criteria: Criteria) -> Any:
        return statement.rows(connection_of(self.session, self.model), dict(criteria.values))[0][0]

    @forgetful
    def page(self, *, after: R | None = None, limit: int = PAGE_ROWS, fields: Iterable[str] | None = None) -> list[R]:
        """Read the next records in the order of the primary key.

        Args:
            after: The last record of the page before; None for the first page.
            limit: Most records to return.
            fields: As for :meth:`get`.

        Returns:
            The records in their order.

        Raises:
            ValueError: ``after`` or ``limit`` do not fit.
        """
        return self._page({}, after, limit, fields)

    def _page(self, within: dict[str, Any], after: R | None, limit: int, fields: Iterable[str] | None) -> list[R]:
        limit = _limit(limit)
        chosen = self._chosen(fields)
        names = self._statements.parameters
        within = {column: self._rows.plain(column, value) for column, value in within.items()}
        values: dict[str, Any] = {names.where(column): value for column, value in within.items()} | {"limit": limit}
        if after is not None:
            if not isinstance(after, self.record):
                raise ValueError(
                    f"after is the last record of the page before, a {self.record.__name__}, not {type(after).__name__}"
                )
            key = zip(self._table.key, self._rows.key(after), strict=True)
            values |= {names.after(column.name): value for column, value in key}
        found = self._read(
            Statements.page, (chosen, tuple(within), after is not None), values, chosen, is_long=limit >= LONG_ROWS
        )
        for column, value in within.items():
            if any(getattr(each, column) != value for each in found):
                raise wrong_row(connection_of(self.session, self.model), self._table, (value,))
        return found


@functools.lru_cache(maxsize=16)
def _known(checks: tuple[bytes, ...]) -> Array:
    """Return the check values of a keyring's index keys, which are no secret, as one parameter."""
    return dumped_tokens(list(checks))


def _limit(limit: int) -> int:
    if not isinstance(limit, int) or not 1 <= limit <= MAX_ROWS:
        raise ValueError(f"limit must be an int from 1 to {MAX_ROWS}")
    return int.__int__(limit)
