"""The SQL expressions on a real server: formats, keys, NULLs, and every kind of value there and back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Date,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    literal,
    literal_column,
    null,
    select,
    text,
    values,
)
from sqlalchemy.sql.elements import Grouping

from voiceassist_db.errors import DecryptionError, MissingKeyError
from voiceassist_db.execution import execute
from voiceassist_db.keys import Key, Scheme
from voiceassist_db.models import EncryptedField, Kind, PatientRow
from voiceassist_db.models.declaration import EncryptedTable
from voiceassist_db.pgcrypto import codec, expressions
from voiceassist_db.pgcrypto.binding import Keys, KeysType, keys_parameter

KEY, OTHER = Key.generate(), Key.generate()
ROW = "018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f"
HEADER = bytes.fromhex("c30c04090108")

server = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection that may send keys."""
    from voiceassist_db.engine import prepare

    with prepare(engine).connect() as made:
        yield made


def element(keys: Any, position: int = 1) -> ColumnElement[str]:
    """Return one of the keys that a parameter or a literal holds."""
    return Grouping(cast(keys, ARRAY(Text)))[literal_column(str(position), Integer)]


def only(key: Key | None) -> ColumnElement[str]:
    """Return a key as a literal, which stands in a statement's parameters and not in its text."""
    return element(literal(Keys([key]), KeysType()))


def encrypted(connection: Connection, kind: Kind, value: Any, key: Any = KEY) -> bytes | None:
    """Encrypt one plaintext on the server."""
    plaintext = literal(value, LargeBinary if kind is Kind.BYTES else Text)
    statement = select(expressions.encrypt(kind, plaintext, only(key)))
    ciphertext: bytes | None = execute(connection, statement, table="none").scalar_one()
    return ciphertext


def decrypted(connection: Connection, kind: Kind, ciphertext: bytes | None, key: Any = KEY) -> Any:
    """Decrypt one ciphertext on the server."""
    statement = select(expressions.decrypt(kind, literal(ciphertext, LargeBinary), only(key)))
    return execute(connection, statement, table="none").scalar_one()


@pytest.mark.parametrize("value", ["", "x", "123-45-6789", "José\r\n\tNúñez 🏥", "x" * 1000, "x" * 100_000])
def test_the_header_is_fixed(connection: Connection, value: str) -> None:
    """Every ciphertext begins with our six bytes and has an integrity packet at byte 15, whatever its length."""
    ciphertext = encrypted(connection, Kind.TEXT, value)
    assert ciphertext is not None
    assert ciphertext[:6] == HEADER
    assert ciphertext[14] == 0xD2
    assert value == decrypted(connection, Kind.TEXT, ciphertext)


def test_equal_values_have_different_ciphertexts(connection: Connection) -> None:
    """Nobody can see in the table that two patients share a value."""
    assert len({encrypted(connection, Kind.TEXT, "same") for _ in range(50)}) == 50


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.BYTES])
def test_a_missing_key_is_an_error_and_never_null(connection: Connection, kind: Kind) -> None:
    """Pgcrypto alone would return NULL, and the value would be lost: both directions raise instead."""
    value: Any = b"value" if kind is Kind.BYTES else "value"
    ciphertext = encrypted(connection, kind, value)
    function = "pgp_sym_encrypt_bytea" if kind is Kind.BYTES else "pgp_sym_encrypt"
    alone = connection.execute(text(f"SELECT pgcrypto.{function}(:value, NULL, '')"), {"value": value}).scalar_one()
    assert alone is None
    for attempt in (
        lambda: encrypted(connection, kind, value, None),
        lambda: decrypted(connection, kind, ciphertext, None),
    ):
        with pytest.raises(MissingKeyError, match="without a key"):
            attempt()
        connection.rollback()


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.BYTES])
def test_null_stays_null_and_empty_is_encrypted(connection: Connection, kind: Kind) -> None:
    """An absent value and an empty one are told apart."""
    empty: Any = b"" if kind is Kind.BYTES else ""
    assert encrypted(connection, kind, None) is None
    assert decrypted(connection, kind, None) is None
    ciphertext = encrypted(connection, kind, empty)
    assert ciphertext is not None
    assert empty == decrypted(connection, kind, ciphertext)


@pytest.mark.parametrize("damage", ["another key", "flipped byte", "truncated"])
def test_what_does_not_open_is_an_error(connection: Connection, damage: str) -> None:
    """A wrong key, a flipped byte and a cut value raise, with neither the value nor the driver's error attached."""
    ciphertext = encrypted(connection, Kind.TEXT, "SECRET")
    assert ciphertext is not None
    key = OTHER if damage == "another key" else KEY
    if damage == "flipped byte":
        ciphertext = ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])
    elif damage == "truncated":
        ciphertext = ciphertext[:-5]
    with pytest.raises(DecryptionError, match="verify") as caught:
        decrypted(connection, Kind.TEXT, ciphertext, key)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def field(kind: Kind) -> EncryptedField:
    """Return a field of a kind."""
    return EncryptedField("ssn", "ssn_encrypted", "patient_data.ssn", kind)


def strategies() -> st.SearchStrategy[tuple[Kind, list[Any]]]:
    """Return lists of values of one kind."""
    text_ = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
    offsets = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    kinds: dict[Kind, st.SearchStrategy[Any]] = {
        Kind.TEXT: text_,
        Kind.BYTES: st.binary(),
        Kind.DATE: st.dates(),
        Kind.DATETIME: st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | offsets),
        Kind.INTEGER: st.integers(),
        Kind.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False),
        Kind.JSON: st.dictionaries(text_, st.lists(st.integers() | text_ | st.booleans() | st.none())),
    }
    return st.one_of(
        *(st.tuples(st.just(kind), st.lists(of | st.none(), min_size=1, max_size=20)) for kind, of in kinds.items())
    )


@pytest.mark.wide
@pytest.mark.parametrize("scheme", Scheme)
@server
@given(drawn=strategies())
def test_every_value_survives_the_server(connection: Connection, scheme: Scheme, drawn: tuple[Kind, list[Any]]) -> None:
    """Whatever the codec writes is encrypted, decrypted and read back equal, NULLs among them."""
    kind, originals = drawn
    plaintexts = [codec.encoder(field(kind))(scheme, ROW, each) for each in originals]
    plaintext_type = LargeBinary() if kind is Kind.BYTES else Text()
    given_values = values(column("n", Integer), column("v", plaintext_type), name="given").data(
        [(n, each) for n, each in enumerate(plaintexts)]
    )
    key = element(keys_parameter())
    there = select(given_values.c.n, expressions.encrypt(kind, given_values.c.v, key).label("c")).subquery()
    statement = select(expressions.decrypt(kind, there.c.c, key)).order_by(there.c.n)
    read = [row[0] for row in execute(connection, statement, {"keys": Keys([KEY])}, table="none")]
    assert originals == [codec.decoder(field(kind), table="t")(scheme, ROW, each) for each in read]
    connection.rollback()


@server
@given(
    key=st.tuples(
        st.uuids(),
        st.integers(-(2**31), 2**31 - 1),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
        st.dates(),
    )
)
def test_a_row_id_in_sql_equals_the_codecs(connection: Connection, key: tuple[UUID, int, str, date]) -> None:
    """Rotation and updates bind values in SQL, reads check them in Python: both must spell every key alike."""
    columns: list[Any] = [column("a", Uuid()), column("b", Integer()), column("c", Text()), column("d", Date())]
    row = values(*columns, name="given").data([key])
    connection.execute(text("SET LOCAL DateStyle = 'German'"))
    in_sql: Any = expressions.row_id([*row.c])
    assert codec.row_id(key) == connection.scalar(select(in_sql))
    connection.rollback()


def test_an_expression_holds_no_value(connection: Connection) -> None:
    """The compiled statement has a name where the key will be, the call is qualified, and no literal but the options."""
    statement = select(
        expressions.decrypt_stored(EncryptedTable.of(PatientRow.__table__), field(Kind.TEXT))  # type: ignore[arg-type]
    )
    compiled = statement.compile(connection)
    assert "pgcrypto.pgp_sym_decrypt(" in str(compiled)
    assert {"keys", "version_current", "version_previous"} == set(compiled.params)
    assert set(compiled.params.values()) == {None}


def test_a_connection_of_another_engine_cannot_send_a_key(database_url: Any) -> None:
    """Without the dumper that our engines register, a key cannot leave the process at all."""
    import sqlalchemy

    stranger = sqlalchemy.create_engine(database_url)
    with stranger.connect() as connection, pytest.raises(MissingKeyError, match=r"voiceassist_db\.create_engine"):
        execute(connection, select(bindparam("keys", Keys([KEY]), KeysType())), table="none")
    stranger.dispose()


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize(("kind", "value"), [(Kind.TEXT, "123-45-6789"), (Kind.BYTES, b"\x00\xff")])
def test_rotation_binds_direct_values_and_passes_bound_ones(
    connection: Connection, scheme: Scheme, kind: Kind, value: Any
) -> None:
    """`direct` becomes `bound` with the row's id in front; what is bound already is the same plaintext afterwards."""
    stored = Table("stored", MetaData(), Column("id", Uuid, primary_key=True), Column("ssn_encrypted", LargeBinary))
    old = encrypted(connection, kind, codec.encoder(field(kind))(scheme, ROW, value), KEY)
    connection.execute(text("CREATE TEMPORARY TABLE stored (id uuid, ssn_encrypted bytea)"))
    connection.execute(stored.insert().values(id=UUID(ROW), ssn_encrypted=old))
    declared = EncryptedTable(stored, (stored.c.id,), {"ssn": field(kind)})
    keys = {"keys": Keys([KEY, OTHER])}
    changed = expressions.reencrypt(
        declared, field(kind), element(keys_parameter()), scheme, element(keys_parameter(), 2)
    )
    new = execute(connection, select(changed), keys, table="stored").scalar_one()
    assert new[:6] == HEADER
    assert codec.encoder(field(kind))(Scheme.BOUND, ROW, value) == decrypted(connection, kind, new, OTHER)


def test_null_literals_do_not_break_the_expressions(connection: Connection) -> None:
    """An SQL NULL in place of the value is NULL, not an error."""
    statement = select(expressions.encrypt(Kind.TEXT, null(), only(KEY)))
    assert execute(connection, statement, table="none").scalar_one() is None


def test_gpg_opens_a_value_with_the_column_key(connection: Connection, tmp_path: Path) -> None:
    """The way out without this package, or PostgreSQL: a ciphertext is an OpenPGP message, the key its passphrase."""
    gpg = shutil.which("gpg")
    if gpg is None:
        assert "CI" not in os.environ, "CI installs gpg"
        pytest.skip("gpg is not installed")
    column_key = KEY.derive("patient_data.name")
    plaintext = f"patient_data.name:{ROW}:José Núñez"
    ciphertext = encrypted(connection, Kind.TEXT, plaintext, column_key)
    assert ciphertext is not None
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    (tmp_path / "value.pgp").write_bytes(ciphertext)
    opened = subprocess.run(
        [
            gpg,
            "--homedir",
            home,
            "--batch",
            "--quiet",
            "--pinentry-mode=loopback",
            "--passphrase-fd=0",
            "--decrypt",
            tmp_path / "value.pgp",
        ],
        input=column_key.expose() + b"\n",
        capture_output=True,
        check=False,
    )
    assert plaintext == opened.stdout.decode(), opened.stderr.decode()
