"""Between records and the parameters and rows of statements.

Owns encoding and decoding of whole rows: values, blind-index tokens, keys. Executes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Column, LargeBinary

from voiceassist_db import normalisers
from voiceassist_db.blind_index import token
from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Scheme
from voiceassist_db.masking import MaskedValues
from voiceassist_db.models import BlindIndex, EncryptedField, EncryptedTable, Kind
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.arrays import Dump, dumper, dumper_of_any, is_array, json_of_arrays
from voiceassist_db.pgcrypto.binding import Array
from voiceassist_db.pgcrypto.expressions import parameters, plaintext_type
from voiceassist_db.repositories.checks import Check, checker, form_checker
from voiceassist_db.repositories.parameters import Parameters
from voiceassist_db.repositories.records import Record
from voiceassist_db.repositories.rules import is_unlimited
from voiceassist_db.values import MAX_ROW_BYTES, RefusedValueError, is_unicode
from voiceassist_db.values import date as plain_date
from voiceassist_db.values import integer as plain_integer
from voiceassist_db.values import text as plain_text

R = TypeVar("R", bound=Record)

BOOKKEEPING: Final = frozenset({"key_version", "created_at", "updated_at"})
"""Columns that the database or the repository writes, and a record only reads."""

KEY_BYTES: Final = 2600
"""Bytes of all columns by which rows are named, below the 2,704 of an entry of a PostgreSQL B-tree."""

_BOUND: Final = Scheme.BOUND
_DIRECT: Final = Scheme.DIRECT

Row = tuple[Any, ...]
Setter = Callable[[Any, Any], None]
Layout = tuple[list[tuple[Setter, int]], list[tuple[Setter, int, codec.Decoder]]]


class Rows(Generic[R]):
    """Encodes and decodes the rows of one table.

    Args:
        table: The table.
        record: The class of its records.
        plain: The unencrypted columns that the record has.
        lookup: Names of the columns by which application code names one row.
        forms: By plain column, what refuses a new value without the column's form.
    """

    def __init__(
        self,
        table: EncryptedTable,
        record: type[R],
        plain: Sequence[Column[Any]],
        lookup: Iterable[str],
        forms: Mapping[str, Check],
    ) -> None:
        self._table = table
        self._record = record
        self._key = tuple(each.name for each in table.key)
        self._plain = tuple(each.name for each in plain)
        self._fields = tuple(table.fields.values())
        naming = frozenset({*self._key, *lookup})
        written = [each for each in (*table.key, *plain) if each.name not in BOOKKEEPING]
        self._names = Parameters(table.table)
        share = MAX_ROW_BYTES // (len(table.fields) + sum(map(is_unlimited, plain)))
        most = {each.name: KEY_BYTES // len(naming) if each.name in naming else share for each in written}
        self._stored_checks = {each.name: checker(each, names_row=each.name in naming) for each in written}
        self._checks = {
            each.name: checker(each, names_row=each.name in naming, most=most[each.name]) for each in written
        }
        self._checks |= {name: form_checker(name, self._checks[name], form) for name, form in forms.items()}
        # One that no argument gives can only be of a record that was read.
        kept = {each.name for each in dataclasses.fields(record) if each.init}  # type: ignore[arg-type]  # made by @record
        self._dates = [(name, attrgetter(name)) for name in ("created_at", "updated_at") if name in kept]
        self._written = [
            (self._names.plain(each.name), attrgetter(each.name), self._checks[each.name]) for each in written
        ]
        self._lookup_dumpers = {each.name: dumper_of_any(each.type) for each in plain}
        self._lookup_dumpers |= {each.name: dumper(each.type) for each in table.key}
        self._dumpers = self._array_dumpers()
        self._arrays = {
            self._names.plain(each.name): json_of_arrays(each.type) for each in plain if is_array(each.type)
        }
        self._encoders = {name: codec.encoder(each, most=share) for name, each in table.fields.items()}
        self._tokens = {
            name: [(self._names.token(index.column), index) for index in each.indexes]
            for name, each in table.fields.items()
        }
        self._encoded = [
            (self._names.plaintext(each.column), self._tokens[name], attrgetter(name), self._encoders[name])
            for name, each in table.fields.items()
        ]
        self._changing = {name: self._names.plain(name) for name in self._checks}
        self._changing |= {name: self._names.plaintext(each.column) for name, each in table.fields.items()}
        self._layouts: dict[tuple[EncryptedField, ...], Layout] = {}
        self._decoders = {name: codec.decoder(each, table=table.name) for name, each in table.fields.items()}

    def _array_dumpers(self) -> dict[str, Dump]:
        dumpers = {self._names.plain(column): dump for column, dump in self._lookup_dumpers.items()}
        for field in self._table.fields.values():
            dumpers[self._names.plaintext(field.column)] = dumper(plaintext_type(field))
            for index in field.indexes:
                dumpers[self._names.token(index.column)] = dumper(LargeBinary())
        return dumpers

    def new(self, record: R, keyring: Keyring) -> MaskedValues:
        """Return the parameters of a new row under the current key, and the keys and version.

        Raises:
            ValueError: A value is not of its field's type; or the record is of another class.
        """
        if type(record) is not self._record:
            raise self.foreign(record)
        self._require_no_dates([record])
        values = MaskedValues()
        for name, value_of, check in self._written:
            values[name] = check(value_of(record))
        row_id = codec.row_id(tuple(values.values())[: len(self._key)])
        for name, written in self._arrays.items():
            if name in values:
                values[name] = written(values[name])
        scheme = keyring.current.scheme
        for name, tokens, value_of, encode in self._encoded:
            value = value_of(record)
            values[name] = encode(scheme, row_id, value)
            for token_name, index in tokens:
                values[token_name] = _token(index, value, keyring)
        values.update(parameters(keyring, self._table, self._fields))
        return values

    def many(self, records: Sequence[R], keyring: Keyring) -> MaskedValues:
        """Return the parameters of many new rows: one array for each column, and the keys and version.

        Raises:
            ValueError: As for :meth:`new`.
        """
        values = MaskedValues()
        for name, column in self._columns(records, keyring):
            values[name] = self._dumpers[name](column)
        values.update(parameters(keyring, self._table, self._fields))
        return values

    def foreign(self, record: object) -> ValueError:
        """Return the error for what is no record of this table."""
        return ValueError(
            f"{self._table.name} stores {self._record.__name__}, not {type(record).__name__}: give records of that class"
        )

    def _require_no_dates(self, records: Sequence[R]) -> None:
        """Refuse records with a date that the server writes: it would be ignored."""
        for name, date_of in self._dates:
            if any(map(date_of, records)):
                raise ValueError(
                    f"{name} is written by the server: leave it out, or use dataclasses.replace(record, {name}=None) to add a record again"
                )

    def _columns(self, records: Sequence[R], keyring: Keyring) -> Iterator[tuple[str, list[Any]]]:
        """Yield the values of new rows, column by column: a third faster than row by row."""
        for record in records:
            if type(record) is not self._record:
                raise self.foreign(record)
        self._require_no_dates(records)
        key: list[list[Any]] = []
        for name, value_of, check in self._written:
            values = [check(value_of(record)) for record in records]
            if len(key) < len(self._key):
                key.append(values)
            yield name, values
        row_ids = [codec.row_id(each) for each in zip(*key, strict=True)]
        scheme = keyring.current.scheme
        for name, tokens, value_of, encode in self._encoded:
            values = [value_of(record) for record in records]
            yield name, [encode(scheme, row_id, value) for row_id, value in zip(row_ids, values, strict=True)]
            for token_name, index in tokens:
                yield token_name, _tokens(index, values, keyring)

    def array(self, column: str, values: Sequence[Any]) -> Array:
        """Return many values of a column by which rows are named, which are checked already, as one parameter."""
        return self._lookup_dumpers[column](values)

    def plain(self, column: str, value: Any) -> Any:
        """Return a value of an unencrypted column that may be stored, as the plain type that the server gives back.

        Raises:
            ValueError: It is not of the column's type.
        """
        return self._stored_checks[column](value)

    def key(self, record: R) -> Row:
        """Return a record's primary key, as the server will give it back."""
        return tuple(self._stored_checks[name](getattr(record, name)) for name in self._key)

    def changed(self, changes: Mapping[str, Any], keyring: Keyring) -> MaskedValues:
        """Return the parameters of changed fields, not bound to a row: the statement does that.

        Raises:
            ValueError: A value is not of its field's type.
        """
        values = MaskedValues()
        for name, value in changes.items():
            encode = self._encoders.get(name)
            if encode is None:
                plain = self._checks[name](value)
                written = self._arrays.get(self._changing[name])
                values[self._changing[name]] = written(plain) if written else plain
                continue
            values[self._changing[name]] = encode(_DIRECT, "", value)
            for token_name, index in self._tokens[name]:
                values[token_name] = _token(index, value, keyring)
        return values

    def read(
        self, keyring: Keyring, fields: tuple[EncryptedField, ...], found: list[R], rows: Iterable[Row]
    ) -> tuple[int, str] | None:
        """Append the records of rows as ``Statements`` selects them: key, version, plain columns, decrypted fields.

        Returns:
            None; or the key version and id of the first row whose version is not live, where reading has stopped.

        Raises:
            BindingError, ValueFormatError: A value cannot be trusted.
        """
        layout = self._layouts.get(fields)
        if layout is None:
            layout = self._layouts[fields] = self._layout(fields)
        plain, encrypted = layout
        width = len(self._key)
        make, record = object.__new__, self._record
        for row in rows:
            scheme = keyring.scheme(row[width])
            row_id = codec.row_id(row[:width])
            if scheme is None:
                if row[width] is not None or not self._table.is_in_place:
                    return row[width], row_id
                scheme = _BOUND  # without a version no value opens, so there is none here
            made = make(record)
            for set_, position in plain:
                set_(made, row[position])
            for set_, position, decode in encrypted:
                set_(made, decode(scheme, row_id, row[position]))
            found.append(made)
        return None

    def _layout(self, fields: tuple[EncryptedField, ...]) -> Layout:
        """Return, for the plain and the encrypted fields of a record, the slot's setter, the position, and the decoder.

        A record is frozen, and its ``__init__`` would demand the fields that were not read: so its slots are set directly.
        """
        width = len(self._key)
        positions = [*enumerate(self._key), *enumerate(self._plain, width + 1)]
        plain = [(getattr(self._record, name).__set__, position) for position, name in positions]
        encrypted = [
            (getattr(self._record, each.name).__set__, position, self._decoders[each.name])
            for position, each in enumerate(fields, width + 1 + len(self._plain))
        ]
        return plain, encrypted


def _token(index: BlindIndex, value: Any, keyring: Keyring) -> bytes | None:
    if value is None:
        return None  # needs no index key, which the key store may not hold
    return token(keyring.index_column_keys(index.info)[0], normalised(index, value))


def _tokens(index: BlindIndex, values: Sequence[Any], keyring: Keyring) -> list[bytes | None]:
    if not any(value is not None for value in values):
        return [None for _ in values]  # as above
    key = keyring.index_column_keys(index.info)[0]
    return [None if value is None else token(key, normalised(index, value)) for value in values]


def normalised(index: BlindIndex, value: Any) -> str:
    """Return the form of a value by which it is searched.

    Raises:
        ValueError: It has none; the message does not hold it.
        ConfigurationError: This process lacks the normaliser.
    """
    try:
        if index.kind is not _TEXT:
            return normalisers.form_of(index.normaliser)(_PLAIN[index.kind](value))
        text = value if type(value) is str else plain_text(value)
        if not text.isascii() and not is_unicode(text):
            raise RefusedValueError("holds a lone surrogate, which is not a character")
        return normalisers.form_of(index.normaliser)(text)
    except ValueError as error:
        problem = error.args[0]
    raise ValueError(f"{index.field} {problem}")


_TEXT: Final = Kind.TEXT
_PLAIN: Final[Mapping[Kind, Callable[[Any], Any]]] = {Kind.DATE: plain_date, Kind.INTEGER: plain_integer}
