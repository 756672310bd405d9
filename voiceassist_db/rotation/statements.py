"""The statements of a rotation over one relation: re-encrypt, list, count and prove rows, all inside the server.

Owns their SQL. Which rows a statement touches is said by pages (``ctid``) or by primary keys; always, too, by the older key
version, so that a row which somebody else has moved on is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Float,
    Integer,
    LargeBinary,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.types import UserDefinedType

from voiceassist_db.keyring import Keyring
from voiceassist_db.loading import text_of
from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.declaration import bound_format
from voiceassist_db.moments import Moment
from voiceassist_db.pgcrypto.arrays import array_parameter, dumper, element_type
from voiceassist_db.pgcrypto.expressions import column_key, is_bound_to_row, parameters, reencrypt, version_parameter
from voiceassist_db.prepared import Prepared
from voiceassist_db.triggers import GuardedUpdate, changed_again

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

Key = tuple[Any, ...]
"""A primary key's values; text of the server where Python cannot hold one."""


class _TID(UserDefinedType[str]):
    """A row's place, ``(page, number)``."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        return "TID"


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the rows on a window of pages: of each page, the rows whose numbers belong to a pass.

    Each new version of a row needs room on the row's own page, to be a heap-only tuple that no index must learn of. So a
    window is rotated in several passes, each committed, and each cleans up what the one before left dead.

    Attributes:
        first: First page.
        end: Page after the last one.
        passes: How many passes there are.
        pass_: Which one this is, from 0; None for all rows at once.
        numbers: To which pass a row belongs, by the low byte of its number on its page: 256 bytes; None: by the remainder.
    """

    first: int
    end: int
    passes: int = 1
    pass_: int | None = None
    numbers: bytes | None = None

    @property
    def pages(self) -> int:
        """How many pages the window has."""
        return self.end - self.first

    def halves(self) -> tuple[Part, Part]:
        """Return the same pass over each half of the pages."""
        middle = (self.first + self.end) // 2
        return replace(self, end=middle), replace(self, first=middle)

    def parameters(self) -> dict[str, Any]:
        """Return it as the statements' parameters."""
        window = {"first": f"({self.first},0)", "end": f"({self.end},0)"}
        if self.pass_ is None:
            return window
        return window | {"numbers": self.numbers or bytes(n % self.passes for n in range(256)), "pass_": self.pass_}


_CTID: Final = literal_column("ctid", _TID())


def _in_window() -> ColumnElement[bool]:
    return and_(_CTID >= bindparam("first", type_=_TID()), _CTID < bindparam("end", type_=_TID()))


# Byte 5 of a tid is the low byte of the row's number on its page.
_NUMBER: Final[ColumnElement[int]] = func.pg_catalog.get_byte(
    func.pg_catalog.tidsend(_CTID), literal_column("5"), type_=Integer
)


def _in_pass() -> ColumnElement[bool]:
    numbers = cast(bindparam("numbers", type_=LargeBinary), LargeBinary)
    return func.pg_catalog.get_byte(numbers, _NUMBER, type_=Integer) == bindparam("pass_", type_=Integer)


NAP_S: Final = 0.001
"""How long a batch that is to be slow naps after a row: the shortest that the server can. Beside a run of 1,000 rows per second on
two processors, the slowest one in a hundred of an application's writes took 2.5 times as long without naps, 1.0 to 1.2 with
them; with naps of 2 ms, between which more rows gather into a burst, it was 1.5 to 1.9 beside 2,000 rows per second."""


def _naps() -> ColumnElement[bool]:
    """Return a condition that always holds, and naps for a share of the rows that it is asked for."""
    nap = func.pg_catalog.pg_sleep(cast(literal_column(str(NAP_S)), Double)).is_not(None)
    is_due = func.pg_catalog.random(type_=Float) < bindparam("nap_share", type_=Float)
    return case((is_due, nap), else_=true())


def _in_pass_with_naps() -> ColumnElement[bool]:
    # In one expression, for of two conditions the server may ask either first.
    return case((_in_pass(), _naps()), else_=false())


class Statements:
    """The statements over one relation and one pair of keys, compiled once; safe for threads.

    Args:
        table: The relation's table.
        keyring: The current key and the previous one.
    """

    def __init__(self, table: EncryptedTable, keyring: Keyring) -> None:
        assert keyring.previous is not None  # a rotation has two keys
        self._table = table
        self._keyring = keyring
        self._keys = parameters(keyring, table, tuple(table.fields.values()))
        self._older = {"version_previous": self._keys["version_previous"]}
        self._dumpers = [dumper(each.type) for each in table.key]
        changes: dict[str, Any] = {table.version.name: version_parameter("current")}
        for field in table.fields.values():
            old, new = column_key(table, field, "previous"), column_key(table, field, "current")
            changes[field.column] = reencrypt(table, field, old, keyring.previous.scheme, new)
        self._changes = changes
        self._update = update(table.table).values(changes)
        self._guarded: dict[tuple[bool, bool], GuardedUpdate] = {}

    def _prepare(self, statement: Any) -> Prepared:
        return Prepared(statement, table=self._table.name)

    @property
    def _is_old(self) -> ColumnElement[bool]:
        return self._table.version == version_parameter("previous")

    def _is_given(self) -> ColumnElement[bool]:
        arrays = (
            array_parameter(f"key_{at}", each.type, element_type(each.type)) for at, each in enumerate(self._table.key)
        )
        return tuple_(*self._table.key).in_(select(*(func.pg_catalog.unnest(each) for each in arrays)))

    def _keys_of(self, keys: Sequence[Key]) -> dict[str, Any]:
        return {f"key_{at}": dump([key[at] for key in keys]) for at, dump in enumerate(self._dumpers)}

    # --- re-encrypting -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _pass(self) -> Prepared:
        return self._prepare(self._update.where(_in_window(), self._is_old, _in_pass_with_naps()))

    @functools.cached_property
    def _unlocked_of_pass(self) -> Prepared:
        free = select(_CTID).select_from(self._table.table).where(_in_window(), self._is_old, _in_pass())
        is_free = _CTID == func.any(func.array(self._lock(free)))
        return self._prepare(self._update.where(is_free, self._is_old, _naps()))

    @functools.cached_property
    def _given(self) -> Prepared:
        return self._prepare(self._update.where(self._is_given(), self._is_old))

    @functools.cached_property
    def _unlocked_given(self) -> Prepared:
        free = select(_CTID).select_from(self._table.table).where(self._is_given(), self._is_old)
        return self._prepare(self._update.where(_CTID == func.any(func.array(self._lock(free))), self._is_old))

    @staticmethod
    def _lock(statement: Any) -> Any:
        # NO KEY, for a rotation changes none: others may go on inserting rows that refer to these.
        return statement.with_for_update(key_share=True, skip_locked=True).scalar_subquery()

    def _locked(self, *, skip_locked: bool) -> Prepared:
        given = select(*self._table.key).where(self._is_given(), self._is_old)
        return self._prepare(given.with_for_update(key_share=True, skip_locked=skip_locked))

    @functools.cached_property
    def _held(self) -> Prepared:
        return self._locked(skip_locked=False)

    @functools.cached_property
    def _free(self) -> Prepared:
        return self._locked(skip_locked=True)

    def _guard(self, *, is_part: bool, skip_locked: bool) -> GuardedUpdate:
        """Return the statement of a table with triggers: it fails where one of them changes what it stores."""
        found = self._guarded.get((is_part, skip_locked))
        if found is None:
            rows = [_in_window(), self._is_old, _in_pass_with_naps()] if is_part else [self._is_given(), self._is_old]
            found = GuardedUpdate(self._table, self._changes, *rows, skip_locked=skip_locked)
            self._guarded[is_part, skip_locked] = found
        return found

    def reencrypt(
        self,
        connection: Connection,
        part: Part,
        *,
        skip_locked: bool = False,
        nap_share: float = 0.0,
        is_guarded: bool = False,
    ) -> int:
        """Re-encrypt the rows of a part that are under the older version.

        Args:
            connection: A connection that may receive keys.
            part: Which rows.
            skip_locked: Leave rows that others hold, instead of waiting for them.
            nap_share: After how large a share of the rows the server naps, for :data:`NAP_S` each time.
            is_guarded: Whether a trigger of the table can change what is stored.

        Raises:
            TriggerError: It did.
        """
        values = self._keys | part.parameters() | {"nap_share": nap_share}
        if is_guarded:
            return self._guard(is_part=True, skip_locked=skip_locked).write(connection, values)
        statement = self._unlocked_of_pass if skip_locked else self._pass
        return statement.count(connection, values)

    @functools.cached_property
    def _filled(self) -> Prepared:
        counts = (func.count(self._table.table.c[each.column]) for each in self._table.fields.values())
        return self._prepare(select(func.count(), *counts).select_from(self._table.table).where(self._is_given()))

    def reencrypt_looking_again(self, connection: Connection, keys: Sequence[Key], **how: Any) -> int:
        """Do as :meth:`reencrypt_given` does, and compare how many values there are before and afterwards.

        Raises:
            TriggerError: As there; or a trigger changed rows again, by a statement of its own, and values are gone.
        """
        lock = self._free if how["skip_locked"] else self._held
        keys = _keys(lock, connection, self._older | self._keys_of(keys))
        if not keys:
            return 0
        # Nobody else changes these rows until the end of the transaction.
        before = self._filled.rows(connection, self._keys_of(keys))
        count = self.reencrypt_given(connection, keys, **how)
        if self._filled.rows(connection, self._keys_of(keys)) != before:
            raise changed_again(connection, self._table)
        return count

    def reencrypt_given(
        self, connection: Connection, keys: Sequence[Key], *, skip_locked: bool = True, is_guarded: bool = False
    ) -> int:
        """Re-encrypt the rows with these primary keys that are under the older version.

        Raises:
            TriggerError: ``is_guarded``, and a trigger changed what is stored; or skipped a row that this statement waited for.
        """
        given = self._keys_of(keys)
        if is_guarded:
            if not skip_locked:
                self._held.count(connection, self._older | given)
            statement = self._guard(is_part=False, skip_locked=skip_locked)
            return statement.write(connection, self._keys | given, is_locked=not skip_locked)
        return (self._unlocked_given if skip_locked else self._given).count(connection, self._keys | given)

    # --- listing and counting ------------------------------------------------------------------------------------------

    @functools.cached_property
    def _old_of_pass(self) -> Prepared:
        return self._prepare(select(*self._table.key).where(_in_window(), self._is_old, _in_pass()))

    @functools.cached_property
    def _numbers(self) -> Prepared:
        counted = select(_NUMBER, func.count()).select_from(self._table.table).where(_in_window(), self._is_old)
        return self._prepare(counted.group_by(_NUMBER))

    @functools.cached_property
    def _all_old(self) -> Prepared:
        return self._prepare(select(_CTID, *self._table.key).where(self._is_old).limit(bindparam("limit")))

    @functools.cached_property
    def _count(self) -> Prepared:
        return self._prepare(select(func.count(), func.count().filter(self._is_old)).select_from(self._table.table))

    def old_of(self, connection: Connection, part: Part) -> list[Key]:
        """Return the primary keys of the rows of a part that are under the older version."""
        return _keys(self._old_of_pass, connection, self._older | part.parameters())

    def numbers(self, connection: Connection, part: Part) -> dict[int, int]:
        """Return how many rows of a window are under the older version, by the low byte of their number on their page."""
        window = Part(part.first, part.end).parameters()
        return dict(self._numbers.rows(connection, self._older | window))

    def old(self, connection: Connection, limit: int) -> list[tuple[int, Key]]:
        """Return page and primary key of rows under the older version, at most ``limit`` of them, wherever they are."""
        found = _keys(self._all_old, connection, self._older | {"limit": limit})
        return [(int(place[1:].partition(",")[0]), tuple(key)) for place, *key in found]

    def count(self, connection: Connection) -> tuple[int, int]:
        """Return how many rows there are, and how many of them are under the older version."""
        rows, old = self._count.rows(connection, dict(self._older))[0]
        return rows, old

    # --- proving -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _prove(self) -> Prepared:
        return self._prepare(self._proof().where(_in_window(), self._table.version == version_parameter("current")))

    @functools.cached_property
    def _current_in_window(self) -> Prepared:
        current = self._table.version == version_parameter("current")
        return self._prepare(select(*self._table.key).where(_in_window(), current))

    @functools.cached_property
    def _prove_given(self) -> Prepared:
        current = self._table.version == version_parameter("current")
        return self._prepare(self._proof().where(self._is_given(), current))

    def _proof(self) -> Any:
        return select(func.count(), func.count().filter(self._is_wrong())).select_from(self._table.table)

    def _is_wrong(self) -> ColumnElement[bool]:
        """Return the condition that a row holds a value of another place, or of a format in which no key need have been used."""
        quote = _DIALECT.identifier_preparer.quote
        wrong = []
        for field in self._table.fields.values():
            column = quote(field.column).replace("%%", "%")  # which literal_column() doubles itself
            is_ours = case((literal_column(bound_format(column)), is_bound_to_row(self._table, field)), else_=false())
            # Neither false nor NULL: what the server cannot say of a value proves nothing.
            wrong.append(and_(self._table.table.c[field.column].is_not(None), is_ours.is_not(true())))
        return or_(*wrong)

    def prove(self, connection: Connection, part: Part) -> tuple[int, int]:
        """Open every value of a window's rows under the current version, inside the server.

        Returns:
            How many rows there are, and how many of them hold a value that was encrypted for another place.

        Raises:
            DecryptionError: A value does not open.
        """
        rows, wrong = self._prove.rows(connection, self._keys | part.parameters())[0]
        return rows, wrong

    def prove_given(self, connection: Connection, keys: Sequence[Key]) -> tuple[int, int]:
        """Do the same for the rows with these primary keys."""
        rows, wrong = self._prove_given.rows(connection, self._keys | self._keys_of(keys))[0]
        return rows, wrong

    def current_of(self, connection: Connection, part: Part) -> list[Key]:
        """Return the primary keys of a window's rows under the current version."""
        newer = {"version_current": self._keys["version_current"]}
        return _keys(self._current_in_window, connection, newer | part.parameters())

    def look_back(self, connection: Connection, since: Moment) -> tuple[dict[int, tuple[int, int]], int]:
        """Count the rows under the current version by relation, and open those that were written since a moment.

        Returns:
            By the relation's number in the catalogue: rows that were there at that moment, and rows that were written since. And how
            many of the latter cannot be trusted.

        Raises:
            DecryptionError: A value of a row that was written since does not open.
        """
        had_row = since.had_row()
        is_current = self._table.version == version_parameter("current")
        oid: ColumnElement[int] = literal_column("CAST(tableoid AS pg_catalog.int8)")
        counts = (func.count().filter(each) for each in (had_row, ~had_row))
        counted = select(oid, *counts).select_from(self._table.table).where(is_current).group_by(oid)
        # Apart from the groups: a server that gathers rows of groups may write them to its disk, and these hold plaintext.
        wrong = (
            select(func.count())
            .select_from(self._table.table)
            .where(is_current, case((had_row, false()), else_=self._is_wrong()))
        )
        current = {"version_current": self._keys["version_current"]}
        rows = self._prepare(counted).rows(connection, current)
        failed: int = self._prepare(wrong).rows(connection, dict(self._keys))[0][0]
        return {row[0]: (row[1], row[2]) for row in rows}, failed


def _keys(statement: Prepared, connection: Connection, parameters: dict[str, Any]) -> list[Key]:
    return [tuple(map(text_of, row)) for row in statement.tolerant_rows(connection, parameters)]
