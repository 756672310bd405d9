"""States that occurred: a lost tail, a lost primary, a secret that was rolled back, a restored backup, journals that disagree."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import URL, Engine, text

from tests.conftest import throwaway_server
from tests.rotation.conftest import Trial, until
from tests.rotation.standby import Standby
from tests.rotation.test_replicas import admin
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.errors import KeyNotRegisteredError, NothingToDoError, RotationError, WrongKeyError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Key
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import plan, retire, rotate
from voiceassist_db.safety import SETTINGS
from voiceassist_db.schema import migrate
from voiceassist_db.status import read_status

JOURNAL = """
    INSERT INTO key_rotations (id, kind, from_version, to_version, state, holder_name, lease_until)
    VALUES (gen_random_uuid(), :kind, :old, :new, 'running', 'lost:1', now() - interval '1 hour')
"""


def lose_primary(engine: Engine, old: int, new: int, kind: str = "encryption") -> None:
    """Leave a run in the journal as a primary leaves it that is lost in its midst."""
    with engine.begin() as connection:
        connection.execute(text(JOURNAL), {"kind": kind, "old": old, "new": new})


def runs(engine: Engine) -> set[tuple[str, int, int, str]]:
    """Return the journal as `status` shows it."""
    with engine.connect() as connection:
        return {
            (each.kind, each.from_version, each.to_version, each.state) for each in read_status(connection).rotations
        }


def roll_back(provider: VaultKeyProvider, revision: int) -> None:
    """Do what `vault kv rollback -version=…` does."""
    earlier = provider.earlier(revision)
    assert earlier is not None
    provider.replace(provider.fetch(), earlier)


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with a few patients."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"9{n:08d}") for n in range(20))
    return database


def assert_all_read(database: Database) -> None:
    """Assert that every patient can be read."""
    with Database(database.engine, database.keys.provider).transaction() as tx:
        assert {f"9{n:08d}" for n in range(20)} == {each.ssn for each in tx.patients.page(limit=100)}


def test_a_secret_that_was_rolled_back_to_a_retired_version(filled: Database, provider: VaultKeyProvider) -> None:
    """Every command refuses, and names the version of the secret to restore; none says that `init-keys` helps."""
    engine, keys = filled.engine, filled.keys
    first = provider.fetch().revision
    rotate(engine, keys)
    retire(engine, keys, grace_days=0)
    last = provider.fetch().revision
    roll_back(provider, first)
    with pytest.raises(KeyNotRegisteredError, match="was retired, and the secret was rolled back"):
        Database(engine, provider).keys.keyring(engine.connect())
    remedy = rf"Version {last} of the secret holds key version 2: `vault kv rollback -mount=secret -version={last} "
    for command in (plan, rotate, retire):
        with pytest.raises(RotationError, match=remedy):
            command(engine, keys)
    with pytest.raises(WrongKeyError, match=remedy), engine.begin() as connection:
        initialise_keys(provider, connection)
    assert list(provider.fetch().versions()) == [1]
    roll_back(provider, last)
    keys.forget()
    assert (plan(engine, keys).from_version, rotate(engine, keys).to_version) == (2, 3)
    assert_all_read(filled)


def test_a_run_of_a_lost_primary_is_closed(filled: Database, provider: VaultKeyProvider) -> None:
    """Its rotation is complete and retired, so nothing continues it, nothing begins, and `status` says that it is superseded."""
    engine, keys = filled.engine, filled.keys
    rotate(engine, keys)
    retire(engine, keys, grace_days=0)
    done = runs(engine)
    for kind in ("encryption", "retirement"):
        lose_primary(engine, 1, 2, kind)
    before = provider.fetch()
    with pytest.raises(NothingToDoError, match="no rotation is unfinished"):
        plan(engine, keys, resume_only=True)
    assert {each for each in runs(engine) if each[3] == "running"} == runs(engine) - done  # a dry run changes nothing
    with pytest.raises(NothingToDoError, match="no rotation is unfinished"):
        rotate(engine, keys, resume_only=True)
    assert before == provider.fetch()
    assert runs(engine) - done == {("encryption", 1, 2, "superseded"), ("retirement", 1, 2, "superseded")}
    lose_primary(engine, 1, 2)
    with pytest.raises(NothingToDoError, match="nothing to retire"):
        retire(engine, keys, grace_days=0)
    assert "running" not in {each[3] for each in runs(engine)}
    lose_primary(engine, 1, 2)
    assert rotate(engine, keys).to_version == 3
    assert retire(engine, keys, grace_days=0).version == 2


@pytest.mark.wide
def test_two_journals_that_disagree(filled: Database, provider: VaultKeyProvider) -> None:
    """The run of the secret's own two keys is continued, and every other one is closed."""
    engine, keys = filled.engine, filled.keys
    stop = threading.Event()
    stop.set()
    assert rotate(engine, keys, stop=stop).interrupted
    for old, new in ((2, 3), (5, 6)):
        lose_primary(engine, old, new)
    with pytest.raises(RotationError, match="still need key version 1: run the rotation again"):
        retire(engine, keys, grace_days=0)
    would = plan(engine, keys)
    assert (would.unfinished, would.from_version, would.to_version) == (True, 1, 2)
    assert rotate(engine, keys, resume_only=True).done
    assert runs(engine) == {("encryption", 1, 2, "finished")} | {("encryption", n, n + 1, "superseded") for n in (2, 5)}
    assert list(provider.fetch().versions()) == [2, 1]
    assert retire(engine, keys, grace_days=0).version == 1
    assert_all_read(filled)


@pytest.mark.wide
def test_keys_that_no_version_of_the_secret_holds_together(filled: Database, provider: VaultKeyProvider) -> None:
    """Rows need versions 1 and 3: the message names a pipe that adds the key, which shows it nowhere, and that works."""
    engine, keys = filled.engine, filled.keys
    first = provider.fetch()
    with engine.begin() as connection:
        held = connection.execute(
            text("SELECT patient_id, ssn_encrypted FROM patient_data WHERE patient_id < 'PT-2'")
        ).all()
    for _ in range(2):
        rotate(engine, keys)
        retire(engine, keys, grace_days=0)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data DROP CONSTRAINT patient_data_key_version_floor"))
        for row in held:
            again = "UPDATE patient_data SET ssn_encrypted = :value, key_version = 1 WHERE patient_id = :id"
            connection.execute(text(again), {"value": row.ssn_encrypted, "id": row.patient_id})
    place = provider.restoring(1).split()[-1]
    pipe = (
        rf"vault kv get -mount=secret -version=\d+ -field=(previous_)?key {place} \| "
        rf"vault kv patch -mount=secret {place} previous_key=- previous_key_version=1`"
    )
    with pytest.raises(RotationError, match=rf"{len(held)} rows need key version 1.*{pipe}"):
        rotate(engine, keys)
    assert list(provider.fetch().versions()) == [3]
    provider.replace(provider.fetch(), replace(provider.fetch(), previous_version=1, previous_key=first.key))
    keys.forget()
    report = rotate(engine, keys)
    assert (report.done, report.rows, report.from_version, report.to_version) == (True, len(held), 1, 3)
    assert_all_read(filled)


@pytest.mark.wide
def test_a_restored_backup_beside_the_database(
    filled: Database, provider: VaultKeyProvider, new_database: Callable[[str | None], URL]
) -> None:
    """It is another database to the secret. The message names the version that serves both, and followed it opens both."""
    engine, keys = filled.engine, filled.keys
    assert engine.url.database is not None
    engine.dispose()
    backup = create_engine(new_database(engine.url.database))
    first = provider.fetch().revision
    rotate(engine, keys)
    retire(engine, keys, grace_days=0)
    restored = Database(backup, provider)
    for command in (rotate, retire, plan):
        with pytest.raises(
            RotationError, match=rf"Version {first + 1} of the secret holds key version 1: `vault kv rollback"
        ):
            command(backup, restored.keys)
    assert list(provider.fetch().versions()) == [2]
    roll_back(provider, first + 1)
    for each in (engine, backup):
        assert_all_read(Database(each, provider))
    rotate(backup, restored.keys)
    assert not retire(backup, restored.keys, grace_days=0).removed
    assert retire(engine, keys, grace_days=0).removed
    for each in (engine, backup):
        assert_all_read(Database(each, provider))
    backup.dispose()


def test_a_key_of_the_same_number_is_not_named(filled: Database, provider: VaultKeyProvider) -> None:
    """A version of the secret with another key under the needed number would be refused, so the message passes it over."""
    real = provider.fetch()
    provider.replace(real, replace(real, version=1, key=Key.generate()))
    provider.replace(provider.fetch(), replace(real, version=5, key=Key.generate()))
    with pytest.raises(RotationError, match=rf"Version {real.revision} of the secret holds key version 1:"):
        rotate(filled.engine, filled.keys)


def test_a_version_with_another_index_key_is_not_named(filled: Database, provider: VaultKeyProvider) -> None:
    """The index key was rotated after the tail was lost: a version of the secret that has both keys and that one would be refused."""
    engine, keys = filled.engine, filled.keys
    stop = threading.Event()
    stop.set()
    rotate(engine, keys, stop=stop)
    both = provider.fetch()
    provider.replace(both, replace(both, index_key=Key.generate()))
    later = provider.fetch()
    provider.replace(later, replace(later, previous_version=None, previous_key=None))
    with pytest.raises(RotationError, match=rf"Version {both.revision} of the secret holds key version 1 and 2:"):
        rotate(engine, keys)
    roll_back(provider, both.revision)
    assert rotate(engine, keys).done
    assert_all_read(filled)


@pytest.mark.wide
def test_a_standby_that_lost_the_tail_is_promoted(new_provider: Callable[..., VaultKeyProvider]) -> None:
    """The secret holds version 2 only, and rows are under 1: refused before the key store is touched; the remedy ends it."""
    with throwaway_server({"wal_level": "replica"}) as primary:
        admin(primary, "CREATE DATABASE clinic")
        for name, value in SETTINGS.items():
            admin(primary, f"ALTER ROLE postgres SET {name} = {value}")
        engine = create_engine(primary.url("clinic"))
        migrate(engine)
        with engine.begin() as connection:
            initialise_keys(provider := new_provider(), connection)
        trial = Trial(engine, provider, rows=600)
        keys = Database(engine, provider).keys
        stop = threading.Event()
        with Standby(primary) as standby:
            rotate(engine, keys, stop=stop, on_progress=lambda now: stop.set() if now.rows else None)
            until(lambda: not admin(primary, "SELECT FROM pg_stat_replication WHERE replay_lsn < pg_current_wal_lsn()"))
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            standby.execute("SELECT pg_reload_conf()")
            until(lambda: not admin(primary, "SELECT FROM pg_stat_replication"))
            both = provider.fetch().revision
            rotate(engine, keys)
            retire(engine, keys, grace_days=0)
            engine.dispose()
            standby.execute("SELECT pg_promote()")
            promoted = create_engine(standby.url.set(database="clinic"))
            keys = Database(promoted, provider).keys
            left = trial.rows - Trial.versions(_on(trial, promoted)).get(2, 0)
            assert left > 0
            message = rf"{left} rows need key version 1.*Version {both} of the secret holds key version 1 and 2: `vault kv rollback"
            for command in (plan, rotate, retire):
                with pytest.raises(RotationError, match=message):
                    command(promoted, keys)
            assert list(provider.fetch().versions()) == [2]
            roll_back(provider, both)
            report = rotate(promoted, keys, resume_only=True)
            assert (report.done, report.rows) == (True, left)
            _on(trial, promoted).check()
            assert retire(promoted, keys, grace_days=0).version == 1
            promoted.dispose()


def _on(trial: Trial, engine: Engine) -> Trial:
    trial.engine = engine
    return trial
