"""Each expression that encrypts, over each type of key, special key, kind of value and setting of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import ColumnElement, Connection, Engine, LargeBinary, Text, bindparam, literal_column, select, text

from tests.nulls.keyed import KEYS, PLAINTEXTS, SHORT_FIELDS, Table
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import DatabaseError, MissingKeyError
from voiceassist_db.execution import execute
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import Keyring, KeyringSource, register
from voiceassist_db.keys import Key, Scheme
from voiceassist_db.models import EncryptedField, EncryptedTable, Kind
from voiceassist_db.pgcrypto.binding import Keys
from voiceassist_db.pgcrypto.expressions import (
    column_key,
    encrypt_new,
    encrypt_stored,
    parameters,
    reencrypt,
)
from voiceassist_db.providers.vault import VaultKeyProvider

SETTINGS: Final = {
    "as they are": [],
    "others": [
        *(
            "DateStyle = 'German'",
            "TimeZone = 'Pacific/Kiritimati'",
            "IntervalStyle = 'sql_standard'",
            "bytea_output = 'escape'",
        ),
        *("search_path = public, pg_catalog", "array_nulls = off", "transform_null_equals = on"),
        *("standard_conforming_strings = off", "backslash_quote = on", "extra_float_digits = -15"),
    ],
}

WIDE_SETTINGS: Final = SETTINGS | {
    each: [each]
    for each in (
        *SETTINGS["others"],
        "DateStyle = 'ISO, DMY'",
        "DateStyle = 'SQL, DMY'",
        "DateStyle = 'SQL, MDY'",
        "DateStyle = 'Postgres, YMD'",
        "TimeZone = 'America/Caracas'",
        "TimeZone = '-167'",
        "IntervalStyle = 'iso_8601'",
        "lc_time = 'C'",
        "lc_numeric = 'C'",
        "lc_monetary = 'C'",
        "client_encoding = 'SQL_ASCII'",
        "quote_all_identifiers = on",
        "search_path = pg_temp, public",
        "plan_cache_mode = 'force_custom_plan'",
        "plan_cache_mode = 'force_generic_plan'",
        "jit_above_cost = 0",
        "row_security = off",
        "xmloption = 'document'",
        "default_text_search_config = 'pg_catalog.simple'",
        "enable_seqscan = off",
        "work_mem = '64kB'",
    )
}

BOUND, DIRECT = Scheme.BOUND, Scheme.DIRECT

Build = Callable[[EncryptedTable, EncryptedField, ColumnElement[Any]], ColumnElement[Any]]


def stored_under(current: Scheme, previous: Scheme) -> Build:
    """Return the expression of a changed value."""
    schemes = {"current": current, "previous": previous}
    return lambda table, field, value: encrypt_stored(table, field, value, schemes)


def again(scheme: Scheme) -> Build:
    """Return the expression of a rotation from a version of this scheme."""
    return lambda table, field, _: reencrypt(
        table, field, column_key(table, field, "previous"), scheme, column_key(table, field, "current")
    )


EXPRESSIONS: Final[dict[str, tuple[Build, str, bool]]] = {
    "a new value": (encrypt_new, "current", False),
    "a changed value where all is direct": (stored_under(DIRECT, DIRECT), "previous", False),
    "a changed value where all is bound": (stored_under(BOUND, BOUND), "previous", True),
    "a changed value of a direct row": (stored_under(BOUND, DIRECT), "previous", False),
    "a changed value of a bound row": (stored_under(DIRECT, BOUND), "previous", True),
    "a rotation from direct": (again(DIRECT), "current", True),
    "a rotation from bound": (again(BOUND), "current", False),
}
"""By what it writes: how it is built, under which key it writes, and whether it binds the value to the row."""


@pytest.fixture
def keyring(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> Keyring:
    """The keys of a rotation from scheme ``direct`` that has begun."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=DIRECT)
        old = provider.fetch()
        new = replace(old, version=2, key=Key.generate(), previous_version=1, previous_key=old.key)
        provider.replace(old, new)
        register(connection, new)
        return KeyringSource(provider).keyring(connection)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection that may send keys."""
    with engine.connect() as made:
        yield made


def keys_of(keyring: Keyring, table: EncryptedTable, slot: str) -> dict[str, str]:
    """Return the key of each field as text."""
    version = keyring.current if slot == "current" else keyring.previous
    assert version is not None
    return {name: keyring.column_key(version, field.context).expose().decode() for name, field in table.fields.items()}


def made(connection: Connection, keyring: Keyring, name: str, fields: tuple[str, ...]) -> tuple[Table, EncryptedTable]:
    """Make and fill a table under the older key."""
    table = Table(name, fields)
    table.create(connection)
    (found,) = (each for each in encrypted_tables(connection) if each.name == table.name)
    assert keyring.previous is not None
    table.fill(connection, keyring.column_key(keyring.previous, "any").expose().decode())
    return table, found


def check(
    connection: Connection, keyring: Keyring, table: Table, found: EncryptedTable, what: str, settings: list[str]
) -> None:
    """A value of a row that Python can name is sealed exactly; one of another row too, or it is an error."""
    build, slot, binds = EXPRESSIONS[what]
    keys = keys_of(keyring, found, slot)
    number: ColumnElement[int] = literal_column("n")
    for name in table.fields:
        field, (kind, value) = found.fields[name], PLAINTEXTS[name]
        given = bindparam("given", type_=LargeBinary() if kind is Kind.BYTES else Text())
        sealed = select(number, build(found, field, given)).select_from(found.table)
        values = {**parameters(keyring, found, tuple(found.fields.values())), "given": value}
        if "rotation" in what:
            del values["given"]
        unheld = table.unheld()
        with connection.begin_nested() as savepoint:
            for each in settings:
                connection.execute(text(f"SET LOCAL {each}"))
            if value is not None and (binds or "rotation" in what):
                for n in unheld:
                    with pytest.raises(DatabaseError) as caught, connection.begin_nested():
                        execute(connection, sealed.where(number == n), values, table=table.name)
                    assert caught.value.sqlstate == "22008"
            is_held = number != literal_column("ALL (ARRAY[" + ", ".join(map(str, unheld or [-1])) + "])")
            rows: Any = execute(connection, sealed.where(is_held), values, table=table.name).all()
            savepoint.rollback()
        assert len(rows) == len(table.keys) - len(unheld)
        open_ = text(
            "SELECT c IS NULL, pgcrypto.pgp_sym_decrypt_bytea(c, :key) FROM unnest(CAST(:sealed AS bytea[])) c"
        )
        ciphertexts = {"sealed": [row[1] for row in rows], "key": keys[name]}
        opened = connection.execute(open_, ciphertexts).all()
        for n, (is_null, plaintext) in zip([row[0] for row in rows], opened, strict=True):
            assert is_null == (value is None), (what, name, table.keys[n])
            expected = table.bound(n, name) if binds else value.encode() if isinstance(value, str) else value
            assert plaintext == expected, (what, name, table.keys[n])


@pytest.mark.wide
@pytest.mark.parametrize("key", KEYS)
def test_no_expression_gives_null(connection: Connection, keyring: Keyring, key: str) -> None:
    """Over keys of each type, under settings of each kind."""
    table, found = made(connection, keyring, key, SHORT_FIELDS)
    for settings in SETTINGS.values():
        for what in EXPRESSIONS:
            check(connection, keyring, table, found, what, settings)


@pytest.mark.wide
@pytest.mark.parametrize("settings", WIDE_SETTINGS.values(), ids=WIDE_SETTINGS)
@pytest.mark.parametrize("key", KEYS)
def test_no_expression_gives_null_under_any_setting(
    connection: Connection, keyring: Keyring, key: str, settings: list[str]
) -> None:
    """The same of each kind, and of each setting alone."""
    table, found = made(connection, keyring, key, tuple(PLAINTEXTS))
    for what in EXPRESSIONS:
        check(connection, keyring, table, found, what, settings)


@pytest.mark.wide
@pytest.mark.parametrize("nulls", ["on", "off"])
@pytest.mark.parametrize("what", EXPRESSIONS)
def test_without_a_key_nothing_is_null(connection: Connection, keyring: Keyring, what: str, nulls: str) -> None:
    """A key that is missing, and a row of a version that is not live, are errors, whatever NULL means in an array."""
    table, found = made(connection, keyring, "uuid", ("note", "scan"))
    build = EXPRESSIONS[what][0]
    for name in table.fields:
        field, (kind, value) = found.fields[name], PLAINTEXTS[name]
        given = bindparam("given", type_=LargeBinary() if kind is Kind.BYTES else Text())
        sealed = select(build(found, field, given)).select_from(found.table)
        values = {**parameters(keyring, found, tuple(found.fields.values())), "given": value}
        if "rotation" in what:
            del values["given"]
        lacking = Keys([None] * 2 * len(found.fields))
        of_no_version = {"version_current": 8, "version_previous": 9}
        for without in [{"keys": lacking}] + [of_no_version] * ("changed" in what):
            with pytest.raises(MissingKeyError), connection.begin_nested():
                connection.execute(text(f"SET LOCAL array_nulls = {nulls}"))
                execute(connection, sealed, values | without, table=table.name)
