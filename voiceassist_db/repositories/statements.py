"""The statements of one encrypted table, each built and compiled once.

Owns the SQL of a repository. Holds no key and no value: both come with the parameters of each execution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    ColumnElement,
    Executable,
    FromClause,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.types import TypeEngine

from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable, EncryptionKeyRow, IndexKeyRow, table_of
from voiceassist_db.pgcrypto.arrays import array_of, array_parameter, element_type, is_array, unlimited
from voiceassist_db.pgcrypto.expressions import (
    decrypt_stored,
    encrypt_new,
    encrypt_stored,
    is_live,
    plaintext_type,
    version_parameter,
    version_to_write,
)
from voiceassist_db.prepared import Prepared
from voiceassist_db.repositories.criteria import Criteria
from voiceassist_db.repositories.floats import exact
from voiceassist_db.repositories.ordering import Order
from voiceassist_db.repositories.parameters import Parameters
from voiceassist_db.repositories.rows import BOOKKEEPING
from voiceassist_db.triggers import GuardedUpdate

_KEYS: Final = table_of(EncryptionKeyRow)
_INDEX_KEYS: Final = table_of(IndexKeyRow)

KEPT: Final = 500
"""Statements with criteria that are kept for a table; SQLAlchemy keeps as many for an engine."""

TOLERATED: Final = "tolerated_state"
"""Parameter of every write: the state, besides ``current``, in which the registry may have the keys to write under."""

INDEX_CHECK: Final = "index_check"
"""Parameter of every write of a token: the check value of the index key that it was made with."""


class Statements:
    """Builds the statements of one table on first use, and keeps them.

    Every ``SELECT`` returns the primary key, the key version, the plain columns, then the decrypted fields that were asked
    for. Values are named as :attr:`parameters` says; keys and versions as ``pgcrypto.expressions.parameters`` names them.

    Args:
        table: The table.
        plain: Its columns that are neither key, version, encrypted nor an index.
        lookup: The columns by which application code names one row.
        is_adopted: Whether it reads rows of scheme ``direct``: see ``pgcrypto.expressions.decrypt``.
    """

    def __init__(
        self,
        table: EncryptedTable,
        plain: Iterable[Column[Any]],
        lookup: Iterable[Column[Any]],
        *,
        is_adopted: bool = False,
    ) -> None:
        self.table = table
        self.plain = tuple(plain)
        self.lookup = tuple(lookup)
        self._is_adopted = is_adopted
        self.parameters: Final = Parameters(table.table)
        self._written = [*table.key, *(each for each in self.plain if each.name not in BOOKKEEPING)]
        self._prepared: dict[object, Prepared] = {}
        self._of_criteria: dict[object, Prepared] = {}

    def _once(self, key: object, build: Callable[[], Executable]) -> Prepared:
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = Prepared(build(), table=self.table.name)
        return prepared

    def insert(self, *, returns_key: bool = False) -> Prepared:
        """One row from scalar parameters; none where the registry is ahead of the keyring (see :data:`TOLERATED`)."""
        return self._once(("insert", returns_key), lambda: self._returning(self._insert(), returns_key))

    def insert_many(self, *, returns_key: bool = False) -> Prepared:
        """Many rows from one array parameter for each column; none where the registry is ahead of the keyring."""
        return self._once(("insert_many", returns_key), lambda: self._returning(self._insert_many(), returns_key))

    def writable(self) -> Prepared:
        """One row where the registry lets rows be inserted with the keyring; else none."""
        condition = (_is_writable(), *self._index_is_current())
        return self._once("writable", lambda: select(literal_column("1").label("one")).where(*condition))

    def _returning(self, statement: Any, returns_key: bool) -> Executable:
        made: Executable = statement.returning(*self.table.key) if returns_key else statement
        return made

    def get(self, fields: tuple[EncryptedField, ...]) -> Prepared:
        """One row by its lookup columns."""
        return self._once(("get", fields), lambda: self._select(fields).where(*self._is_row()))

    def get_many(self, fields: tuple[EncryptedField, ...], for_update: bool) -> Prepared:
        """Many rows by arrays of their lookup columns, locked or not."""

        def build() -> Executable:
            chosen = self._select(fields).where(self._is_one_of())
            return chosen.with_for_update() if for_update else chosen

        return self._once(("get_many", fields, for_update), build)

    def find(self, index_columns: tuple[str, ...], fields: tuple[EncryptedField, ...]) -> Prepared:
        """Rows that have one of the given tokens in each of these blind indexes.

        Each row's last column counts the live index keys that are not ``known``. Where nothing is found there is one row of NULLs, so that
        the count is always told, of the same moment as the rows.
        """

        def build() -> Executable:
            always = select(literal_column("1").label("one")).subquery(self.table.beside("always"))
            found = always.outerjoin(
                self.table.table, and_(*(self._has_token(each, self.parameters.where(each)) for each in index_columns))
            )
            return self.opened(fields, self.stored(fields).select_from(found).limit(_ALL)).add_columns(
                _unknown_index_keys()
            )

        return self._once(("find", index_columns, fields), build)

    def taken(self, index_column: str) -> Prepared:
        """The lookup columns of rows whose blind index has one of ``tokens``."""
        return self._once(
            ("taken", index_column), lambda: select(*self.lookup).where(self._has_token(index_column, "tokens"))
        )

    def page(self, fields: tuple[EncryptedField, ...], within: tuple[str, ...], after: bool) -> Prepared:
        """At most ``limit`` rows in the order of the primary key, after a given one, within equal columns."""

        def build() -> Executable:
            stored = self.stored(fields).where(*(self._equal(self.table.table.c[name]) for name in within))
            if after:
                key = [_scalar(self.parameters.after(each.name), each.type) for each in self.table.key]
                stored = stored.where(tuple_(*self.table.key) > tuple_(*key))
            return self.opened(fields, stored.limit(bindparam("limit")))

        return self._once(("page", fields, within, after), build)

    def select(
        self, fields: tuple[EncryptedField, ...], criteria: Criteria, order: Order, after: Sequence[Any] | None
    ) -> Prepared:
        """At most ``limit`` rows that fulfil criteria, in an order, after a place in it."""

        def build() -> Executable:
            stored = self.stored(fields).where(*criteria.conditions())
            if after is not None:
                stored = stored.where(order.after(after))
            stored = stored.order_by(None).order_by(*order.columns())
            return self.opened(fields, stored.limit(bindparam("limit")))

        nulls = None if after is None else tuple(each is None for each in after)
        return self._kept(("select", fields, order.shape, nulls), criteria, build)

    def count(self, criteria: Criteria) -> Prepared:
        """How many rows fulfil criteria."""
        return self._kept(
            "count", criteria, lambda: select(func.count()).select_from(self.table.table).where(*criteria.conditions())
        )

    def exists(self, criteria: Criteria) -> Prepared:
        """Whether a row fulfils criteria."""
        return self._kept(
            "exists",
            criteria,
            lambda: select(exists(select(*self.table.key).where(*criteria.conditions()).correlate(None))),
        )

    def _kept(self, kind: object, criteria: Criteria, build: Callable[[], Executable]) -> Prepared:
        """Return a statement with criteria; those whose shape comes again are kept, but not for ever."""
        if criteria.shape is None:
            return Prepared(build(), table=self.table.name)
        key = (kind, criteria.shape)
        prepared = self._of_criteria.get(key)
        if prepared is None:
            if len(self._of_criteria) >= KEPT:
                self._of_criteria.clear()
            prepared = self._of_criteria[key] = Prepared(build(), table=self.table.name)
        return prepared

    def update(self, names: frozenset[str], schemes: Mapping[str, Scheme]) -> Prepared:
        """Change some fields of one row, under the row's own key version; no row where that version, or index key, is not live."""

        def build() -> Executable:
            changed = update(self.table.table).values(self._changes(names, schemes))
            return changed.where(*self._is_changeable(names))

        return self._once(("update", names, *schemes.values()), build)

    def guarded_update(self, names: frozenset[str], schemes: Mapping[str, Scheme]) -> GuardedUpdate:
        """Do the same in a table with a trigger that can change the row."""
        key = ("guarded_update", names, *schemes.values())
        found = self._prepared.get(key)
        if not isinstance(found, GuardedUpdate):
            changes = self._changes(names, schemes)
            found = self._prepared[key] = GuardedUpdate(self.table, changes, *self._is_changeable(names))
        return found

    def _is_changeable(self, names: frozenset[str]) -> list[ColumnElement[bool]]:
        return [*self._is_row(), self._has_key(names), *self._index_is_current(names)]

    def _has_key(self, names: frozenset[str]) -> ColumnElement[bool]:
        """Return the condition that there is a key for a row's values: its version is live, or it has none and gets the current one."""
        if not self.table.is_in_place:
            return is_live(self.table)
        is_fit = _is_writable() if names & self.table.fields.keys() else true()
        return or_(is_live(self.table), and_(self.table.version.is_(None), is_fit))

    def key(self) -> Prepared:
        """The primary key of one row, which is locked."""
        return self._once("key", lambda: select(*self.table.key).where(*self._is_row()).with_for_update(key_share=True))

    def version(self) -> Prepared:
        """The key version of one row."""
        return self._once("version", lambda: select(self.table.version).where(*self._is_row()))

    def delete(self) -> Prepared:
        """Delete one row."""
        return self._once("delete", lambda: delete(self.table.table).where(*self._is_row()))

    def _new_row(self, value: Callable[[str, TypeEngine[Any]], ColumnElement[Any]]) -> dict[str, ColumnElement[Any]]:
        names = self.parameters
        row = {each.name: value(names.plain(each.name), each.type) for each in self._written}
        row[self.table.version.name] = version_parameter("current")
        for field in self.table.fields.values():
            plaintext = value(names.plaintext(field.column), plaintext_type(field))
            row[field.column] = encrypt_new(self.table, field, plaintext)
            for index in field.indexes:
                row[index.column] = value(names.token(index.column), LargeBinary())
        return row

    def _insert(self) -> Executable:
        row = self._new_row(_stored)
        return insert(self.table.table).from_select(
            list(row), select(*row.values()).where(_is_writable(), *self._index_is_current())
        )

    def _insert_many(self) -> Executable:
        elements: dict[str, TypeEngine[Any]] = {}
        as_text = {self.parameters.plain(each.name) for each in self.plain}

        def element(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
            # Those of plain columns travel as text, for they are of any type.
            given = elements[name] = Text() if name in as_text else element_type(type_)
            if is_array(type_):
                return array_of(column(name, given), type_)
            return cast(column(name, given), unlimited(type_))

        row = self._new_row(element)
        # Side by side in a target list, and not unnest(a, b) in FROM, whose rows the server gathers: plaintext, in a file on its
        # disk where they need more than work_mem.
        arrays = (
            func.pg_catalog.unnest(cast(bindparam(name), ARRAY(type_))).label(name) for name, type_ in elements.items()
        )
        return insert(self.table.table).from_select(
            list(row),
            select(*row.values())
            .select_from(select(*arrays).subquery("given"))
            .where(_is_writable(), *self._index_is_current()),
        )

    def _select(self, fields: tuple[EncryptedField, ...]) -> Select[Any]:
        return select(*self.table.key, self.table.version, *map(exact, self.plain), *self._decrypted(fields))

    def _decrypted(
        self, fields: tuple[EncryptedField, ...], source: FromClause | None = None
    ) -> Iterator[ColumnElement[Any]]:
        for field in fields:
            yield decrypt_stored(self.table, field, source, is_adopted=self._is_adopted).label(
                self.parameters.plaintext(field.column)
            )

    def stored(self, fields: tuple[EncryptedField, ...]) -> Select[Any]:
        """Select what is stored of rows, in the order of the primary key."""
        ciphertexts = (self.table.table.c[field.column] for field in fields)
        return select(*self.table.key, self.table.version, *self.plain, *ciphertexts).order_by(*self.table.key)

    def opened(self, fields: tuple[EncryptedField, ...], stored: Select[Any]) -> Select[Any]:
        """Decrypt what is selected, after it was sorted: a sort that needs more than work_mem writes its rows to disk."""
        # The limit keeps the server from pulling the inner query up, and from working on it in parallel. An ORDER BY out here would
        # let it sort once more where it cannot tell that the rows are in order already; and nothing here changes their order.
        source = stored.subquery("stored")
        columns = (source.c[each.name] for each in (*self.table.key, self.table.version, *self.plain))
        return select(*map(exact, columns), *self._decrypted(fields, source))

    def _changes(self, names: frozenset[str], schemes: Mapping[str, Scheme]) -> dict[str, Any]:
        changes: dict[str, Any] = {
            each.name: _stored(self.parameters.plain(each.name), each.type) for each in self.plain if each.name in names
        }
        for field in self.table.fields.values():
            if field.name in names:
                value = _scalar(self.parameters.plaintext(field.column), plaintext_type(field))
                changes[field.column] = encrypt_stored(self.table, field, value, schemes)
                for index in field.indexes:
                    changes[index.column] = _scalar(self.parameters.token(index.column), LargeBinary())
        if self.table.is_in_place and names & self.table.fields.keys():
            changes[self.table.version.name] = version_to_write(self.table)
        if "updated_at" in self.table.table.c:
            changes["updated_at"] = func.now()
        return changes

    def _index_is_current(self, names: frozenset[str] | None = None) -> list[ColumnElement[bool]]:
        """Return the condition that the tokens to be written are of the index key that the registry has as the current one."""
        indexed = [each for each in self.table.indexes if names is None or each.field in names]
        return [_is_current_index_key()] if indexed else []

    def _is_row(self) -> list[ColumnElement[bool]]:
        return [self._equal(each) for each in self.lookup]

    def _equal(self, each: Column[Any]) -> ColumnElement[bool]:
        return each == _scalar(self.parameters.where(each.name), each.type)

    def _has_token(self, index_column: str, parameter: str) -> ColumnElement[bool]:
        return self.table.table.c[index_column] == func.any(cast(bindparam(parameter), ARRAY(LargeBinary)))

    def _is_one_of(self) -> ColumnElement[bool]:
        plain = {each.name for each in self.plain}
        arrays = [
            array_parameter(
                self.parameters.where(each.name),
                each.type,
                Text() if each.name in plain else element_type(each.type),
            )
            for each in self.lookup
        ]
        if len(self.lookup) == 1:
            return self.lookup[0] == func.any(arrays[0])
        return and_(tuple_(*self.lookup).in_(select(*(func.pg_catalog.unnest(each) for each in arrays))))


_ALL: Final[ColumnElement[int]] = literal_column(str(2**63 - 1))


def _is_writable() -> ColumnElement[bool]:
    """Return the condition that the current version of the keyring is, by the registry, one to write new rows under.

    A process learns of a rotation when it asks the key store again, or here, by its first write: without an error, which would
    end the caller's transaction.
    """
    is_meant = _KEYS.c.version == version_parameter("current")
    is_fit = or_(_KEYS.c.state == literal_column("'current'"), _KEYS.c.state == bindparam(TOLERATED, type_=Text))
    return exists().where(is_meant, is_fit)


def _is_current_index_key() -> ColumnElement[bool]:
    given = cast(bindparam(INDEX_CHECK), LargeBinary)
    is_fit = or_(
        _INDEX_KEYS.c.state == literal_column("'current'"), _INDEX_KEYS.c.state == bindparam(TOLERATED, type_=Text)
    )
    # NULL where the store holds no index key: then there is no token to write either.
    return or_(given.is_(None), exists().where(_INDEX_KEYS.c.check_value == given, is_fit))


def _unknown_index_keys() -> ColumnElement[int]:
    known = cast(bindparam("known"), ARRAY(LargeBinary))
    is_unknown = _INDEX_KEYS.c.check_value != func.all(known)
    return (
        select(func.count())
        .select_from(_INDEX_KEYS)
        .where(_INDEX_KEYS.c.state != literal_column("'retired'"), is_unknown)
        .scalar_subquery()
    )


def _scalar(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=unlimited(type_))


def _stored(name: str, type_: TypeEngine[Any]) -> ColumnElement[Any]:
    """Return a parameter of a value to be stored, which ``Rows`` gives as JSON where it is an array."""
    return array_of(bindparam(name, type_=Text()), type_) if is_array(type_) else _scalar(name, type_)
