"""Rotation after rotation, tables and indexes stay as large as they are: every row finds room on its own page."""

from __future__ import annotations

import random
import time

import psycopg
import pytest
from sqlalchemy import Connection, bindparam, text, update

from tests.conftest import plain
from tests.rotation.shapes import Shape
from voiceassist_db import Database, uuid7
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.models import EncryptedTable
from voiceassist_db.models.declaration import FILLFACTOR
from voiceassist_db.pgcrypto.expressions import encrypt_stored, parameters
from voiceassist_db.rotation import Pace, Progress, retire, rotate
from voiceassist_db.rotation.lease import APPLICATION

pytestmark = pytest.mark.wide

ROWS = 12_000
"""So many that a page more is not a percent, of an index neither."""

VISITS = Shape(
    key={"id": "uuid"},
    keys=[(uuid7(),) for _ in range(ROWS)],
    rows=[{"note": f"a note of some length, {n}" * 3, "scan": bytes(n)} for n in range(60)],
    options=f"WITH (fillfactor = {FILLFACTOR}, autovacuum_enabled = off)",
    then="CREATE INDEX ON visits (plain)",
)


def visits(connection: Connection) -> EncryptedTable:
    """Return the table as the catalogue finds it."""
    return next(each for each in encrypted_tables(connection) if each.name == "visits")


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with a table of the shipped fillfactor, vacuumed."""
    with database.engine.begin() as connection:
        VISITS.create(connection)
        VISITS.fill(connection, database.keys.keyring(connection), visits(connection))
    vacuum(database)
    return database


def vacuum(database: Database) -> None:
    """Do what autovacuum would."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM visits"))


def change(database: Database, chance: random.Random) -> None:
    """Change the notes of some rows, to longer and to shorter ones, as an application does."""
    with database.engine.begin() as connection:
        table, keyring = visits(connection), database.keys.keyring(connection)
        field = table.fields["note"]
        note = encrypt_stored(table, field, bindparam("value"), {"current": keyring.current.scheme})
        ids = [key[0] for key in chance.sample(VISITS.keys, ROWS // 20)]
        statement = update(table.table).values({field.column: note}).where(table.key[0].in_(ids))
        value = {"value": "another note" * chance.randrange(10)}
        connection.execute(statement, parameters(keyring, table, (field,)) | value)


@pytest.mark.parametrize(
    ("workers", "is_changed", "rotations"),
    [
        pytest.param(1, False, 3, id="one worker"),
        pytest.param(2, True, 3, id="two workers, changed in between"),
        pytest.param(2, False, 12, id="two workers, often", marks=pytest.mark.long),
        pytest.param(1, True, 12, id="one worker, often, changed in between", marks=pytest.mark.long),
        pytest.param(2, True, 12, id="two workers, often, changed in between", marks=pytest.mark.long),
    ],
)
def test_nothing_grows_from_one_rotation_to_the_next(
    filled: Database, workers: int, is_changed: bool, rotations: int
) -> None:
    """Row versions stay on their pages (HOT) in each later rotation as in the first, whatever was changed in between."""
    chance = random.Random(7)  # noqa: S311  # chooses rows
    for _ in range(rotations):
        report = rotate(filled.engine, filled.keys, pace=Pace(workers=workers))
        assert (report.rows, report.done) == (ROWS, True)
        assert report.hot_ratio is not None
        assert report.hot_ratio >= 0.95
        assert max(report.table_growth, report.index_growth) <= 1.03
        retire(filled.engine, filled.keys, grace_days=0)
        if is_changed:
            change(filled, chance)
        vacuum(filled)


@pytest.mark.parametrize("application", [pytest.param("reporting", marks=pytest.mark.long), "voiceassist-db"])
def test_who_holds_an_old_snapshot_is_named(
    filled: Database, application: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody's transaction keeps pages from being cleaned, the rotation says whose, waits a while and goes on.

    That one is told from the rotation's own even where it has the same name, as an application with the same engine has.
    """
    monkeypatch.setattr("voiceassist_db.rotation.horizon.HOLDER_PATIENCE_S", 0.5)
    notes: set[str] = set()
    address = plain(filled.engine.url)
    with psycopg.connect(address, application_name=application) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM visits")
        time.sleep(1.1)  # until it is old enough to be spoken of
        report = rotate(filled.engine, filled.keys, on_progress=lambda now: notes.add(now.note))
        pid = holder.info.backend_pid
        assert any(f"pid {pid} (" in note and f"{application}, idle in transaction" in note for note in notes), notes
    assert (report.rows, report.done) == (ROWS, True)
    assert report.hot_ratio is not None
    assert report.hot_ratio < 0.95, "it was a snapshot that mattered"


def test_its_own_transactions_are_told_from_those_of_others(filled: Database) -> None:
    """A rotation's batches have a name of their own, and with several workers it takes none for somebody else's."""
    notes: set[str] = set()
    names: set[str] = set()

    def look(now: Progress) -> None:
        notes.add(now.note)
        with filled.engine.connect() as connection:
            names.update(connection.execute(text("SELECT application_name FROM pg_stat_activity")).scalars())

    rotate(filled.engine, filled.keys, pace=Pace(workers=3), on_progress=look)
    assert notes == {""}
    assert APPLICATION in names
