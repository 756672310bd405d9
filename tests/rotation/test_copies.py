"""A copy that the owner made by CREATE TABLE … AS: what stops, what does not, and what each command says to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from voiceassist_db import Database, Patient
from voiceassist_db.catalogue import encrypted_tables, tables_and_copies
from voiceassist_db.errors import SchemaNotMigratedError
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import plan, retire, rotate, rotate_index_key
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

COPY = 'CREATE TABLE "Copy of may" AS SELECT * FROM patient_data'
DROP = re.compile(r'DROP TABLE public\."Copy of may"\.')
RENAME = re.compile(r'ALTER TABLE public\."Copy of may" RENAME COLUMN ssn_encrypted TO ssn_kept')


@pytest.fixture
def copied(database: Database) -> Database:
    """A database with patients, and with a copy of their table."""
    with database.transaction() as tx:
        tx.patients.add_many([Patient(patient_id=f"PT-{number}", ssn=f"9{number:08d}") for number in range(20)])
    run(database.engine, COPY)
    return database


def run(engine: Engine, statement: str) -> None:
    """Execute a statement of the owner's."""
    with engine.begin() as connection:
        connection.execute(text(statement))


def seen(connection: Connection) -> tuple[list[str], list[str]]:
    """Return the names of encrypted tables and of copies."""
    tables, copies = tables_and_copies(connection)
    return [each.name for each in tables], [each.table for each in copies]


@pytest.mark.parametrize(
    "work",
    [rotate, *(pytest.param(each, marks=pytest.mark.wide) for each in (plan, rotate_index_key, retire))],
    ids=lambda each: each.__name__,
)
def test_a_copy_stops_what_would_leave_it_behind(
    copied: Database, provider: VaultKeyProvider, work: Callable[[Engine, KeyringSource], object]
) -> None:
    """Before anything is changed, with the statement that removes the copy and the one that keeps it."""
    if work is retire:
        run(copied.engine, 'DROP TABLE "Copy of may"')
        assert rotate(copied.engine, copied.keys).done
        run(copied.engine, COPY)
    before = list(provider.fetch().versions())
    with pytest.raises(SchemaNotMigratedError, match="is a copy of patient_data") as refused:
        work(copied.engine, copied.keys)
    assert DROP.search(str(refused.value))
    assert RENAME.search(str(refused.value))
    assert list(provider.fetch().versions()) == before


def test_status_and_verification_go_on(copied: Database) -> None:
    """They show everything else, and name the copy with the same remedy; it is no table that is well."""
    with copied.engine.connect() as connection:
        status = read_status(connection)
    assert status.tables == {"clinical_notes": {}, "patient_data": {1: 20}}
    (gap,) = status.gaps
    assert (gap.table, gap.statements, gap.is_unsafe) == ("Copy of may", (), True)
    assert DROP.search(gap.problem)
    reports = {each.table: each for each in verify(copied.engine, copied.keys)}
    assert {name: (each.rows, each.failed) for name, each in reports.items()} == {
        "clinical_notes": (0, 0),
        "patient_data": (20, 0),
        "Copy of may": (0, 1),
    }
    assert DROP.search(reports["Copy of may"].failures[0].problem)


@pytest.mark.wide
@pytest.mark.parametrize("remedy", ["drop", "rename"])
def test_each_remedy_lets_the_rotation_begin(copied: Database, remedy: str) -> None:
    """The statement of the message is executed as it is printed; after it, the rotation and the retirement are done."""
    for _ in range(10):
        with copied.engine.connect() as connection:
            _, copies = tables_and_copies(connection)
        if not copies:
            break
        found = re.search(r"(DROP TABLE .+?)\. If" if remedy == "drop" else r"(ALTER TABLE .+)$", copies[0].problem)
        assert found is not None
        run(copied.engine, found[1])
    assert rotate(copied.engine, copied.keys).done
    assert retire(copied.engine, copied.keys, grace_days=0).version == 1


@pytest.mark.wide
def test_what_may_be_in_use_is_no_copy(copied: Database) -> None:
    """A table with a primary key, such as a partition that was detached, stops every command, and no message says to drop it."""
    run(copied.engine, 'ALTER TABLE "Copy of may" ADD PRIMARY KEY (id)')
    with (
        copied.engine.connect() as connection,
        pytest.raises(SchemaNotMigratedError, match=r"Copy of may\.ssn_encrypted.*: named as encrypted") as refused,
    ):
        read_status(connection)
    assert "DROP" not in str(refused.value)


@pytest.mark.wide
def test_only_columns_of_one_table_make_a_copy(copied: Database) -> None:
    """Some of its columns are enough; other names, a comment of its own or none of them are something else."""
    run(copied.engine, "CREATE TABLE part AS SELECT id, ssn_encrypted FROM patient_data")
    run(copied.engine, "CREATE TABLE other AS SELECT id, ssn_encrypted AS blob FROM patient_data")
    with copied.engine.connect() as connection:
        assert seen(connection) == (["clinical_notes", "patient_data"], ["Copy of may", "part"])
    run(copied.engine, "CREATE TABLE strange AS SELECT id, ssn_encrypted AS strange_encrypted FROM patient_data")
    with (
        copied.engine.connect() as connection,
        pytest.raises(SchemaNotMigratedError, match=r"^strange\.strange_encrypted: named as encrypted"),
    ):
        encrypted_tables(connection)
