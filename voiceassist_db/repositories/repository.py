"""The repository of any encrypted table: records in, records out, and never a key in sight.

Owns the two walks: a write encodes, then runs one INSERT or UPDATE; a read runs one SELECT, then decodes into records. It
never commits and never rolls back: the transaction is the caller's.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, ClassVar, Final, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import DeclarativeBase

from voiceassist_db.blind_index import spellings, token, unified
from voiceassist_db.errors import DatabaseError, ValueFormatError
from voiceassist_db.keyring import Keyring, KeyringSource
from voiceassist_db.masking import MaskedValues
from voiceassist_db.models import EncryptedField, EncryptedTable, table_of
from voiceassist_db.models.requirements import usable
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import dumped_tokens
from voiceassist_db.pgcrypto.expressions import parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.bulk import Batch, Groups
from voiceassist_db.repositories.checks import Check, checker
from voiceassist_db.repositories.fitting import lookup_columns, plain_columns
from voiceassist_db.repositories.freshness import (
    CURRENT,
    left_behind,
    looks_for_taken,
    renewed,
    require_untaken,
    written_with,
)
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.refusals import is_unnamed, not_found, unknown_version, unnamed_row, wrong_row
from voiceassist_db.repositories.rows import BOOKKEEPING, Rows, normalised
from voiceassist_db.repositories.statements import Statements
from voiceassist_db.repositories.triggers import changed_as_meant, may_change_rows, written
from voiceassist_db.sessions import AnySession, connection_of
from voiceassist_db.tracebacks import forgetful

R = TypeVar("R", bound=Record)

PAGE_ROWS: Final = 1000

MAX_ROWS: Final = (1 << 63) - 1
"""What PostgreSQL takes as a limit."""

LONG_ROWS: Final = 200
"""From so many rows on a result is decoded while the server makes it. For fewer, a statement that it has prepared is faster."""


class Repository(Generic[R]):
    """Reads and writes the records of one encrypted table.

    A subclass names its ``model`` and its ``record``; that is all that a table needs. An ``EncryptedRecord`` is both.

    Attributes:
        model: The table's model. Not needed where the record declares the table.
        record: The record class, made by ``@record``: fields named as the encrypted fields and the plain columns.
        lookup: Columns by which :meth:`get`, :meth:`update` and :meth:`delete` name a row: the primary key by default.
        forms: By plain column, a function that gives back a new value or refuses it (ValueError). Stored values are read as they are.
    """

    model: ClassVar[type[DeclarativeBase]]
    record: ClassVar[type[Record]]
    lookup: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[Mapping[str, Check]] = {}
    _table: ClassVar[EncryptedTable]
    _statements: ClassVar[Statements]
    _adopted: ClassVar[Statements]
    _rows: ClassVar[Rows[Any]]
    _lookup_key: ClassVar[attrgetter[Any]]
    _fields: ClassVar[tuple[EncryptedField, ...]]
    _naming: ClassVar[list[tuple[str, Check]]]
    _changeable: ClassVar[dict[frozenset[str], tuple[EncryptedField, ...]]]
    _readable: ClassVar[dict[frozenset[str], tuple[EncryptedField, ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, each in list(vars(cls).items()):
            if inspect.isfunction(each) and not name.startswith("_"):
                setattr(cls, name, forgetful(each))  # a team's own finders have values for arguments too
        if "record" in vars(cls) and "model" not in vars(cls) and hasattr(cls.record, "__model__"):
            cls.model = cls.record.__model__
        if not {"model", "record", "lookup"} & vars(cls).keys() or not hasattr(cls, "model"):
            return
        cls._table = usable(table_of(cls.model))
        plain = plain_columns(cls._table, cls.record)
        cls.lookup = cls.lookup or tuple(each.name for each in cls._table.key)
        lookup = lookup_columns(cls._table, cls.lookup)
        cls._statements = Statements(cls._table, plain, lookup)
        cls._adopted = Statements(cls._table, plain, lookup, is_adopted=True)
        cls._rows = Rows(cls._table, cls.record, plain, cls.lookup, cls.forms)
        cls._lookup_key = attrgetter(*cls.lookup)
        cls._fields = tuple(cls._table.fields.values())
        cls._changeable, cls._readable = {}, {}  # not functools.cache, which would keep each class for ever
        cls._naming = [(cls._statements.parameters.where(each.name), checker(each, names_row=True)) for each in lookup]

    def __init__(self, session: AnySession, keys: KeyringSource) -> None:
        self._session = session
        self._keys = keys

    # --- writing -------------------------------------------------------------------------------------------------------

    @forgetful
    def add(self, record: R) -> None:
        """Write a new row.

        Raises:
            ValueError: A value is not of its field's type.
            DuplicateError: A row with this key, or with the same value in a unique index, exists.
        """
        if not self._keys.is_known:
            self._keys.prefetch()
        connection = connection_of(self._session, self.model)

        def values(keyring: Keyring) -> MaskedValues:
            return self._rows.new(record, keyring)

        returns_key = may_change_rows(connection, self._table)
        statement = self._statements.insert(returns_key=returns_key)
        self._insert(connection, statement, values, [record], returns_key=returns_key)

    @forgetful
    def add_many(self, records: Iterable[R]) -> int:
        """Write many new rows, streaming: only a few thousand are held in memory.

        Args:
            records: The records.

        Returns:
            How many rows were written.

        Raises:
            ValueError: A value is not of its field's type. Earlier batches are written; roll back to undo them.
            DuplicateError: As for :meth:`add`.
        """
        return self._add_many(records, lambda: None)

    @forgetful
    def _add_many(self, records: Iterable[R], meanwhile: Callable[[], object]) -> int:
        """Do the same for the importer, which reads on while the server works on the last records.

        Args:
            records: The records.
            meanwhile: Called then, unless there is nothing to wait for. It may neither raise nor use the transaction.
        """
        groups = Groups(records, self._rows, (self.lookup[0], *self._table.fields))
        written = 0
        while group := groups.take():
            if not groups.are_at_hand:
                groups.draw()
            written += self._insert_group(group, groups, meanwhile)
        return written

    def _insert_group(self, batches: Sequence[Batch[R]], groups: Groups[R], meanwhile: Callable[[], object]) -> int:
        """Insert batches, each encoded while the server encrypts the ones before it, and so the first of the next group."""
        if not self._keys.is_known:
            self._keys.prefetch()
        connection = connection_of(self._session, self.model)
        returns_key = may_change_rows(connection, self._table)
        statement = self._statements.insert_many(returns_key=returns_key)
        keyring = self._keys.keyring(connection)
        counts: list[int] = []
        if not returns_key and not looks_for_taken(keyring):

            def encoded() -> Iterator[dict[str, Any]]:
                for batch in batches:
                    if not batch.encode(keyring):
                        return
                    yield batch.values(keyring) | written_with(keyring, CURRENT)
                for batch in groups.draw()[:1]:
                    batch.encode(keyring)
                if not groups.draw():
                    meanwhile()

            counts = statement.counts(connection, encoded())
        # What could not be encoded, or met a registry that is ahead of the keyring, is not written yet.
        left = [batch for position, batch in enumerate(batches) if not any(counts[position : position + 1])]
        return sum(counts) + sum(
            self._insert(connection, statement, each.values, each.records, returns_key=returns_key)
            for batch in left
            for each in batch.fitting(keyring)
        )

    def _insert(
        self,
        connection: Connection,
        statement: Prepared,
        values: Callable[[Keyring], MaskedValues],
        records: Sequence[R],
        *,
        returns_key: bool,
    ) -> int:
        """Insert rows under the current keys; where the registry already knows newer ones, fetch those and insert again."""
        keyring, tolerated = self._keys.keyring(connection), CURRENT
        for attempt in (1, 2):
            row = values(keyring)
            row.update(written_with(keyring, tolerated))
            if looks_for_taken(keyring):
                require_untaken(connection, self._statements, keyring, records)
            if returns_key:
                keys = [self._rows.key(each) for each in records]
                count = written(connection, self._table, statement, row, keys)
            else:
                count = statement.count(connection, row)
            if count:
                return count
            if attempt == 1:
                keyring, tolerated = renewed(self._keys, connection, keyring)
        raise left_behind(self._table.name, keyring)

    @forgetful
    def update(self, *key: Any, **changes: Any) -> None:  # noqa: PLR0912  # each branch is a state of the row or of the keys
        """Change some fields of a row, under the key version that the row has at that moment.

        Args:
            key: The row's lookup key.
            changes: New values by field name; None clears a field.

        Raises:
            ValueError: No such field, or a value is not of its type.
            NotFoundError: There is no such row.
            ValueFormatError: Python cannot hold the row's primary key, so that no value can be bound to it.
        """
        names = frozenset(changes)
        changed = self._changeable.get(names) or self._to_change(names)
        where = self._where(key)
        if not self._keys.is_known:
            self._keys.prefetch()
        connection = connection_of(self._session, self.model)
        keyring = self._keys.keyring(connection)
        tolerated, version = CURRENT, 0
        for _ in range(3):
            values = self._rows.changed(changes, keyring)
            values.update(where)
            values.update(parameters(keyring, self._table, changed))
            values.update(written_with(keyring, tolerated))
            if looks_for_taken(keyring):
                require_untaken(
                    connection, self._statements, keyring, [SimpleNamespace(**changes)], but=tuple(where.values())
                )
            if may_change_rows(connection, self._table):
                guarded = self._statements.guarded_update(names, keyring.schemes)
                count = changed_as_meant(connection, self._statements.key(), where, guarded, values)
            else:
                try:
                    count = self._statements.update(names, keyring.schemes).count(connection, values)
                except DatabaseError as error:
                    if not is_unnamed(self._table, error):
                        raise
                    break
            if count:
                return
            versions = self._statements.version().rows(connection, dict(where))
            if not versions:
                raise not_found(self._table, where.values())
            version = versions[0][0]
            if keyring.scheme(version) is None:
                keyring = self._keys.refresh(connection, version)
            else:  # the index key is no longer the current one, or a rotation committed between the two statements
                keyring, tolerated = renewed(self._keys, connection, keyring)
        else:
            if keyring.scheme(version) is None:
                raise unknown_version(self._table, version, "/".join(map(str, key)))
            raise left_behind(self._table.name, keyring)
        raise unnamed_row(self._table, where.values())

    @forgetful
    def delete(self, *key: Any) -> None:
        """Delete a row.

        Raises:
            NotFoundError: There is no such row.
            ConstraintError: Other rows refer to it.
        """
        where = self._where(key)
        if not self._statements.delete().count(connection_of(self._session, self.model), dict(where)):
            raise not_found(self._table, where.values())

    # --- reading -------------------------------------------------------------------------------------------------------

    @forgetful
    def get(self, *key: Any, fields: Iterable[str] | None = None) -> R:
        """Read one record.

        Args:
            key: The row's lookup key.
            fields: The encrypted fields to decrypt, all by default. The record refuses to give any other.

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
            raise wrong_row(connection_of(self._session, self.model), self._table, tuple(where.values()))
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
        """
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
            raise wrong_row(connection_of(self._session, self.model), self._table, wanted[0].values())
        return records

    @forgetful
    def page(self, *, after: R | None = None, limit: int = PAGE_ROWS, fields: Iterable[str] | None = None) -> list[R]:
        """Read the next records in the order of the primary key.

        Args:
            after: The last record of the page before; None for the first page.
            limit: Most records to return.
            fields: As for :meth:`get`.
        """
        return self._page({}, after, limit, fields)

    def _page(self, within: dict[str, Any], after: R | None, limit: int, fields: Iterable[str] | None) -> list[R]:
        if not isinstance(limit, int) or not 1 <= limit <= MAX_ROWS:
            raise ValueError(f"limit must be an int from 1 to {MAX_ROWS}")
        chosen = self._chosen(fields)
        names = self._statements.parameters
        within = {column: self._rows.plain(column, value) for column, value in within.items()}
        values: dict[str, Any] = {names.where(column): value for column, value in within.items()} | {
            "limit": int.__int__(limit)
        }
        if after is not None:
            key = zip(self._table.key, self._rows.key(after), strict=True)
            values |= {names.after(column.name): value for column, value in key}
        found = self._read(
            Statements.page, (chosen, tuple(within), after is not None), values, chosen, is_long=limit >= LONG_ROWS
        )
        for column, value in within.items():
            if any(getattr(each, column) != value for each in found):
                raise wrong_row(connection_of(self._session, self.model), self._table, (value,))
        return found

    def _find(self, name: str, values: Iterable[str], fields: Iterable[str] | None) -> list[R]:
        field = self._table.fields[name]
        assert field.index_column is not None  # the subclass names a searchable field
        forms = {normalised(field, value) for value in values}
        if not forms:
            return []
        wanted = sought = forms
        if field.normaliser == "name":
            wanted = {unified(form) for form in forms}
            sought = {each for form in forms for each in spellings(form)}
        asked = self._chosen(fields)
        chosen = asked if field in asked else (*asked, field)
        index_column = field.index_column

        def tokens(keyring: Keyring) -> dict[str, Any]:
            keys = keyring.index_column_keys(field.context)
            return {
                "tokens": dumped_tokens([token(key, form) for key in keys for form in sought]),
                "known": list(keyring.index_checks),
            }

        # A token says where to look; only the value itself says that it is the one.
        found = [
            each
            for each in self._read(
                Statements.find, (index_column, chosen), tokens, chosen, searches=True, is_many=len(forms) > 1
            )
            if (stored := getattr(each, name)) in wanted
            or (stored is not None and self._searched(each, field, stored) in wanted)
        ]
        if field not in asked:
            for each in found:
                object.__delattr__(each, name)
        return found

    def _searched(self, record: R, field: EncryptedField, stored: Any) -> str:
        """Return the form by which a value that was found is searched, for all spellings the same."""
        try:
            form = normalised(field, stored)
            return unified(form) if field.normaliser == "name" else form
        except ValueError as error:
            problem = error.args[0]
        row_id = codec.row_id([getattr(record, each.name) for each in self._table.key])
        raise ValueFormatError(
            f"{self._table.name} has a value that an earlier version indexed and that cannot be searched: in row {row_id}, "
            f"{problem}. Correct it by update().",
            table=self._table.name,
            field=field.name,
            row_id=row_id,
        )

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
        if not self._keys.is_known:
            self._keys.prefetch()
        connection = connection_of(self._session, self.model)
        keyring = self._keys.keyring(connection)
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
                    keyring = self._keys.renew(connection, keyring)
                    continue
                if searches and rows[0][0] is None:
                    return []
                unknown = self._rows.read(keyring, fields, found, rows)
            if unknown is None:
                return found
            keyring = self._keys.refresh(connection, unknown[0])
        raise unknown_version(self._table, *unknown) if unknown else left_behind(self._table.name, keyring)

    # --- inside --------------------------------------------------------------------------------------------------------

    @classmethod
    def _to_change(cls, names: frozenset[str]) -> tuple[EncryptedField, ...]:
        """Return the encrypted ones of fields to change, after a look whether all can be changed."""
        plain = {each.name for each in cls._statements.plain} - BOOKKEEPING
        unchangeable = names - plain - set(cls._table.fields)
        if unchangeable or not names:
            raise ValueError(f"{cls._table.name}: cannot change {', '.join(sorted(unchangeable)) or 'nothing'}")
        cls._changeable[names] = cls._named_by(names)
        return cls._changeable[names]

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
            raise ValueError(f"{cls._table.name} has no field {', '.join(sorted(unknown))}")
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
