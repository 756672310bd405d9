"""How a repository reads: one SELECT, decoded into records under the keys of the moment.

Owns what every read shares, and reads by key. It never commits and never rolls back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, Final, Generic, TypeVar

from sqlalchemy.orm import DeclarativeBase

from voiceassist_db.keyring import Keyring, KeyringSource
from voiceassist_db.models import EncryptedField, EncryptedTable
from voiceassist_db.pgcrypto.expressions import parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.checks import Check
from voiceassist_db.repositories.freshness import left_behind
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.refusals import not_found, unknown_version, wrong_row
from voiceassist_db.repositories.rows import Rows
from voiceassist_db.repositories.searching import Searched
from voiceassist_db.repositories.statements import Statements
from voiceassist_db.sessions import AnySession, connection_of
from voiceassist_db.tracebacks import forgetful

R = TypeVar("R", bound=Record)

LONG_ROWS: Final = 200
"""From so many rows on a result is decoded while the server makes it. For fewer, a statement that it has prepared is faster."""


class Reading(Generic[R]):
    """Reads the records of one encrypted table by key; see ``Repository``.

    Attributes:
        session: The session or connection that it works in, for finders of an application's own.
    """

    model: ClassVar[type[DeclarativeBase]]
    record: ClassVar[type[Record]]
    lookup: ClassVar[tuple[str, ...]] = ()
    _table: ClassVar[EncryptedTable]
    _statements: ClassVar[Statements]
    _adopted: ClassVar[Statements]
    _rows: ClassVar[Rows[Any]]
    _lookup_key: ClassVar[attrgetter[Any]]
    _fields: ClassVar[tuple[EncryptedField, ...]]
    _naming: ClassVar[list[tuple[str, Check]]]
    _indexes: ClassVar[Mapping[str, Searched]]
    _readable: ClassVar[dict[frozenset[str], tuple[EncryptedField, ...]]]

    def __init__(self, session: AnySession, keys: KeyringSource) -> None:
        self.session: Final = session
        self._keys = keys

    @forgetful
    def get(self, *key: Any, fields: Iterable[str] | None = None) -> R:
        """Read one record.

        Args:
            key: The row's lookup key.
            fields: The encrypted fields to decrypt, all by default. The record refuses to give any other.

        Returns:
            The record.

        Raises:
            NotFoundError: There is no such row.
            WrongRowError: The server answered with another row.
            DecryptionError, BindingError, ValueFormatError: A stored value was damaged or moved.
        """
        chosen = self._chosen(fields)
        where = self._where(key)
        found = self._read(Statements.get, (chosen,), where, chosen)
        if not found:
            raise not_found(self._table, where.values())
        record = found[0]
        if [getattr(record, name) for name in self.lookup] != [*where.values()]:
            raise wrong_row(connection_of(self.session, self.model), self._table, tuple(where.values()))
        return record

    @forgetful
    def get_many(
        self, keys: Iterable[Any], *, fields: Iterable[str] | None = None, for_update: bool = False
    ) -> dict[Any, R]:
        """Read many records in one statement.

        Args:
            keys: Lookup keys: single values, or tuples where the key has several columns.
            fields: As for :meth:`get`.
            for_update: Lock the rows until the transaction ends, so that no other transaction changes them.

        Returns:
            The records by key; a key that has no row is not in it.

        Raises:
            ValueError: The keys are one text, or one is no key of this table.
            WrongRowError: The server answered with another row.
            DecryptionError, BindingError, ValueFormatError: A stored value was damaged or moved.
        """
        if isinstance(keys, str | bytes):
            raise ValueError("get_many takes a list of keys; get() reads one row")
        wanted = [self._where(key if isinstance(key, tuple) else (key,)) for key in keys]
        if not wanted:
            return {}
        arrays = {
            name: self._rows.array(column, [each[name] for each in wanted])
            for column, (name, _) in zip(self.lookup, self._naming, strict=True)
        }
        chosen = self._chosen(fields)
        found = self._read(
            Statements.get_many,
            (chosen, for_update),
            arrays,
            chosen,
            is_many=True,
            is_long=len(wanted) >= LONG_ROWS,
        )
        records = {self._lookup_key(each): each for each in found}
        if not records.keys() <= set(map(_key, wanted)):
            raise wrong_row(connection_of(self.session, self.model), self._table, wanted[0].values())
        return records

    # --- inside --------------------------------------------------------------------------------------------------------

    def _read(
        self,
        statement: Callable[..., Prepared],
        arguments: tuple[Any, ...],
        values: dict[str, Any] | Callable[[Keyring], dict[str, Any]],
        fields: tuple[EncryptedField, ...],
        *,
        searches: bool = False,
        is_many: bool = False,
        is_long: bool = False,
    ) -> list[R]:
        deadline = self._keys.deadline()
        if not self._keys.is_known:
            self._keys.prefetch(deadline)
        connection = connection_of(self.session, self.model)
        keyring = self._keys.keyring(connection, deadline)
        unknown: tuple[int, str] | None = None
        for _ in range(3):
            given = values(keyring) if callable(values) else values
            given = {**given, **parameters(keyring, self._table, fields)}
            found: list[R] = []
            prepared = statement(self._adopted if keyring.has_direct else self._statements, *arguments)
            if is_long:
                unknown = prepared.read(connection, given, functools.partial(self._rows.read, keyring, fields, found))
            else:
                rows = prepared.rows(connection, given, prepare=False if is_many else None)
                if searches and rows[0][-1]:  # there are tokens of a key that this process does not know yet
                    keyring = self._keys.renew(connection, keyring, deadline)
                    continue
                if searches and rows[0][0] is None:
                    return []
                unknown = self._rows.read(keyring, fields, found, rows)
            if unknown is None:
                return found
            keyring = self._keys.refresh(connection, unknown[0], deadline)
        raise unknown_version(self._table, *unknown) if unknown else left_behind(self._table.name, keyring)

    def _chosen(self, fields: Iterable[str] | None) -> tuple[EncryptedField, ...]:
        if fields is None:
            return self._fields
        names = frozenset(fields)
        found = self._readable.get(names)
        return self._to_read(names) if found is None else found

    @classmethod
    def _to_read(cls, names: frozenset[str]) -> tuple[EncryptedField, ...]:
        """Return the encrypted ones of fields to read, after a look whether the record has all of them."""
        known = {each.name for each in dataclasses.fields(cls.record)}  # type: ignore[arg-type]  # made by @record
        if unknown := names - known:
            told = f"{cls._table.name} has no field {', '.join(sorted(map(str, unknown)))}"
            raise ValueError(f"{told}. {cls.record.__name__} has {', '.join(sorted(known))}")
        cls._readable[names] = cls._named_by(names)
        return cls._readable[names]

    @classmethod
    def _named_by(cls, names: frozenset[str]) -> tuple[EncryptedField, ...]:
        return tuple(each for each in cls._fields if each.name in names)

    def _where(self, key: tuple[Any, ...]) -> dict[str, Any]:
        if len(key) != len(self.lookup):
            raise ValueError(f"a row of {self._table.name} is named by {', '.join(self.lookup)}")
        where = {}
        for (name, check), value in zip(self._naming, key, strict=True):
            where[name] = check(value)
        return where


def _key(where: Mapping[str, Any]) -> Any:
    """Return a lookup key as ``attrgetter`` gives it: one value, or a tuple of several."""
    key = tuple(where.values())
    return key[0] if len(key) == 1 else key
