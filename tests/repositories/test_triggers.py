"""A trigger may stamp a row, and may not put it under another primary key than its values are bound to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from voiceassist_db import Database, Patient, Repositories
from voiceassist_db.errors import PrimaryKeyChangedError, TriggerError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.verification import verify

NEW_ID = "NEW.id := '018f3f5e-7b1c-7cc2-9d5b-0a1b2c3d4e5f'"
STAMP = "NEW.created_at := '2001-01-01 00:00:00Z'"


def make_trigger(database: Database, event: str, change: str) -> None:
    """Let a trigger change each row before it is stored."""
    with database.engine.begin() as connection:
        connection.execute(
            text(
                f"CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {change.replace(chr(39), chr(39) * 2)}; RETURN NEW; END'".replace(
                    ":", r"\:"
                )
            )
        )
        connection.execute(
            text(f"CREATE TRIGGER change BEFORE {event} ON patient_data FOR EACH ROW EXECUTE FUNCTION change()")
        )
    database.engine.dispose()  # each new connection asks


WRITES: dict[str, Callable[[Repositories], Any]] = {
    "add": lambda tx: tx.patients.add(Patient(patient_id="PT-2", name="Zoe")),
    "add_many": lambda tx: tx.patients.add_many([Patient(patient_id="PT-2", name="Zoe")]),
    "update": lambda tx: tx.patients.update("PT-1", name="Zoe"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_key_that_a_trigger_changes_is_refused(database: Database, write: str) -> None:
    """Nobody could read the values; and nothing of the write stays, though the application goes on and commits."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="Ana"))
    make_trigger(database, "INSERT OR UPDATE", NEW_ID)
    with database.transaction() as tx:
        before = tx.patients.page()
        with pytest.raises(PrimaryKeyChangedError, match="a trigger of patient_data changes the primary key"):
            WRITES[write](tx)
    with database.transaction() as tx:
        assert tx.patients.page() == before
    assert not any(report.failed for report in verify(database.engine, database.keys))


def test_a_trigger_that_stamps_rows_is_nobodys_harm(database: Database) -> None:
    """It leaves the key alone, so all is written and read."""
    make_trigger(database, "INSERT OR UPDATE", STAMP)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="Ana"))
        assert tx.patients.add_many([Patient(patient_id=f"PT-{n}", name="Ana") for n in range(2, 900)]) == 898
        tx.patients.update("PT-1", name="Zoe", patient_id="PT-0")
        assert tx.patients.get("PT-0").name == "Zoe"
        assert tx.patients.get("PT-899").created_at.year == 2001  # type: ignore[union-attr]
    assert not any(report.failed for report in verify(database.engine, database.keys))


SKIPS: dict[str, tuple[str, str]] = {
    "every row": (
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "the trigger skip of patient_data",
    ),
    "a row of many": (
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.patient_id ~ ''2'' THEN RETURN NULL; END IF; RETURN NEW; END'",
        "the trigger skip of patient_data",
    ),
    "by a rule": ("CREATE RULE skip AS ON INSERT TO patient_data DO INSTEAD NOTHING", "a rule of patient_data"),
}


@pytest.mark.parametrize("write", ["add", "add_many"])
@pytest.mark.parametrize("skip", SKIPS)
def test_a_row_that_is_skipped_is_an_error_that_says_so(database: Database, skip: str, write: str) -> None:
    """Nothing of the statement is kept, the transaction goes on, and the keys are not to blame, so that nobody asks for new ones."""
    sql, who = SKIPS[skip]
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="Ana"))
    with database.engine.begin() as connection:
        connection.execute(text(sql.replace(":", r"\:")))
        if skip != "by a rule":
            connection.execute(
                text("CREATE TRIGGER skip BEFORE INSERT ON patient_data FOR EACH ROW EXECUTE FUNCTION skip()")
            )
    database.engine.dispose()
    many = [Patient(patient_id=f"PT-{n}", name="Zoe") for n in range(2, 6)]
    with database.transaction() as tx:
        with pytest.raises(TriggerError, match=f"^{who} skips rows") as caught:
            tx.patients.add(many[0]) if write == "add" else tx.patients.add_many(many)
        assert (type(caught.value), caught.value.table) == (TriggerError, "patient_data")
        tx.patients.update("PT-1", name="Zoe")
    with database.transaction() as tx:
        assert [(each.patient_id, each.name) for each in tx.patients.page()] == [("PT-1", "Zoe")]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_trigger_of_a_child_table_is_seen(database: Database, depth: int) -> None:
    """An UPDATE of a table changes the rows of its children by INHERITS too, and of theirs."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="Ana"))
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE child_1 () INHERITS (patient_data)"))
        connection.execute(text("CREATE TABLE child_2 () INHERITS (child_1)"))
        connection.execute(text(f"INSERT INTO child_{depth} SELECT * FROM patient_data"))
        connection.execute(text("DELETE FROM ONLY patient_data"))
        connection.connection.cursor().execute(
            "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.ssn_encrypted = NULL; NEW.name_encrypted = NULL; RETURN NEW; END $$"
        )
        connection.execute(
            text(f"CREATE TRIGGER change BEFORE UPDATE ON child_{depth} FOR EACH ROW EXECUTE FUNCTION change()")
        )
    database.engine.dispose()
    with database.transaction() as tx:
        with pytest.raises(
            TriggerError, match="the trigger change of patient_data stores something else, or NULL, in name_encrypted"
        ):
            tx.patients.update("PT-1", name="Zoe")
        assert tx.patients.get("PT-1").name == "Ana"


UPDATES: dict[str, tuple[str, str]] = {
    "NEW.name_encrypted := NULL; RETURN NEW": ("name_encrypted", "name"),
    "NEW.name_encrypted := OLD.name_encrypted; RETURN NEW": ("name_encrypted", "name"),
    "NEW.ssn_encrypted := NULL; RETURN NEW": ("ssn_encrypted", "ssn"),
    "NEW.ssn_encrypted := NEW.name_encrypted; RETURN NEW": ("ssn_encrypted", "ssn"),
    "NEW.mrn_encrypted := NEW.name_encrypted; RETURN NEW": ("mrn_encrypted", "mrn"),
    "NEW.name_index := NULL; RETURN NEW": ("name_index", ""),
    "NEW.key_version := 2; RETURN NEW": ("key_version", ""),
    "RETURN OLD": ("name_encrypted, name_index", "name"),
    "RETURN NULL": ("skips rows", ""),
}
"""What a trigger does at an update of a name, what the error names, and its field."""


@pytest.mark.parametrize("scheme", [Scheme.DIRECT, Scheme.BOUND])
def test_a_trigger_that_changes_an_update_is_refused(
    engine: Engine, new_provider: Callable[..., VaultKeyProvider], scheme: Scheme
) -> None:
    """It stores NULL or something else in a field that is changed or in another one, keeps the row or skips it. Nothing is written."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=scheme)
        allow_direct_format(connection)
    database = Database(engine, provider)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-1", name="Ana", ssn="123-45-6789"))
        before = tx.patients.page()
    make_trigger(database, "UPDATE", "NULL")
    for change, (named, field) in UPDATES.items():
        with engine.begin() as connection:
            connection.connection.cursor().execute(
                f"CREATE OR REPLACE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change}; END $$"
            )
        with database.transaction() as tx:
            with pytest.raises(TriggerError, match="the trigger change of patient_data") as caught:
                tx.patients.update("PT-1", name="Zoe")
            assert (named in str(caught.value), caught.value.table) == (True, "patient_data"), change
            assert (caught.value.field or "") == field, change
            tx.patients.add(Patient(patient_id="PT-2"))  # the transaction goes on
            tx.patients.delete("PT-2")
        with database.transaction() as tx:
            assert tx.patients.page() == before, change
