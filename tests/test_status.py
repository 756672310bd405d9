"""Where a database stands with its keys, for whoever may read it, and without any key."""

from __future__ import annotations

import secrets
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, Engine, text

from voiceassist_db import ClinicalNote, Database, Patient, create_engine
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KeySet, Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.status import SHOWN_ROTATIONS, Status, read_status


def status(engine: Engine, **options: int) -> Status:
    """Read the status."""
    with engine.connect() as connection:
        return read_status(connection, **options)


def add_run(engine: Engine, state: str, *, minutes_ago: int, rows: int = 0) -> UUID:
    """Record a run as a rotation does."""
    run = uuid4()
    values = {"id": run, "state": state, "ago": minutes_ago, "rows": rows}
    insert = text(
        "INSERT INTO key_rotations (id, from_version, to_version, state, started_at, rows) "
        "VALUES (:id, 1, 2, :state, now() - make_interval(mins => :ago), :rows)"
    )
    with engine.begin() as connection:
        connection.execute(insert, values)
    return run


def test_a_new_database_has_tables_and_nothing_else(engine: Engine) -> None:
    """Before any key: no versions, no runs, no age, and tables without rows."""
    assert status(engine) == Status((), {"clinical_notes": {}, "patient_data": {}}, (), None, overdue=False)


def test_rows_are_counted_by_version_and_table(database: Database) -> None:
    """Each table's rows, under each version that any of them is under, a version that nobody knows included."""
    patients = [Patient(patient_id=f"PT-{number}") for number in range(6)]
    with database.transaction() as tx:
        tx.patients.add_many(patients)
        tx.clinical_notes.add(ClinicalNote(patient=patients[0].id, note="note"))
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET key_version = 9 WHERE patient_id IN ('PT-1', 'PT-3')"))
    found = status(database.engine).tables
    assert found == {"clinical_notes": {1: 1}, "patient_data": {1: 4, 9: 2}}
    assert [list(counts) for counts in found.values()] == [[1], [1, 9]]


def test_a_rotation_shows_in_keys_tables_and_runs(database: Database) -> None:
    """Afterwards the old version is the previous one, with its date, and the run is finished with its rows."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{number}", name="Zoë") for number in range(6))
    rotate(database.engine, KeyringSource(database.keys.provider))
    found = status(database.engine)
    assert [(key.version, key.state, key.scheme) for key in found.keys] == [
        (1, "previous", Scheme.BOUND),
        (2, "current", Scheme.BOUND),
    ]
    assert found.keys[0].replaced_at is not None
    assert found.keys[1].replaced_at is None
    assert found.tables["patient_data"] == {2: 6}
    (run,) = found.rotations
    assert (run.from_version, run.to_version, run.state, run.rows, run.quarantined) == (1, 2, "finished", 6, 0)
    assert run.finished_at is not None
    assert found.unfinished == ()


def test_the_last_runs_come_newest_first_with_their_quarantine(database: Database) -> None:
    """Each has its own failures counted, the unfinished are found, and a long history is cut."""
    engine = database.engine
    runs = [add_run(engine, "finished", minutes_ago=100 - number, rows=number) for number in range(SHOWN_ROTATIONS)]
    running = add_run(engine, "running", minutes_ago=2)
    interrupted = add_run(engine, "interrupted", minutes_ago=1)
    failure = text("INSERT INTO key_rotation_failures VALUES (:run, 'patient_data', :row, '39000')")
    with engine.begin() as connection:
        for run, row in [(running, "1"), (running, "2"), (runs[-1], "1")]:
            connection.execute(failure, {"run": run, "row": row})
    found = status(engine)
    assert [each.id for each in found.rotations] == [interrupted, running, *reversed(runs[2:])]
    assert [each.quarantined for each in found.rotations[:4]] == [0, 2, 1, 0]
    assert [each.id for each in found.unfinished] == [interrupted, running]


@pytest.mark.parametrize(("days", "overdue"), [(34, False), (36, True)])
def test_a_key_that_is_too_old_is_overdue(database: Database, days: int, *, overdue: bool) -> None:
    """The policy counts from the current key's creation, and can be another one."""
    with database.engine.begin() as connection:
        age = text("UPDATE encryption_keys SET created_at = now() - make_interval(days => :days)")
        connection.execute(age, {"days": days})
    found = status(database.engine)
    assert found.key_age_days == pytest.approx(days, abs=0.1)
    assert found.overdue == overdue
    assert status(database.engine, max_age_days=days + 1).overdue is False
    assert status(database.engine, max_age_days=days - 1).overdue is True


def test_only_the_current_key_ages(database: Database, provider: VaultKeyProvider) -> None:
    """An old previous key is nobody's delay."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE encryption_keys SET created_at = now() - interval '400 days'"))
        old = provider.fetch()
        new = KeySet.generate()
        provider.replace(
            old, replace(new, version=2, previous_version=1, previous_key=old.key, index_key=old.index_key)
        )
        initialise_keys(provider, connection)
    found = status(database.engine)
    assert found.key_age_days == pytest.approx(0, abs=0.1)
    assert found.overdue is False


def test_an_auditor_needs_no_key_and_no_write(database: Database) -> None:
    """A role that may only read the tables gets the whole status."""
    role = f"auditor_{secrets.token_hex(6)}"
    with database.engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
        connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        expected = read_status(connection)
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        connection.execute(text("SET TRANSACTION READ ONLY"))
        found = read_status(connection)
        assert found.keys == expected.keys
        assert found.tables == expected.tables
        connection.rollback()


def test_a_database_that_was_not_migrated_is_our_error(empty_url: URL) -> None:
    """It says what to run."""
    engine = create_engine(empty_url)
    with pytest.raises(SchemaNotMigratedError, match="voiceassist-db migrate"):
        status(engine)
    engine.dispose()
