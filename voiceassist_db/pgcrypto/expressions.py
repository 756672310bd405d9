"""The SQL expressions around ``pgp_sym_encrypt`` and ``pgp_sym_decrypt``: the only module that writes them.

Owns the options, the schema-qualified calls, and how a key version chooses a key. Expressions hold parameter *names* only:
key versions and keys arrive with the parameters of each execution, so a statement may be built once, cached for ever, and
still use the key of the day. :func:`parameters` makes them from a keyring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Boolean,
    Case,
    Column,
    ColumnElement,
    Date,
    DateTime,
    FromClause,
    Integer,
    LargeBinary,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
)
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeEngine

from voiceassist_db.keyring import Keyring
from voiceassist_db.keys import Key, Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable, Kind
from voiceassist_db.pgcrypto.binding import Keys, keys_parameter

OPTIONS: Final = "cipher-algo=aes256, s2k-mode=1, s2k-digest-algo=sha256, compress-algo=0"
"""AES-256 with salted S2K: stretching a uniformly random 256-bit key adds cost, not strength (RFC 9580, section 3.7.1.2)."""

SLOTS: Final = ("current", "previous")

UNNAMED: Final = "22008"
"""SQLSTATE of a statement that would bind a value to a primary key that Python cannot hold."""


def plaintext_type(field: EncryptedField) -> TypeEngine[Any]:
    """Return the SQL type of a field's plaintext."""
    return LargeBinary() if field.kind is Kind.BYTES else Text()


def _present(key: ColumnElement[Any]) -> ColumnElement[Any]:
    # pgcrypto's functions are STRICT: a NULL key would yield NULL, and lose the value. An empty key is an error (39000).
    return func.coalesce(key, _quoted(""), type_=Text)


def encrypt(kind: Kind, value: ColumnElement[Any], key: ColumnElement[Any]) -> ColumnElement[bytes]:
    """Return the expression of a value's ciphertext. A NULL value stays NULL; a NULL key is an error."""
    options = _quoted(OPTIONS)
    if kind is Kind.BYTES:
        call = func.pgcrypto.pgp_sym_encrypt_bytea(cast(value, LargeBinary), _present(key), options, type_=LargeBinary)
    else:
        call = func.pgcrypto.pgp_sym_encrypt(cast(value, Text), _present(key), options, type_=LargeBinary)
    return call


def decrypt(
    kind: Kind, ciphertext: ColumnElement[Any], key: ColumnElement[Any], *, is_adopted: bool = False
) -> ColumnElement[Any]:
    """Return the expression of a ciphertext's plaintext. A NULL ciphertext stays NULL; a NULL key is an error.

    Args:
        kind: Type of the value.
        ciphertext: The ciphertext.
        key: The key.
        is_adopted: Whether text may have been written by ``pgp_sym_encrypt_bytea``, which ``pgp_sym_decrypt`` refuses.
    """
    return _decrypt(kind, ciphertext, _present(key), is_adopted=is_adopted)


def _decrypt(
    kind: Kind, ciphertext: ColumnElement[Any], key: ColumnElement[Any], *, is_adopted: bool
) -> ColumnElement[Any]:
    data = func.pgcrypto.pgp_sym_decrypt_bytea(ciphertext, key, type_=LargeBinary)
    if kind is Kind.BYTES:
        return data
    text: ColumnElement[Any] = func.pgcrypto.pgp_sym_decrypt(ciphertext, key, type_=Text)
    if not is_adopted:
        return text
    # Elsewhere than in UTF-8 the bytes do not say which encoding they are in, and pgp_sym_decrypt knows it.
    is_utf8 = func.pg_catalog.getdatabaseencoding(type_=Text) == _quoted("UTF8")
    return case((is_utf8, func.pg_catalog.convert_from(data, _quoted("UTF8"), type_=Text)), else_=text)


def version_parameter(slot: str) -> ColumnElement[int]:
    """Return the parameter for the number of the current or the previous key."""
    return bindparam(f"version_{slot}", type_=Integer)


def column_key(table: EncryptedTable, field: EncryptedField, slot: str) -> ColumnElement[str]:
    """Return the expression of a column's current or previous key: an element of the parameter ``keys``."""
    position = len(SLOTS) * list(table.fields).index(field.name) + SLOTS.index(slot)
    keys = Grouping(cast(keys_parameter(), ARRAY(Text)))  # PostgreSQL takes a subscript after parentheses only
    return keys[literal_column(str(position + 1), Integer)]


def encrypt_new(table: EncryptedTable, field: EncryptedField, value: ColumnElement[Any]) -> ColumnElement[bytes]:
    """Return the expression of a new row's ciphertext, under the current key."""
    return encrypt(field.kind, value, column_key(table, field, "current"))


def decrypt_stored(
    table: EncryptedTable, field: EncryptedField, source: FromClause | None = None, *, is_adopted: bool = False
) -> ColumnElement[Any]:
    """Return the expression of a stored plaintext, by the key of its row's version.

    Args:
        table: The table.
        field: The field.
        source: What to take the row's columns from; the table by default.
        is_adopted: Whether a live version has scheme ``direct``: see :func:`decrypt`.

    A row of neither live version yields NULL, and not an error that would end the caller's transaction: so whoever uses this
    must select the row's version beside it, and refresh the keyring where it is unknown. A value without a version is an error (39000).
    """
    columns = (table.table if source is None else source).c
    # The version chooses a key, and not a call: the server prepares each call for every statement, needed or not.
    version = columns[table.version.name]
    keys = {slot: _present(column_key(table, field, slot)) for slot in SLOTS}
    stored = columns[field.column]
    if not table.is_in_place:
        return _decrypt(field.kind, stored, _by_version(version, keys), is_adopted=is_adopted)
    # A value without a version must be an error. Its first byte opens under no key, and without a key there would be no call.
    first = func.pg_catalog.substring(stored, literal_column("1"), literal_column("1"), type_=LargeBinary)
    key = _by_version(version, keys, case((version.is_(None), keys["current"])))
    return _decrypt(field.kind, case((version.is_(None), first), else_=stored), key, is_adopted=is_adopted)


def encrypt_stored(
    table: EncryptedTable, field: EncryptedField, value: ColumnElement[Any], schemes: Mapping[str, Scheme]
) -> ColumnElement[bytes]:
    """Return the expression of a changed value, under the key and scheme of its row's own version; of the current one, where it has none.

    Args:
        table: The table.
        field: The field to change.
        value: The value as the codec writes it under scheme ``direct``: the row's id is prefixed here, in SQL.
        schemes: Scheme of each live version, by slot.
    """
    bound = {slot: _bind_to_row(table, field, value, scheme) for slot, scheme in schemes.items()}
    is_same = len(set(schemes.values())) == 1
    # A row of another version has no key, which is an error; without the value it would be NULL.
    version = version_to_write(table)
    plaintext = next(iter(bound.values())) if is_same else _by_version(version, bound, value)
    key = _by_version(version, {slot: column_key(table, field, slot) for slot in schemes})
    return encrypt(field.kind, plaintext, key)


def version_to_write(table: EncryptedTable) -> ColumnElement[int]:
    """Return the expression of the version that a row's values are changed under: its own, or the current one where it has none."""
    if not table.is_in_place:
        return table.version
    return func.coalesce(table.version, version_parameter("current"), type_=Integer)


def reencrypt(
    table: EncryptedTable, field: EncryptedField, old: ColumnElement[Any], old_scheme: Scheme, new: ColumnElement[Any]
) -> ColumnElement[bytes]:
    """Return the expression that turns a ciphertext under one key into a bound one under another, inside the server.

    NULL stays NULL, and nothing else becomes NULL: a value of a row whose primary key Python cannot hold is an error (:data:`UNNAMED`), and so
    is a value that would be lost (22004).
    """
    stored = table.table.c[field.column]
    plaintext = decrypt(field.kind, stored, old, is_adopted=old_scheme is Scheme.DIRECT)
    if old_scheme is Scheme.DIRECT:
        plaintext = _bind_to_row(table, field, plaintext, Scheme.BOUND)
    kept: ColumnElement[bytes] = func.coalesce(encrypt(field.kind, plaintext, new), _lost(stored), type_=LargeBinary)
    refused = func.pg_catalog.date_send(_unnamed(table.key), type_=LargeBinary)
    unnamed = [(~_has_day(column), refused) for column in table.key if isinstance(column.type, Date)]
    return case((stored.is_(None), null()), *unnamed, else_=kept)


def is_bound_to_row(table: EncryptedTable, field: EncryptedField) -> ColumnElement[bool]:
    """Return the condition that a value under the current, bound version was encrypted for its row and column.

    An error (39000) where the value does not open.
    """
    plaintext = decrypt(field.kind, table.table.c[field.column], column_key(table, field, "current"))
    prefix = _prefix(table, field)
    if field.kind is Kind.BYTES:
        return func.pg_catalog.substring(plaintext, literal_column("1"), func.pg_catalog.octet_length(prefix)) == prefix
    return func.pg_catalog.starts_with(plaintext, prefix, type_=Boolean)


def is_live(table: EncryptedTable) -> ColumnElement[bool]:
    """Return the condition that a row is under one of the live versions."""
    return or_(*(table.version == version_parameter(slot) for slot in SLOTS))


def _by_version(
    version: ColumnElement[int], choices: Mapping[str, ColumnElement[Any]], otherwise: ColumnElement[Any] | None = None
) -> Case[Any]:
    # Not CASE with a value, whose comparison would be looked up in the search path.
    return case(*((version == version_parameter(slot), choice) for slot, choice in choices.items()), else_=otherwise)


def _bind_to_row(
    table: EncryptedTable, field: EncryptedField, value: ColumnElement[Any], scheme: Scheme
) -> ColumnElement[Any]:
    if scheme is Scheme.DIRECT:
        return value
    return _prefix(table, field).concat(cast(value, LargeBinary if field.kind is Kind.BYTES else Text))


def _prefix(table: EncryptedTable, field: EncryptedField) -> ColumnElement[Any]:
    text = _quoted(f"{field.context}:").concat(row_id(table.key)).concat(_quoted(":"))
    return func.pg_catalog.convert_to(text, _quoted("UTF8"), type_=LargeBinary) if field.kind is Kind.BYTES else text


def row_id(key: Sequence[Column[Any]]) -> ColumnElement[str]:
    """Return the expression of a row's id, equal to ``codec.row_id`` of its primary key.

    It is never NULL, which would make a value NULL that is bound to it. A key that Python cannot hold is an error (:data:`UNNAMED`).
    """
    parts: list[ColumnElement[str]] = []
    for column in key:
        part: ColumnElement[str] = cast(column, Text)
        if isinstance(column.type, Date):
            # A cast to text would follow the session's DateStyle. There is no to_char of a date, only of a timestamp.
            day = func.pg_catalog.to_char(cast(column, DateTime), _quoted("YYYY-MM-DD"), type_=Text)
            part = case((_has_day(column), day))
        elif isinstance(column.type, String):
            for character, escaped in (("%", "%25"), (":", "%3A"), ("/", "%2F")):
                part = func.pg_catalog.replace(part, _quoted(character), _quoted(escaped), type_=Text)
        parts.append(part)
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.concat(_quoted("/")).concat(part)
    return func.coalesce(joined, cast(_unnamed(key), Text), type_=Text)


def _has_day(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that Python can hold a date; ``to_char`` gives NULL of infinity, and no era of a year before 1."""
    first, last = (cast(_quoted(day), Date) for day in ("0001-01-01", "9999-12-31"))
    return and_(column >= first, column <= last)


def _unnamed(key: Sequence[Column[Any]]) -> ColumnElement[Any]:
    """Return an expression that is an error (:data:`UNNAMED`) wherever it is evaluated: there is no year 0.

    It depends on the row, so that the server cannot evaluate it when it plans the statement.
    """
    day = func.coalesce(func.pg_catalog.pg_column_size(key[0], type_=Integer), literal_column("1"), type_=Integer)
    return func.pg_catalog.make_date(literal_column("0"), literal_column("1"), day, type_=Date)


def _lost(stored: ColumnElement[Any]) -> ColumnElement[bytes]:
    """Return an expression that is an error (22004) wherever it is evaluated: an array has dimensions. It depends on the row, too."""
    none = cast(null(), ARRAY(Integer))
    arrays = Grouping(func.pg_catalog.array_fill(stored, none, type_=ARRAY(LargeBinary)))
    return arrays[literal_column("1", Integer)]


def _quoted(text: str) -> ColumnElement[str]:
    return literal_column(f"'{text}'", Text)


def parameters(keyring: Keyring, table: EncryptedTable, fields: tuple[EncryptedField, ...]) -> dict[str, Any]:
    """Return the versions and keys that a statement over these fields needs, from one keyring and so of one moment.

    The previous slot holds version NULL, which matches no row, where there is no previous version. The keys of fields that
    are not asked for are not among them. The result is made once for each keyring: do not change it.
    """
    known = keyring.memory.get((table, fields))
    if known is None:
        known = keyring.memory[table, fields] = _parameters(keyring, table, fields)
    return known


def _parameters(keyring: Keyring, table: EncryptedTable, fields: tuple[EncryptedField, ...]) -> dict[str, Any]:
    keys: list[Key | None] = [
        keyring.column_key(version, field.context) if version and field in fields else None
        for field in table.fields.values()
        for version in (keyring.current, keyring.previous)
    ]
    return {
        "version_current": keyring.current.version,
        "version_previous": keyring.previous.version if keyring.previous else None,
        "keys": Keys(keys),
    }
