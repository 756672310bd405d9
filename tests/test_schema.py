"""What the encrypted columns accept: the strict format where only bound values live, any protected one while adopting."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text

from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.errors import ConstraintError, DatabaseError
from voiceassist_db.execution import execute
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.pgcrypto.expressions import OPTIONS
from voiceassist_db.schema import allow_direct_format, migrate, require_bound_format
from voiceassist_db.verification import verify

COLUMNS = {
    "patient_data": ["ssn", "mrn", "name", "date_of_birth", "address"],
    "clinical_notes": ["note", "metadata"],
}
KEY = "not a key of anybody, but pgcrypto takes any text"


def packet(connection: Connection, options: str) -> bytes:
    """Return an OpenPGP message as somebody else would make it."""
    statement = text("SELECT pgcrypto.pgp_sym_encrypt('123-45-6789', :key, :options)")
    return bytes(connection.execute(statement, {"key": KEY, "options": options}).scalar_one())


def stripped(message: bytes) -> bytes:
    """Return a message of ours whose integrity packet (tag 18) is turned into a bare one (tag 9), as a forger would."""
    assert message[14] == 0xD2
    return message[:14] + b"\xc9" + message[15:]


def put(connection: Connection, value: bytes | None, column: str = "ssn_encrypted") -> None:
    """Write a row with this in one encrypted column, past the package."""
    statement = text(f"INSERT INTO patient_data (id, patient_id, {column}, key_version) VALUES (:id, :name, :value, 1)")
    row = uuid4()
    execute(connection, statement, {"id": row, "name": str(row), "value": value}, table="patient_data")


def is_accepted(connection: Connection, value: bytes | None) -> bool:
    """Say whether the database lets such a value be stored; nothing stays stored."""
    savepoint = connection.begin_nested()
    try:
        put(connection, value)
    except ConstraintError as error:
        return error.constraint != "patient_data_ssn_encrypted_format"
    else:
        return True
    finally:
        savepoint.rollback()


def checks(connection: Connection) -> dict[str, str]:
    """Return the definitions of all CHECK constraints by name."""
    query = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'"
    return {row.conname: row.pg_get_constraintdef for row in connection.execute(text(query))}


def samples(connection: Connection) -> dict[str, bytes | None]:
    """Return one value of each kind that could be tried."""
    ours = packet(connection, OPTIONS)
    return {
        "nothing": None,
        "ours": ours,
        "default options": packet(connection, ""),
        "aes128": packet(connection, "cipher-algo=aes128, s2k-mode=1, s2k-digest-algo=sha256, compress-algo=0"),
        "session key": packet(connection, OPTIONS + ", sess-key=1"),
        "plaintext": b"123-45-6789",
        "long plaintext": b"123-45-6789 " * 20,
        "plaintext of a packet's first byte": b"\xc3\x9cber",
        "empty": b"",
        "stripped": stripped(ours),
        "header cut": ours[:14],
        "first byte": ours[:1],
        "two bytes": ours[:2],
        "length beyond the end": b"\xc3\xff" + ours[2:20],
        "hexadecimal": ours.hex().encode(),
        "armored": b"-----BEGIN PGP MESSAGE-----",
    }


def accepted(connection: Connection) -> set[str]:
    """Return the kinds of values that the database accepts."""
    return {kind for kind, value in samples(connection).items() if is_accepted(connection, value)}


def test_only_our_own_format_is_accepted(engine: Engine) -> None:
    """As it is created, a column takes scheme bound's packets and NULL; neither plaintext nor another tool's message."""
    with engine.connect() as connection:
        assert accepted(connection) == {"nothing", "ours"}


def test_adopting_lets_any_protected_packet_in_and_nothing_else(engine: Engine) -> None:
    """For scheme direct, any pgcrypto options will do, but still no plaintext and no packet without integrity."""
    with engine.connect() as connection:
        allow_direct_format(connection)
        assert accepted(connection) == {"nothing", "ours", "default options", "aes128", "session key"}


def test_every_encrypted_column_has_its_check(engine: Engine) -> None:
    """No column was forgotten: each has a constraint of its name, strict at first, and general after adopting."""
    expected = {f"{table}_{column}_encrypted_format" for table, columns in COLUMNS.items() for column in columns}
    with engine.connect() as connection:
        strict = {name: check for name, check in checks(connection).items() if name.endswith("_format")}
        assert expected == set(strict)
        assert all("c30c04090108" in check for check in strict.values())
        allow_direct_format(connection)
        general = {name: check for name, check in checks(connection).items() if name.endswith("_format")}
        assert expected == set(general)
        assert all("get_byte" in check for check in general.values())


def test_the_strict_form_comes_back_as_it_was(engine: Engine) -> None:
    """After there and back, the constraints are to the letter those that the migration made."""
    with engine.begin() as connection:
        before = checks(connection)
        allow_direct_format(connection)
        require_bound_format(connection)
        assert checks(connection) == before
        allow_direct_format(connection)
        allow_direct_format(connection)
        require_bound_format(connection)
        require_bound_format(connection)
        assert checks(connection) == before


def test_the_strict_form_is_refused_while_direct_rows_exist(engine: Engine) -> None:
    """It fails by the constraint, changes nothing, and works once those rows are gone."""
    with engine.begin() as connection:
        allow_direct_format(connection)
        put(connection, packet(connection, ""))
        before = checks(connection)
    with pytest.raises(ConstraintError) as refused, engine.begin() as connection:
        require_bound_format(connection)
    assert refused.value.constraint == "patient_data_ssn_encrypted_format"
    with engine.begin() as connection:
        assert checks(connection) == before
        connection.execute(text("DELETE FROM patient_data"))
        require_bound_format(connection)
        assert accepted(connection) == {"nothing", "ours"}


def test_tables_of_other_schemas_and_awkward_names_are_fitted_too(database: Database) -> None:
    """Names that need quoting are quoted, wherever the table lies."""
    create = """
        CREATE SCHEMA "Team's";
        CREATE TABLE "Team's"."Order" (
            id bigint PRIMARY KEY, "Key word_encrypted" bytea, key_version integer NOT NULL);
        COMMENT ON COLUMN "Team's"."Order"."Key word_encrypted" IS 'encrypted orders.word as text';
    """
    with database.engine.begin() as connection:
        connection.execute(text(create))
        require_bound_format(connection)
        insert = text("""INSERT INTO "Team's"."Order" VALUES (1, :value, 1)""")
        with pytest.raises(ConstraintError), connection.begin_nested():
            execute(connection, insert, {"value": packet(connection, "")}, table="Order")
        allow_direct_format(connection)
        execute(connection, insert, {"value": packet(connection, "")}, table="Order")


def test_whoever_does_not_own_the_tables_is_told_so(database: Database) -> None:
    """A role without the right gets our error, and nothing is changed."""
    with database.engine.connect() as connection:
        before = checks(connection)
        role = f"reader_{uuid4().hex[:12]}"
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        with pytest.raises(DatabaseError) as refused, connection.begin_nested():
            allow_direct_format(connection)
        assert refused.value.sqlstate == "42501"
        assert checks(connection) == before
        connection.rollback()


def test_application_code_writes_what_the_strict_form_takes(database: Database) -> None:
    """The check and the encryption agree: every field of a patient is stored, and verified."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789", mrn="1", name="Zoë", address={"city": "Rīga"}))
    (_, patients) = verify(database.engine, KeyringSource(database.keys.provider))
    assert (patients.values, patients.failed) == (4, 0)


def test_migrating_a_database_that_is_not_there_is_our_error(engine: Engine) -> None:
    """A wrong address is told in a line that shows no password."""
    wrong = create_engine(engine.url.set(database="voiceassist_no_such_database"))
    with pytest.raises(DatabaseError) as refused:
        migrate(wrong)
    assert "\n" not in str(refused.value)
    assert str(engine.url.password) not in str(refused.value)
    assert refused.value.__cause__ is None
    wrong.dispose()
