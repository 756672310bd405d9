"""A trigger that changes what a rotation stores, or skips a row, stops the run: nothing of the batch stays, and the error names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest
from sqlalchemy import Engine, Text, literal_column, text

from tests.nulls.keyed import PLAINTEXTS, Table, run
from tests.rotation.test_proof import fill_visits
from voiceassist_db import Database, Patient
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.errors import PrimaryKeyChangedError, TriggerError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import retire, rotate, rotate_index_key
from voiceassist_db.rotation.statements import Statements
from voiceassist_db.rotation.tokens import TokenTable
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.triggers import GuardedUpdate
from voiceassist_db.verification import verify

CHANGES: Final = {
    "empties a value": ("NEW.note_encrypted = NULL; RETURN NEW", "note_encrypted"),
    "empties a value of one row": ("IF NEW.n = 3 THEN NEW.scan_encrypted = NULL; END IF; RETURN NEW", "scan_encrypted"),
    "keeps a value": ("NEW.note_encrypted = OLD.note_encrypted; RETURN NEW", "note_encrypted"),
    "changes a byte": (
        "NEW.scan_encrypted = set_byte(NEW.scan_encrypted, 40, 255 - get_byte(NEW.scan_encrypted, 40)); RETURN NEW",
        "scan_encrypted",
    ),
    "exchanges values": (
        "NEW.note_encrypted = NEW.scan_encrypted; NEW.scan_encrypted = NEW.note_encrypted; RETURN NEW",
        "note_encrypted",
    ),
    "fills a value": ("NEW.absent_encrypted = NEW.note_encrypted; RETURN NEW", "absent_encrypted"),
    "keeps the version": ("NEW.key_version = OLD.key_version; RETURN NEW", "key_version"),
    "keeps the row": ("RETURN OLD", "key_version"),
    "skips every row": ("RETURN NULL", "skips rows"),
    "skips a row": ("IF NEW.n = 3 THEN RETURN NULL; END IF; RETURN NEW", "skips rows"),
}
"""What a trigger does, and what the error must name."""

FIELDS: Final = ("note", "scan", "absent")


@pytest.fixture
def adopted(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> Database:
    """A database of scheme ``direct``."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
    return Database(engine, provider)


def set_trigger(
    database: Database, table: str, change: str, *, when: str = "BEFORE UPDATE", each: str = "FOR EACH ROW"
) -> None:
    """Let a trigger do something to each row."""
    with database.engine.begin() as connection:
        run(
            connection,
            f"CREATE OR REPLACE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change}; END $$",
        )
        run(
            connection,
            f'CREATE OR REPLACE TRIGGER "its change" {when} ON {table} {each} EXECUTE FUNCTION change()',
        )


def drop_trigger(database: Database, table: str) -> None:
    """Remove it."""
    with database.engine.begin() as connection:
        run(connection, f'DROP TRIGGER "its change" ON {table}')


def everything(database: Database, table: str) -> list[Any]:
    """Return the rows of a table as they are stored."""
    with database.engine.connect() as connection:
        return list(connection.execute(text(f"SELECT t::text FROM {table} t ORDER BY n")).scalars())


def check_stopped(database: Database, table: Table, changes: Iterable[str]) -> None:
    """Each of the changes stops a run, and no row is lost; without a trigger the run goes on to its end."""
    for what in changes:
        change, named = CHANGES[what]
        before = everything(database, table.name)
        set_trigger(database, table.name, change)
        with pytest.raises(TriggerError, match="the trigger its change of") as caught:
            rotate(database.engine, database.keys)
        assert table.name in str(caught.value), what
        assert named in str(caught.value), what
        assert caught.value.table == table.name
        # A batch of rows that the trigger leaves alone can have been written, whole, before the one with row 3.
        left = everything(database, table.name)
        assert (left == before) if "IF" not in change else (left[3] == before[3]), what
    drop_trigger(database, table.name)
    report = rotate(database.engine, database.keys)
    assert (report.done, report.verified, report.quarantined) == (True, True, 0)
    key = database.keys.provider.fetch().key
    keys = {each: key.derive(f"{table.name}.{each}").expose().decode() for each in table.fields}
    with database.engine.connect() as connection:
        opened = table.opened(connection, keys, range(len(table.keys)))
        assert opened == {n: [table.bound(n, each) for each in table.fields] for n in range(len(table.keys))}


def check_each_rotation(adopted: Database, changes: Iterable[str]) -> None:
    """From `direct` to `bound`, and from there to `bound`."""
    table = Table("integer", FIELDS)
    with adopted.engine.begin() as connection:
        table.create(connection)
        table.fill(connection, adopted.keys.provider.fetch().key.expose().decode())
    check_stopped(adopted, table, changes)
    retire(adopted.engine, adopted.keys, grace_days=0)
    check_stopped(adopted, table, changes)
    assert PLAINTEXTS["absent"][1] is None
    assert not any(each.failed for each in verify(adopted.engine, adopted.keys))


def test_a_trigger_that_changes_a_rotation_stops_it(adopted: Database) -> None:
    """It empties a value, changes one, keeps the row or skips it."""
    check_each_rotation(adopted, ["empties a value of one row", "changes a byte", "keeps the row", "skips a row"])


@pytest.mark.wide
def test_whatever_a_trigger_changes_it_stops_a_rotation(adopted: Database) -> None:
    """The same of every change."""
    check_each_rotation(adopted, CHANGES)


OF_ROW: Final = "FOR EACH ROW"
OF_STATEMENT: Final = "REFERENCING NEW TABLE AS changed FOR EACH STATEMENT"
LATER: Final = {
    "empties a value of a row": (OF_ROW, "SET scan_encrypted = NULL WHERE n = NEW.n AND n = 3"),
    "empties a value of the rows": (
        OF_STATEMENT,
        "SET note_encrypted = NULL WHERE n IN (SELECT n FROM changed) AND n = 3",
    ),
    "deletes a row": (
        OF_STATEMENT,
        "SET n = n WHERE n IN (SELECT n FROM changed); DELETE FROM {table} WHERE n IN (SELECT n FROM changed) AND n = 3",
    ),
}
"""What a trigger does to rows that were stored, by a statement of its own."""


@pytest.mark.parametrize("what", LATER)
def test_a_trigger_that_changes_rows_again_stops_a_rotation(adopted: Database, what: str) -> None:
    """It takes away what was re-encrypted; nothing of the batch stays. One that takes nothing away does no harm."""
    table = Table("integer", FIELDS)
    with adopted.engine.begin() as connection:
        table.create(connection)
        table.fill(connection, adopted.keys.provider.fetch().key.expose().decode())
    each, change = LATER[what]
    before = everything(adopted, table.name)

    def let_it(change: str) -> None:
        once = (
            f"IF pg_trigger_depth() = 1 THEN UPDATE {table.name} {change.format(table=table.name)}; END IF; RETURN NULL"
        )
        set_trigger(adopted, table.name, once, when="AFTER UPDATE", each=each)

    let_it(change)
    with pytest.raises(TriggerError, match=f"^the trigger its change of {table.name} stores something else"):
        rotate(adopted.engine, adopted.keys)
    left = everything(adopted, table.name)
    assert (left[3], len(left)) == (before[3], len(before))
    let_it("SET n = n WHERE n = 3")
    report = rotate(adopted.engine, adopted.keys)
    assert (report.done, report.verified, report.quarantined) == (True, True, 0)
    assert not any(each.failed for each in verify(adopted.engine, adopted.keys))


PATIENT_CHANGES: Final = {
    "NEW.name_encrypted = NULL; RETURN NEW": "name_encrypted",
    "NEW.mrn_index = NULL; RETURN NEW": "mrn_index",
    "NEW.ssn_index = OLD.ssn_index; RETURN NEW": "ssn_index",
    "NEW.ssn_encrypted = OLD.mrn_encrypted; RETURN NEW": "ssn_encrypted",
    "NEW.key_version = 7; RETURN NEW": "key_version",
    "RETURN OLD": "_index",
    "RETURN NULL": "skips rows",
}


@pytest.fixture
def patients(database: Database) -> Database:
    """A database with patients."""
    with database.transaction() as tx:
        tx.patients.add_many(
            Patient(patient_id=f"PT-{n}", ssn=f"12345678{n}", mrn=f"M-{n}", name=f"Zoë {n}") for n in range(5)
        )
    return database


def stored(database: Database) -> list[Any]:
    """Return all patients as they are stored."""
    with database.engine.connect() as connection:
        return list(connection.execute(text("SELECT t::text FROM patient_data t ORDER BY 1")).scalars())


def test_a_trigger_that_changes_a_rotation_of_the_index_key_stops_it(patients: Database) -> None:
    """It sees what becomes of the tokens, and that the encrypted values stay as they are."""
    before = stored(patients)
    for change, named in PATIENT_CHANGES.items():
        set_trigger(patients, "patient_data", change)
        with pytest.raises(TriggerError, match="the trigger its change of patient_data") as caught:
            rotate_index_key(patients.engine, patients.keys)
        assert named in str(caught.value), change
        assert stored(patients) == before, change
    set_trigger(patients, "patient_data", "NEW.patient_id = OLD.patient_id; RETURN NEW")
    assert rotate_index_key(patients.engine, patients.keys).done
    with patients.transaction() as tx:
        assert [each.patient_id for each in tx.patients.find_by_ssn("123456783")] == ["PT-3"]
    assert not any(each.failed for each in verify(patients.engine, patients.keys))


def test_a_trigger_that_changes_the_primary_key_stops_a_rotation(patients: Database) -> None:
    """Values that are bound to the row would not open any more."""
    before = stored(patients)
    set_trigger(patients, "patient_data", "NEW.id = gen_random_uuid(); RETURN NEW")
    for rotated in (rotate_index_key, rotate):
        with pytest.raises(PrimaryKeyChangedError, match="a trigger of patient_data changes the primary key"):
            rotated(patients.engine, patients.keys)
        assert stored(patients) == before


@pytest.mark.parametrize("run_of", [(Statements, "reencrypt", rotate), (TokenTable, "renew", rotate_index_key)])
def test_a_trigger_that_comes_in_the_midst_is_seen(
    patients: Database, run_of: tuple[type, str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes just before the first batch."""
    of, name, rotated = run_of
    original = getattr(of, name)
    before = stored(patients)

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        set_trigger(patients, "patient_data", "NEW.name_encrypted = NULL; RETURN NEW")
        return original(*args, **kwargs)

    monkeypatch.setattr(of, name, late)
    with pytest.raises(TriggerError, match="name_encrypted"):
        rotated(patients.engine, patients.keys)
    assert stored(patients) == before


def test_triggers_that_change_nothing_let_a_rotation_go_on(patients: Database) -> None:
    """One that is disabled, one for other columns, one that runs later, and one that stamps the row."""
    with patients.engine.begin() as connection:
        run(
            connection,
            """
            CREATE FUNCTION empties() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name_encrypted = NULL; RETURN NEW; END $$;
            CREATE TRIGGER off BEFORE UPDATE ON patient_data FOR EACH ROW EXECUTE FUNCTION empties();
            CREATE TRIGGER renamed BEFORE UPDATE OF patient_id ON patient_data FOR EACH ROW EXECUTE FUNCTION empties();
            CREATE TRIGGER added BEFORE INSERT ON patient_data FOR EACH ROW EXECUTE FUNCTION empties();
            CREATE TRIGGER later AFTER UPDATE ON patient_data FOR EACH ROW EXECUTE FUNCTION empties();
            ALTER TABLE patient_data DISABLE TRIGGER off;
            """,
        )
    set_trigger(patients, "patient_data", "NEW.updated_at = '2001-01-01 00:00:00Z'; RETURN NEW")
    assert rotate_index_key(patients.engine, patients.keys).done
    report = rotate(patients.engine, patients.keys)
    assert (report.done, report.verified, report.rows) == (True, True, 5)
    with patients.transaction() as tx:
        found = tx.patients.page()
    assert [each.name for each in found] == [f"Zoë {n}" for n in range(5)]
    assert {each.updated_at.year for each in found if each.updated_at} == {2001}


@pytest.mark.wide
@pytest.mark.parametrize("on", ["visits", "visits_2022"])
def test_a_trigger_of_a_partition_is_seen(database: Database, on: str) -> None:
    """Whether it belongs to the table or to the partition alone."""
    fill_visits(database)
    count = text("SELECT count(*) FROM visits WHERE note_encrypted IS NULL")
    with database.engine.connect() as connection:
        absent = connection.scalar(count)
    set_trigger(database, on, "NEW.note_encrypted = NULL; RETURN NEW")
    with pytest.raises(TriggerError, match="the trigger its change of visits_202. stores"):
        rotate(database.engine, database.keys)
    with database.engine.connect() as connection:
        assert absent == connection.scalar(count)
    drop_trigger(database, on)
    report = rotate(database.engine, database.keys)
    assert (report.done, report.verified) == (True, True)


def test_rows_of_two_partitions_are_not_confused(database: Database) -> None:
    """They have the same place, each in its own partition."""
    fill_visits(database)
    with database.engine.begin() as connection:
        (table,) = (each for each in encrypted_tables(connection) if each.name == "visits")
        same = connection.scalar(text("SELECT count(DISTINCT tableoid) FROM visits WHERE ctid = '(0,4)'"))
        update = GuardedUpdate(table, {"plain": literal_column("'new'", Text)}, table.key[0] == literal_column("3"))
        assert update.write(connection, {}) == 1
        changed = connection.execute(text("SELECT visit FROM visits WHERE plain = 'new'")).scalars().all()
    assert (changed, same) == ([3], 2)
