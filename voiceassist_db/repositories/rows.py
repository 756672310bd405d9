"""Between records and the parameters and rows of statements.

Owns encoding and decoding of whole rows: values, blind-index tokens, keys. Executes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Column

from voiceassist_db.blind_index import NORMALISERS, token
from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.expressions import parameters
from voiceassist_db.repositories.records import Record

R = TypeVar("R", bound=Record)
Row = tuple[Any, ...]
Setter = Callable[[Any, Any], None]
Layout = tuple[list[tuple[Setter, int]], list[tuple[Setter, int, codec.Decoder]]]


class Rows(Generic[R]):
    """Encodes and decodes the rows of one table.

    Args:
        table: The table.
        record: The class of its records.
        plain: The unencrypted columns that the record has.
    """

    def __init__(self, table: EncryptedTable, record: type[R], plain: Sequence[Column[Any]]) -> None:
        self._table = table
        self._record = record
        self._key = tuple(each.name for each in table.key)
        self._plain = tuple(each.name for each in plain)
        self._written = (*self._key, *(each.name for each in plain if each.server_default is None))
        self._encoders = {name: codec.encoder(each) for name, each in table.fields.items()}
        self._layouts: dict[tuple[EncryptedField, ...], Layout] = {}
        self._decoders = {name: codec.decoder(each, table=table.name) for name, each in table.fields.items()}

    def new(self, record: R, keyring: Keyring) -> dict[str, Any]:
        """Return the parameters of a new row under the current key, but for keys and version.

        Raises:
            ValueError: A value is not of its field's type; or the record is of another class.
        """
        if type(record) is not self._record:
            raise ValueError(f"{self._table.name} stores {self._record.__name__}, not {type(record).__name__}")
        values = {name: getattr(record, name) for name in self._written}
        row_id = codec.row_id([values[name] for name in self._key])
        scheme = keyring.current.scheme
        for name, field in self._table.fields.items():
            value = getattr(record, name)
            values[name] = self._encoders[name](scheme, row_id, value)
            if field.index_column:
                values[field.index_column] = None if value is None else self._token(field, value, keyring)
        return values

    def many(self, records: Sequence[R], keyring: Keyring) -> dict[str, Any]:
        """Return the parameters of many new rows: one array for each column, and the keys and version.

        Raises:
            ValueError: As for :meth:`new`.
        """
        rows = [self.new(record, keyring) for record in records]
        arrays: dict[str, Any] = {name: array_literal([row[name] for row in rows]) for name in rows[0]}
        return arrays | parameters(keyring, tuple(self._table.fields.values()))

    def changed(self, changes: Mapping[str, Any], keyring: Keyring) -> dict[str, Any]:
        """Return the parameters of changed fields, not bound to a row: the statement does that.

        Raises:
            ValueError: A value is not of its field's type.
        """
        values: dict[str, Any] = {}
        for name, value in changes.items():
            field = self._table.fields.get(name)
            if field is None:
                values[name] = value
                continue
            values[name] = self._encoders[name](Scheme.DIRECT, "", value)
            if field.index_column:
                values[field.index_column] = None if value is None else self._token(field, value, keyring)
        return values

    def _token(self, field: EncryptedField, value: Any, keyring: Keyring) -> bytes:
        return token(keyring.index_column_keys(field.context)[0], normalised(field, value))

    def read(
        self, rows: Iterable[Row], keyring: Keyring, fields: tuple[EncryptedField, ...], found: list[R]
    ) -> int | None:
        """Append the records of rows as ``Statements`` selects them: key, version, plain columns, decrypted fields.

        Returns:
            None; or the key version of the first row whose version is not live, where reading has stopped.

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
            if scheme is None:
                return int(row[width])
            row_id = codec.row_id(row[:width])
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


def array_literal(values: Sequence[Any]) -> str:
    """Return values as the text of a PostgreSQL array, which it reads as any other (manual, section 8.15.2).

    psycopg's own dumper takes as long for ten arrays as the server for encrypting half of them. Text, bytes, None, and types
    whose ``str`` PostgreSQL reads, such as UUID, int, date and datetime, can stand in it.
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    text = str(value)
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def normalised(field: EncryptedField, value: Any) -> str:
    """Return the form of a value by which it is searched.

    Raises:
        ValueError: It has none; the message does not hold it.
    """
    if not isinstance(value, str):
        raise ValueError(f"{field.name} must be a str")
    try:
        return NORMALISERS[field.normaliser or "exact"](value)
    except ValueError as error:
        problem = error.args[0]
    raise ValueError(f"{field.name} {problem}")
