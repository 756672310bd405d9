"""A rotation changes every ciphertext and no value, continues wherever it was interrupted, and never needs a third key."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from voiceassist_db import ClinicalNote, Database, Patient
from voiceassist_db.errors import KeyStoreConflictError, RotationError, WrongKeyError
from voiceassist_db.keyring import KeyringSource, register
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Pace, Progress, rotate
from voiceassist_db.status import read_status

PATIENTS = [
    Patient(patient_id=f"PT-{n:04d}", ssn=f"9{n:08d}", name=f"Zoë {n}", address={"n": n} if n % 3 else None)
    for n in range(2500)
]


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with more rows than one batch."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
        tx.clinical_notes.add_many(
            ClinicalNote(patient=PATIENTS[0].id, note=f"{n}\r\n" + "é" * 20_000) for n in range(3)
        )
    return database


def everything(database: Database) -> tuple[list[Patient], list[ClinicalNote]]:
    """Read every record."""
    with database.transaction() as tx:
        return tx.patients.page(limit=10_000), tx.clinical_notes.page(limit=10_000)


def versions(engine: Engine) -> dict[str, dict[int, int]]:
    """Return rows per key version and table."""
    with engine.connect() as connection:
        return read_status(connection).tables


def begin(provider: VaultKeyProvider) -> KeySet:
    """Put a new key into the store, as a rotation's first step does."""
    old = provider.fetch()
    provider.replace(
        old, replace(old, version=2, key=Key.generate(), previous_version=old.version, previous_key=old.key)
    )
    return provider.fetch()


def test_every_ciphertext_changes_and_no_value_does(filled: Database, provider: VaultKeyProvider) -> None:
    """All records read back equal, dates of change included; all rows are under the new key, and none opens with the old."""
    select = text(
        "SELECT id, ssn_encrypted, name_encrypted, ssn_index, created_at, updated_at FROM patient_data ORDER BY id"
    )
    before = everything(filled)
    with filled.engine.connect() as connection:
        stored = connection.execute(select).all()
    old_key = provider.fetch().key
    report = rotate(filled.engine, filled.keys)
    assert (report.from_version, report.to_version, report.rows) == (1, 2, 2503)
    assert report.done
    assert before == everything(filled)
    assert versions(filled.engine) == {"patient_data": {2: 2500}, "clinical_notes": {2: 3}}
    with filled.engine.connect() as connection:
        after = connection.execute(select).all()
        for one, other in zip(stored, after, strict=True):
            assert one.ssn_encrypted != other.ssn_encrypted
            assert one[3:] == other[3:]
        key = old_key.derive("patient_data.ssn").expose().decode()
        with pytest.raises(Exception, match="39000|Wrong key"):
            connection.execute(
                text("SELECT pgcrypto.pgp_sym_decrypt(ssn_encrypted, :key) FROM patient_data"), {"key": key}
            )


@pytest.mark.parametrize("died", ["after the store", "after the registry", "between the rows", "while verifying"])
def test_an_interrupted_rotation_is_continued(
    filled: Database, provider: VaultKeyProvider, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a run died, the next one uses the same two keys, finishes, and leaves one rotation in the journal."""
    before = everything(filled)
    if died == "between the rows":

        def die(now: Progress) -> None:
            if now.rows >= 500:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotate(filled.engine, filled.keys, pace=Pace(max_rows_per_second=3000), on_progress=die)
        assert 0 < versions(filled.engine)["patient_data"][2] < 2500
        assert before == everything(filled)
    elif died == "while verifying":

        def die_at_once(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("voiceassist_db.rotation.work.Work.prove", die_at_once)
        with pytest.raises(KeyboardInterrupt):
            rotate(filled.engine, filled.keys)
        monkeypatch.undo()
    else:
        keys = begin(provider)
        if died == "after the registry":
            with filled.engine.begin() as connection:
                register(connection, keys)
    begun = provider.fetch()
    report = rotate(filled.engine, KeyringSource(provider))
    assert (report.from_version, report.to_version, report.done) == (1, 2, True)
    assert begun == provider.fetch()
    assert before == everything(filled)
    with filled.engine.connect() as connection:
        runs = read_status(connection).rotations
        assert [(run.state, run.from_version, run.to_version) for run in runs] == [("finished", 1, 2)]


def test_a_second_rotation_waits_for_the_first_key_to_retire(filled: Database, provider: VaultKeyProvider) -> None:
    """A third key would push out one that backups still need: it is refused, and nothing changes."""
    rotate(filled.engine, filled.keys)
    keys, before = provider.fetch(), versions(filled.engine)
    with pytest.raises(RotationError, match="retire it first"):
        rotate(filled.engine, filled.keys)
    assert keys == provider.fetch()
    assert before == versions(filled.engine)


def test_two_that_begin_at_once_make_one_key(filled: Database, provider: VaultKeyProvider) -> None:
    """Check-and-set lets one of two runs put its key into the store; the other is told, and has changed nothing."""
    stored = provider.fetch()
    begin(provider)
    late = replace(stored, version=2, key=Key.generate(), previous_version=1, previous_key=stored.key)
    with pytest.raises(KeyStoreConflictError):
        provider.replace(stored, late)
    assert rotate(filled.engine, filled.keys).done


def test_a_wrong_key_is_refused_before_the_first_row(filled: Database, provider: VaultKeyProvider) -> None:
    """With another key in the store than the rows are under, the run ends before it touches the store or a row."""
    wrong = replace(provider.fetch(), key=Key.generate())
    provider.replace(provider.fetch(), wrong)
    with pytest.raises(WrongKeyError):
        rotate(filled.engine, KeyringSource(provider))
    assert provider.fetch().version == 1
    assert versions(filled.engine)["patient_data"] == {1: 2500}


def test_a_damaged_row_is_quarantined_and_not_touched(filled: Database) -> None:
    """An unreadable value is never overwritten: its row is put down, all others are done, and once mended it is too."""
    damage = text(
        "UPDATE patient_data SET ssn_encrypted = set_byte(ssn_encrypted, 40, get_byte(ssn_encrypted, 40) # 1) "
        "WHERE patient_id = 'PT-1500' RETURNING id, ssn_encrypted"
    )
    stored = text("SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-1500' AND key_version = 1")
    with filled.engine.begin() as connection:
        damaged = connection.execute(damage).one()
    report = rotate(filled.engine, filled.keys)
    assert (report.rows, report.quarantined, report.remaining, report.verified) == (2502, 1, 1, True)
    assert report.done_but_quarantined
    with filled.engine.begin() as connection:
        failures = connection.execute(text("SELECT table_name, row_id, sqlstate FROM key_rotation_failures")).all()
        assert [("patient_data", str(damaged.id), "39000")] == [tuple(each) for each in failures]
        assert damaged.ssn_encrypted == connection.execute(stored).scalar_one()
        connection.execute(
            text("UPDATE patient_data SET ssn_encrypted = NULL, ssn_index = NULL WHERE patient_id = 'PT-1500'")
        )
    again = rotate(filled.engine, filled.keys)
    assert (again.rows, again.quarantined, again.done) == (1, 0, True)
    with filled.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM key_rotation_failures")).scalar_one() == 0
