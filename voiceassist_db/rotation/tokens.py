"""The blind-index tokens of one table: read values, make their tokens, and exchange those that are missing or of an older key.

Owns the statements. Which rows are next, and what becomes of a failure, is ``index_key``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    LargeBinary,
    UniqueConstraint,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
    tuple_,
    update,
)

from voiceassist_db import normalisers
from voiceassist_db.blind_index import token
from voiceassist_db.errors import ConfigurationError, DecryptionError, TransactionConflictError
from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Scheme
from voiceassist_db.loading import Unloadable, text_of
from voiceassist_db.models import BlindIndex, EncryptedField, EncryptedTable
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import array_parameter, dumped_tokens, dumper, element_type
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.pgcrypto.expressions import decrypt_stored, parameters
from voiceassist_db.prepared import Prepared
from voiceassist_db.triggers import GuardedUpdate, update_triggers

PAGE_ROWS: Final = 500

PrimaryKey = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Primary keys, in their order.

    Attributes:
        named: Those that Python can hold.
        unnamed: Those that it cannot, as the server writes them, of rows that have a searchable value or a token.
        last: The last one of all.
    """

    named: list[PrimaryKey]
    unnamed: list[PrimaryKey]
    last: PrimaryKey


def indexed(table: EncryptedTable) -> tuple[EncryptedField, ...]:
    """Return a table's searchable fields."""
    return tuple(each for each in table.fields.values() if each.indexes)


def require_normalisers(tables: Iterable[EncryptedTable]) -> None:
    """Refuse tables whose tokens this process cannot make.

    Raises:
        ConfigurationError: It lacks a normaliser of the application's.
    """
    for table in tables:
        for index in table.indexes:
            if not normalisers.is_known(index.normaliser):
                raise ConfigurationError(
                    f"the tokens of {table.name}.{index.column} are made by {normalisers.missing(index.normaliser)}. Nothing was changed; "
                    "rotate_index_key() in the application works, too"
                )


class TokenTable:
    """The statements that read values and exchange their tokens in one table."""

    def __init__(self, table: EncryptedTable, *, is_adopted: bool) -> None:
        self.name = table.name
        self.table = table
        self._fields = indexed(table)
        self._indexes = table.indexes
        self._unique = _unique(table)
        self._width = len(table.key)
        self._decoders = [codec.decoder(each, table=table.name) for each in self._fields]
        self._dumpers = [dumper(each.type) for each in table.key]
        key = tuple_(*table.key)
        after = tuple_(*(bindparam(f"after_{at}", type_=each.type) for at, each in enumerate(table.key)))
        page = select(*table.key, self._has_values()).order_by(*table.key).limit(bindparam("limit"))
        self._first = Prepared(page, table=self.name)
        self._later = Prepared(page.where(key > after), table=self.name)
        columns: list[ColumnElement[Any]] = [
            decrypt_stored(table, each, is_adopted=is_adopted) for each in self._fields
        ]
        columns += [table.table.c[each.column] for each in self._indexes]
        given = self._given(())
        wanted = key.in_(select(*(given.c[f"k{at}"] for at in range(self._width))))
        self._read = Prepared(select(*table.key, table.version, *columns).where(wanted), table=self.name)
        tokens_of, are_same = self._exchanged()
        self._exchange = Prepared(update(table.table).values(tokens_of).where(*are_same), table=self.name)
        self._guarded = GuardedUpdate(table, tokens_of, *are_same)
        self._hold = Prepared(select(*table.key).where(wanted).with_for_update(key_share=True), table=self.name)
        self._is_guarded = False

    def _given(self, tokens: Sequence[str]) -> Any:
        arrays: list[Any] = [
            array_parameter(f"k{at}", each.type, element_type(each.type)) for at, each in enumerate(self.table.key)
        ]
        arrays += [cast(bindparam(name), ARRAY(LargeBinary)) for name in tokens]
        names = [*(f"k{at}" for at in range(self._width)), *tokens]
        columns = (func.pg_catalog.unnest(each).label(name) for name, each in zip(names, arrays, strict=True))
        return select(*columns).subquery(self.table.beside("given"))

    def _exchanged(self) -> tuple[dict[str, ColumnElement[Any]], list[ColumnElement[bool]]]:
        """Return the new token of each column, and the conditions that a row is one of those and has its old tokens."""
        places = range(len(self._indexes))
        given = self._given([*(f"old_{at}" for at in places), *(f"new_{at}" for at in places)])
        columns = [self.table.table.c[each.column] for each in self._indexes]
        is_given = [column == given.c[f"k{at}"] for at, column in enumerate(self.table.key)]
        # Compare and swap: a value that somebody has changed since it was read has its own, newer token. Where the change was made in
        # SQL, and left no token, the next pass finds the wrong one.
        is_old = [_is_same(column, given.c[f"old_{at}"]) for at, column in enumerate(columns)]
        return {column.name: given.c[f"new_{at}"] for at, column in enumerate(columns)}, is_given + is_old

    def _has_values(self) -> ColumnElement[bool]:
        searched = [*(each.column for each in self._fields), *(each.column for each in self._indexes)]
        return or_(*(self.table.table.c[name].is_not(None) for name in searched))

    def page(self, connection: Connection, after: PrimaryKey | None) -> Page | None:
        """Return the next primary keys; None behind the last one."""
        limit = {"limit": PAGE_ROWS}
        if after is None:
            rows = self._first.tolerant_rows(connection, limit)
        else:
            given = {f"after_{at}": value for at, value in enumerate(after)}
            rows = self._later.tolerant_rows(connection, limit | given)
        if not rows:
            return None
        named: list[PrimaryKey] = []
        unnamed: list[PrimaryKey] = []
        for *key, has_values in rows:
            if not any(isinstance(part, Unloadable) for part in key):
                named.append(tuple(key))
            elif has_values:
                unnamed.append(tuple(map(text_of, key)))
        return Page(named, unnamed, tuple(map(text_of, rows[-1][: self._width])))

    def renew(self, connection: Connection, keyring: Keyring, keys: Sequence[PrimaryKey], *, fills_unique: bool) -> int:
        """Exchange the tokens of these rows that are missing or not of the newest key; return how many rows had any.

        Raises:
            RowError: A value cannot be read, or has no token, or another row has it where each may stand only once.
            TriggerError: A trigger stored something else, or skipped a row.
            TransactionConflictError: The table has a trigger that was not known of. The next call expects it.
        """
        if self._is_guarded:
            self._hold.count(connection, dict(self._arrays(keys)))
        rows = self._read.rows(connection, self._arrays(keys) | parameters(keyring, self.table, self._fields))
        stale = []
        for row in rows:
            old = list(row[self._width + 1 + len(self._fields) :])
            new = self._tokens(row, keyring, fills_unique=fills_unique)
            if old != new:
                stale.append((row[: self._width], old, new))
        if not stale:
            return 0
        places = range(len(self._indexes))
        values = self._arrays([key for key, _, _ in stale])
        values |= {f"old_{at}": dumped_tokens([old[at] for _, old, _ in stale]) for at in places}
        values |= {f"new_{at}": dumped_tokens([new[at] for _, _, new in stale]) for at in places}
        if self._is_guarded:
            self._guarded.write(connection, values, is_locked=True)
            return len(stale)
        self._exchange.count(connection, values)
        # After the UPDATE, whose lock keeps other transactions from adding a trigger.
        if update_triggers(connection, self.table):
            self._is_guarded = True
            raise TransactionConflictError(f"{self.name} has triggers: its tokens are exchanged again")
        return len(stale)

    def _arrays(self, keys: Sequence[PrimaryKey]) -> dict[str, Array]:
        return {f"k{at}": dump([key[at] for key in keys]) for at, dump in enumerate(self._dumpers)}

    def _tokens(self, row: tuple[Any, ...], keyring: Keyring, *, fills_unique: bool) -> list[bytes | None]:
        """Return the tokens that a row should have."""
        row_id = codec.row_id(row[: self._width])
        version = row[self._width]
        # Without a version no value opens, so there is none here.
        scheme = Scheme.BOUND if version is None and self.table.is_in_place else keyring.scheme(version)
        if scheme is None:
            raise DecryptionError(
                f"row {row_id} of {self.name} is under a key version that is not live", table=self.name, row_id=row_id
            )
        first = self._width + 1
        values = {
            each.name: decode(scheme, row_id, plaintext)
            for each, decode, plaintext in zip(self._fields, self._decoders, row[first:], strict=False)
        }
        tokens: list[bytes | None] = []
        for index, stored in zip(self._indexes, row[first + len(self._fields) :], strict=True):
            value = values[index.field]
            is_left = stored is None and not fills_unique and index.column in self._unique
            made = None if value is None or is_left else self._token(index, value, keyring)
            if made is None and stored is not None and value is not None:
                raise DecryptionError(
                    f"{self.name}.{index.field} of row {row_id} has a blind index, but a value that cannot be searched",
                    table=self.name,
                    field=index.field,
                    row_id=row_id,
                )
            tokens.append(made)
        return tokens

    @staticmethod
    def _token(index: BlindIndex, value: Any, keyring: Keyring) -> bytes | None:
        """Return a value's token; None where it has no form to be searched by."""
        try:
            normalised = normalisers.form_of(index.normaliser)(value)
        except ValueError:
            return None
        return token(keyring.index_column_keys(index.info)[0], normalised)


def _unique(table: EncryptedTable) -> set[str]:
    """Return the names of the columns that a unique constraint or index covers."""
    constraints = [each for each in table.table.constraints if isinstance(each, UniqueConstraint)]
    of_constraints = {column.name for each in constraints for column in each.columns}
    return of_constraints | {column.name for each in table.table.indexes if each.unique for column in each.columns}


def _is_same(one: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that two values are equal or both NULL, by an operator that can be named with its schema."""
    return or_(one == other, and_(one.is_(None), other.is_(None)))
