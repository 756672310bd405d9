"""A key version ends only when nothing needs it, and then nobody can write under it again."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from voiceassist_db import Database, Patient
from voiceassist_db import constraints as constraints_of_tables
from voiceassist_db.errors import (
    KeyStoreConflictError,
    NothingToDoError,
    RotationError,
    TransactionConflictError,
)
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.status import read_status

PATIENTS = [Patient(patient_id=f"PT-{n:03d}", ssn=f"9{n:08d}", name=f"Zoë {n}") for n in range(300)]


@pytest.fixture
def rotated(database: Database) -> Database:
    """A database whose rotation from version 1 to 2 is complete."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
    assert rotate(database.engine, database.keys).done
    return database


def constraints(engine: Engine) -> dict[str, str]:
    """Return the floors of all tables, each as the server prints it."""
    query = text(
        "SELECT conrelid::regclass::text AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint "
        "WHERE conname LIKE '%floor'"
    )
    with engine.connect() as connection:
        return {row.name: row.definition for row in connection.execute(query)}


def states(engine: Engine) -> dict[int, str]:
    """Return the state of each registered version."""
    with engine.connect() as connection:
        return {key.version: key.state for key in read_status(connection).keys}


def test_a_version_that_nothing_needs_is_retired(rotated: Database, provider: VaultKeyProvider) -> None:
    """The store forgets it, the tables refuse it, all values are read, and the next rotation may begin; and so on."""
    done = retire(rotated.engine, rotated.keys, grace_days=0)
    assert (done.version, done.floor, done.tables) == (1, 2, ("clinical_notes", "patient_data"))
    assert list(provider.fetch().versions()) == [2]
    assert states(rotated.engine) == {1: "retired", 2: "current"}
    assert constraints(rotated.engine) == dict.fromkeys(done.tables, "CHECK ((key_version >= 2))")
    assert rotate(rotated.engine, rotated.keys).to_version == 3
    assert retire(rotated.engine, rotated.keys, grace_days=0).version == 2
    assert constraints(rotated.engine) == dict.fromkeys(done.tables, "CHECK ((key_version >= 3))")
    with Database(rotated.engine, provider).transaction() as tx:
        assert sorted(PATIENTS, key=lambda each: each.id) == tx.patients.page(limit=1000)


def test_the_grace_period_holds(rotated: Database, provider: VaultKeyProvider) -> None:
    """Backups of the time before need the key: it stays three weeks, unless somebody says otherwise; the message says until when."""
    with pytest.raises(RotationError, match=r"stays until .* UTC, 21 days after"):
        retire(rotated.engine, rotated.keys)
    assert list(provider.fetch().versions()) == [2, 1]
    with rotated.engine.begin() as connection:
        connection.execute(text("UPDATE key_rotations SET finished_at = finished_at - interval '22 days'"))
    assert retire(rotated.engine, rotated.keys).version == 1


def test_without_a_previous_key_there_is_nothing_to_retire(database: Database) -> None:
    """And nothing is changed."""
    with pytest.raises(NothingToDoError, match="nothing to retire"):
        retire(database.engine, database.keys, grace_days=0)
    assert constraints(database.engine) == {}


@pytest.mark.parametrize("left", ["a row", "an unreadable row", "an unfinished run"])
def test_a_version_that_is_needed_is_not_retired(rotated: Database, provider: VaultKeyProvider, left: str) -> None:
    """While one row is under it, or its rotation is unfinished, it stays: in the store, the registry and the tables."""
    with rotated.engine.begin() as connection:
        if left == "an unfinished run":
            connection.execute(text("UPDATE key_rotations SET state = 'interrupted', finished_at = NULL"))
        else:
            insert = "INSERT INTO patient_data (id, patient_id, key_version) VALUES (gen_random_uuid(), 'PT-old', 1)"
            connection.execute(text(insert))
    with pytest.raises(RotationError, match="still need key version 1|is unfinished"):
        retire(rotated.engine, rotated.keys, grace_days=0)
    assert list(provider.fetch().versions()) == [2, 1]
    assert states(rotated.engine) == {1: "previous", 2: "current"}
    assert constraints(rotated.engine) == {}
    assert rotate(rotated.engine, rotated.keys).done
    assert retire(rotated.engine, rotated.keys, grace_days=0).version == 1


def test_a_row_that_slips_in_before_the_floor_keeps_the_version(
    rotated: Database, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once more when none can follow: the version stays, and the next rotation run finishes the row."""

    def late(connection: Connection, table: object, version: int) -> None:
        with rotated.engine.begin() as other:
            insert = "INSERT INTO patient_data (id, patient_id, key_version) VALUES (gen_random_uuid(), :id, 1)"
            other.execute(text(insert), {"id": f"PT-late-{table.name}"})  # type: ignore[attr-defined]  # a table
        constraints_of_tables.set_floor(connection, table, version)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr("voiceassist_db.rotation.retirement.set_floor", late)
    with pytest.raises(RotationError, match="2 rows of patient_data still need key version 1"):
        retire(rotated.engine, rotated.keys, grace_days=0)
    monkeypatch.undo()
    assert list(provider.fetch().versions()) == [2, 1]
    assert states(rotated.engine)[1] == "previous"
    report = rotate(rotated.engine, rotated.keys)
    assert (report.rows, report.done) == (2, True)
    assert retire(rotated.engine, rotated.keys, grace_days=0).version == 1


def test_a_retirement_that_died_before_the_store_is_finished(
    rotated: Database, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No keyring has the version meanwhile, though the store still holds it; the next run removes it, grace or not."""

    def conflict(*_: object) -> None:
        raise KeyStoreConflictError("somebody wrote")

    monkeypatch.setattr(VaultKeyProvider, "replace", conflict)
    with pytest.raises(KeyStoreConflictError):
        retire(rotated.engine, rotated.keys, grace_days=0)
    monkeypatch.undo()
    assert list(provider.fetch().versions()) == [2, 1]
    with rotated.engine.connect() as connection:
        assert KeyringSource(provider).keyring(connection).previous is None
    with pytest.raises(RotationError, match="retire it first"):
        rotate(rotated.engine, rotated.keys)
    assert retire(rotated.engine, rotated.keys).version == 1
    assert list(provider.fetch().versions()) == [2]


@pytest.mark.parametrize("way", ["add", "add_many", "both in one transaction"])
def test_a_writer_with_an_old_keyring_writes_under_the_new_key(
    database: Database, provider: VaultKeyProvider, way: str
) -> None:
    """Its first write finds the registry ahead of its keyring: it refreshes and writes again, and its transaction lives on."""
    process = Database(database.engine, provider, ttl_s=3600)
    with process.transaction() as tx:
        tx.patients.add(PATIENTS[0])
    assert rotate(database.engine, database.keys).done
    retire(database.engine, database.keys, grace_days=0)
    with process.transaction() as tx:
        if way != "add_many":
            tx.patients.add(PATIENTS[1])
        if way != "add":
            assert tx.patients.add_many(PATIENTS[2:]) == len(PATIENTS) - 2
    with database.engine.connect() as connection:
        assert list(read_status(connection).tables["patient_data"]) == [2]
    with database.transaction() as tx:
        assert tx.patients.get(PATIENTS[-2 if way != "add" else 1].patient_id).ssn


def test_a_writer_meets_the_new_key_while_the_rotation_runs(database: Database, provider: VaultKeyProvider) -> None:
    """From the registry on, no repository writes a row under the older key: the sweep has nothing to chase."""
    process = Database(database.engine, provider, ttl_s=3600)
    with process.transaction() as tx:
        tx.patients.add(PATIENTS[0])
    assert rotate(database.engine, database.keys).done
    with process.transaction() as tx:
        tx.patients.add(PATIENTS[1])
    with database.engine.connect() as connection:
        assert read_status(connection).tables["patient_data"] == {2: 2}


def test_a_transaction_from_before_meets_the_floor(rotated: Database) -> None:
    """Whose snapshot is older than the retirement cannot know of it: the floor refuses its row, and it may be tried again."""
    retire(rotated.engine, rotated.keys, grace_days=0)
    insert = text("INSERT INTO patient_data (id, patient_id, key_version) VALUES (gen_random_uuid(), 'PT-x', 1)")
    from voiceassist_db.execution import execute

    with rotated.engine.connect() as connection, pytest.raises(TransactionConflictError, match="try it again"):
        execute(connection, insert, table="patient_data")


def test_direct_data_is_held_to_the_bound_format_afterwards(
    engine: Engine, provider: VaultKeyProvider, new_provider: object
) -> None:
    """When a version of scheme direct is retired, the columns accept bound values only; before, they accepted both."""
    fresh = new_provider("-direct")  # type: ignore[operator]  # a function of the fixture
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_keys"))
        connection.execute(text("DELETE FROM index_keys"))
        initialise_keys(fresh, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
        key = fresh.fetch().key.expose().decode()
        guide = text(
            "INSERT INTO patient_data (id, patient_id, ssn_encrypted, key_version) "
            "VALUES (gen_random_uuid(), 'PT-g', pgcrypto.pgp_sym_encrypt('123-45-6789', :key), 1)"
        )
        connection.execute(guide, {"key": key})
    database = Database(engine, fresh)
    assert rotate(engine, database.keys).done
    retire(engine, database.keys, grace_days=0)
    with pytest.raises(Exception, match="patient_data_ssn_encrypted_format"), engine.begin() as connection:
        connection.execute(text(str(guide).replace("PT-g", "PT-h").replace(", 1)", ", 2)")), {"key": key})
    with database.transaction() as tx:
        assert tx.patients.get("PT-g").ssn == "123-45-6789"
