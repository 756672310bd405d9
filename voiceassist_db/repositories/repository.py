"""The repository of any encrypted table: records in, records out, and never a key in sight.

Owns what a class of a repository is made of, and how it writes: it encodes, then runs one INSERT or UPDATE. How it reads is ``reading``'s
and ``queries``'. It never commits and never rolls back: the transaction is the caller's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Connection

from voiceassist_db.errors import DatabaseError
from voiceassist_db.keyring import Keyring
from voiceassist_db.masking import MaskedValues
from voiceassist_db.models import EncryptedField, table_of
from voiceassist_db.models.requirements import usable
from voiceassist_db.pgcrypto.expressions import parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.bulk import Batch, Groups
from voiceassist_db.repositories.checks import Check, checker
from voiceassist_db.repositories.fitting import left_out, lookup_columns, plain_columns
from voiceassist_db.repositories.freshness import (
    CURRENT,
    left_behind,
    looks_for_taken,
    renewed,
    require_untaken,
    written_with,
)
from voiceassist_db.repositories.queries import Queries
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.refusals import is_unnamed, not_found, unknown_version, unnamed_row
from voiceassist_db.repositories.rows import BOOKKEEPING, Rows
from voiceassist_db.repositories.searching import searched
from voiceassist_db.repositories.server_keys import ServerKeys, made_by_server
from voiceassist_db.repositories.statements import Statements
from voiceassist_db.repositories.triggers import changed_as_meant, may_change_rows, written
from voiceassist_db.sessions import connection_of
from voiceassist_db.tracebacks import forgetful
from voiceassist_db.triggers import rows_skipped

R = TypeVar("R", bound=Record)


class Repository(Queries[R]):
    """Reads and writes the records of one encrypted table.

    A subclass names its ``model`` and its ``record``; that is all that a table needs. An ``EncryptedRecord`` is both.

    Attributes:
        model: The table's model. Not needed where the record declares the table.
        record: The record class, made by ``@record``: fields named as the encrypted fields and the plain columns.
        lookup: Columns by which :meth:`get`, :meth:`update` and :meth:`delete` name a row: the primary key by default.
        forms: By plain column, a function that gives back a new value or refuses it (ValueError). Stored values are read as they are.
        session: The session or connection that it works in, for finders of your own.
    """

    forms: ClassVar[Mapping[str, Check]] = {}
    _key: ClassVar[attrgetter[Any]]
    _server_keys: ClassVar[ServerKeys | None]
    _left_out: ClassVar[list[str]]
    _changeable: ClassVar[dict[frozenset[str], tuple[EncryptedField, ...]]]

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
        cls._key = attrgetter(*(each.name for each in cls._table.key))
        by_server = made_by_server(cls._table, cls.record)
        cls._server_keys = ServerKeys(cls._table, by_server) if by_server else None
        cls._left_out = left_out(cls._table, cls.record) if cls._table.is_in_place else []
        cls._fields = tuple(cls._table.fields.values())
        cls._indexes = searched(cls._table)
        cls._changeable, cls._readable = {}, {}  # not functools.cache, which would keep each class for ever
        cls._naming = [(cls._statements.parameters.where(each.name), checker(each, names_row=True)) for each in lookup]

    @forgetful
    def add(self, record: R) -> Any:
        """Write a new row.

        Args:
            record: The record.

        Returns:
            Its primary key, which may be made by the server: one value, or a tuple where it has several columns.

        Raises:
            ValueError: A value is not of its field's type; or the record lacks a column that a new row needs.
            DuplicateError: A row with this key, or with the same value in a unique index, exists.
        """
        deadline = self._keys.deadline()
        if not self._keys.is_known:
            self._keys.prefetch(deadline)
        connection = connection_of(self.session, self.model)
        if self._left_out:
            raise self._no_row()
        if self._server_keys is not None:
            (record,) = self._server_keys.given(connection, [record])

        def values(keyring: Keyring) -> MaskedValues:
            return self._rows.new(record, keyring)

        returns_key = may_change_rows(connection, self._table)
        statement = self._statements.insert(returns_key=returns_key)
        self._insert(connection, statement, values, [record], deadline, returns_key=returns_key)
        return self._key(record)

    @classmethod
    def _no_row(cls) -> ValueError:
        return ValueError(
            f"a new row of {cls._table.name} needs {', '.join(cls._left_out)}, which {cls.record.__name__} does not have: insert it by the "
            "application's model, then update() its fields here"
        )

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
        if self._left_out:
            raise self._no_row()
        if self._server_keys is not None:
            records = self._server_keys.all_given(connection_of(self.session, self.model), records)
        groups = Groups(records, self._rows, (self.lookup[0], *self._table.fields))
        written = 0
        while group := groups.take():
            if not groups.are_at_hand:
                groups.draw()
            written += self._insert_group(group, groups, meanwhile)
        return written

    def _insert_group(self, batches: Sequence[Batch[R]], groups: Groups[R], meanwhile: Callable[[], object]) -> int:
        """Insert batches, each encoded while the server encrypts the ones before it, and so the first of the next group."""
        deadline = self._keys.deadline()
        if not self._keys.is_known:
            self._keys.prefetch(deadline)
        connection = connection_of(self.session, self.model)
        returns_key = may_change_rows(connection, self._table)
        statement = self._statements.insert_many(returns_key=returns_key)
        keyring = self._keys.keyring(connection, deadline)
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
            self._insert(connection, statement, each.values, each.records, deadline, returns_key=returns_key)
            for batch in left
            for each in batch.fitting(keyring)
        )

    def _insert(
        self,
        connection: Connection,
        statement: Prepared,
        values: Callable[[Keyring], MaskedValues],
        records: Sequence[R],
        deadline: float,
        *,
        returns_key: bool,
    ) -> int:
        """Insert rows under the current keys; where the registry already knows newer ones, fetch those and insert again."""
        keyring, tolerated = self._keys.keyring(connection, deadline), CURRENT
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
            # Asked of a table with triggers at once: no newer key helps where a trigger skips the rows.
            if returns_key or attempt > 1:
                given = parameters(keyring, self._table, ()) | written_with(keyring, tolerated)
                if self._statements.writable().rows(connection, given):
                    raise rows_skipped(connection, self._table)
            if attempt == 1:
                keyring, tolerated = renewed(self._keys, connection, keyring, deadline)
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
        deadline = self._keys.deadline()
        if not self._keys.is_known:
            self._keys.prefetch(deadline)
        connection = connection_of(self.session, self.model)
        keyring = self._keys.keyring(connection, deadline)
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
            if self._is_unknown(keyring, version):
                keyring = self._keys.refresh(connection, version, deadline)
            else:  # the index key is no longer the current one, or a rotation committed between the two statements
                keyring, tolerated = renewed(self._keys, connection, keyring, deadline)
        else:
            if self._is_unknown(keyring, version):
                raise unknown_version(self._table, version, "/".join(map(str, key)))
            raise left_behind(self._table.name, keyring)
        raise unnamed_row(self._table, where.values())

    @forgetful
    def delete(self, *key: Any) -> None:
        """Delete a row.

        Args:
            key: The row's lookup key.

        Raises:
            NotFoundError: There is no such row.
            ConstraintError: Other rows refer to it.
        """
        where = self._where(key)
        if not self._statements.delete().count(connection_of(self.session, self.model), dict(where)):
            raise not_found(self._table, where.values())

    @classmethod
    def _to_change(cls, names: frozenset[str]) -> tuple[EncryptedField, ...]:
        """Return the encrypted ones of fields to change, after a look whether all can be changed."""
        plain = {each.name for each in cls._statements.plain} - BOOKKEEPING
        unchangeable = names - plain - set(cls._table.fields)
        if unchangeable or not names:
            told = f"{cls._table.name}: cannot change {', '.join(sorted(unchangeable)) or 'nothing'}"
            raise ValueError(f"{told}. update() changes {', '.join(sorted(plain | set(cls._table.fields)))}")
        cls._changeable[names] = cls._named_by(names)
        return cls._changeable[names]

    @classmethod
    def _is_unknown(cls, keyring: Keyring, version: int | None) -> bool:
        """Say whether a row is under a version that a keyring lacks; under none, its values are written under the current one."""
        return not (version is None and cls._table.is_in_place) and keyring.scheme(version) is None
