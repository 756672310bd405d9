"""The blind-index key rotates while searches find, writers write, and what must be unique stays so."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from voiceassist_db import Database, Patient
from voiceassist_db.errors import DuplicateError, KeyStoreUnavailableError, NothingToDoError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import KeySet, Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import Progress, retire, rotate, rotate_index_key
from voiceassist_db.rotation import tokens as tokens_
from voiceassist_db.schema import allow_direct_format
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

PATIENTS = [
    Patient(patient_id=f"PT-{n:04d}", ssn=f"9{n:08d}", mrn=f"MRN-{n}" if n % 5 else None, name=f"Zoë {n % 7}")
    for n in range(1200)
]


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with more rows than a page of the rotation."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS)
    return database


def tokens(engine: Engine) -> dict[str, tuple[bytes, ...]]:
    """Return the stored tokens of every patient."""
    query = text("SELECT patient_id, ssn_index, mrn_index, name_index FROM patient_data")
    with engine.connect() as connection:
        return {row.patient_id: tuple(row)[1:] for row in connection.execute(query)}


def states(engine: Engine) -> list[str]:
    """Return the states of the registered index keys, oldest first."""
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT state FROM index_keys ORDER BY created_at")))


def assert_all_found(database: Database, patients: list[Patient] = PATIENTS) -> None:
    """Every patient is found by record number, and by the two other fields in a sample."""
    with database.transaction() as tx:
        wanted = [each.mrn for each in patients if each.mrn is not None]
        assert len(wanted) == len(tx.patients.with_mrns(wanted, fields=["mrn"]))
        for each in patients[::100]:
            assert [each.patient_id] == [one.patient_id for one in tx.patients.find_by_ssn(each.ssn or "")]
            assert each.patient_id in {one.patient_id for one in tx.patients.find_by_name(each.name or "")}


def test_every_token_is_renewed_and_the_key_retired(filled: Database, provider: VaultKeyProvider) -> None:
    """All tokens change, absent ones stay absent, no value or ciphertext does; the store and the registry know one key again."""
    before, old = tokens(filled.engine), provider.fetch().index_key
    with filled.transaction() as tx:
        values = tx.patients.page(limit=5000)
    report = rotate_index_key(filled.engine, filled.keys)
    assert (report.rows, report.remaining, report.done) == (1200, 0, True)
    after = tokens(filled.engine)
    for patient_id, stored in before.items():
        for one, other in zip(stored, after[patient_id], strict=True):
            assert (one is None) == (other is None)
            assert one is None or one != other
    stored_keys = provider.fetch()
    assert stored_keys.index_key != old
    assert stored_keys.previous_index_key is None
    assert states(filled.engine) == ["retired", "current"]
    assert_all_found(Database(filled.engine, provider))
    assert not any(each.failed or each.unindexed for each in verify(filled.engine, filled.keys))
    with filled.transaction() as tx:
        assert values == tx.patients.page(limit=5000)
    assert rotate_index_key(filled.engine, filled.keys).done
    assert states(filled.engine) == ["retired", "retired", "current"]


def test_searches_find_all_the_while(filled: Database, provider: VaultKeyProvider) -> None:
    """Whichever keys a process knew when it began, it finds every patient at every moment of the rotation."""
    old_process = Database(filled.engine, provider, ttl_s=3600)
    assert_all_found(old_process)
    seen = 0

    def look(_: Progress) -> None:
        nonlocal seen
        seen += 1
        fresh = Database(filled.engine, provider)
        assert_all_found(fresh)
        assert_all_found(old_process)
        with fresh.transaction() as tx:
            assert tx.patients.find_by_ssn("899-99-9999") == []

    assert rotate_index_key(filled.engine, filled.keys, on_progress=look).done
    assert seen >= 4
    assert_all_found(old_process)


def test_a_process_with_the_old_key_alone_still_finds(filled: Database, provider: VaultKeyProvider) -> None:
    """It knows neither key of two rotations ago: the search itself tells it, also where it would have found nothing."""
    process = Database(filled.engine, provider, ttl_s=3600)
    assert_all_found(process)
    for _ in range(2):
        assert rotate_index_key(filled.engine, filled.keys).done
    with process.transaction() as tx:
        found = tx.patients.find_by_mrn("mrn-1")
    assert found is not None
    assert found.patient_id == "PT-0001"


@pytest.mark.wide
@pytest.mark.parametrize("write", ["add", "add_many", "update"])
@pytest.mark.parametrize("keys", ["both keys", "the old key"])
def test_what_is_unique_stays_so_in_the_midst(
    filled: Database, provider: VaultKeyProvider, write: str, keys: str
) -> None:
    """A record number is refused twice, whether the row that has it was renewed already or not; nobody knows which one it is."""
    process = Database(filled.engine, provider, ttl_s=3600)
    if keys == "the old key":
        assert_all_found(process)
    tried = 0

    def attempt(now: Progress) -> None:
        nonlocal tried
        if now.phase != "renewing tokens" or now.rows > 1000:
            return
        for number in (1, 1199):  # the first page is renewed by now, the last is not
            tried += 1
            new = Patient(patient_id=f"PT-new-{now.rows}-{number}", mrn=f"MRN-{number}")
            with pytest.raises(DuplicateError, match="this mrn"), process.transaction() as tx:
                if write == "add":
                    tx.patients.add(new)
                elif write == "add_many":
                    tx.patients.add_many([new])
                else:
                    tx.patients.update("PT-0002", mrn=new.mrn)
            with process.transaction() as tx:
                tx.patients.update(f"PT-{number:04d}", mrn=f"MRN-{number}")  # its own is no duplicate

    report = rotate_index_key(filled.engine, filled.keys, on_progress=attempt)
    assert tried >= 2
    assert report.done
    assert len(PATIENTS) == len(tokens(filled.engine))
    assert not any(each.failed for each in verify(filled.engine, filled.keys))


@pytest.mark.wide
@pytest.mark.parametrize("died", ["after the store", "in the midst", "before the end"])
def test_an_interrupted_one_is_continued(
    filled: Database, provider: VaultKeyProvider, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same key, wherever it died; meanwhile everything is found, by a process that starts then, too."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = {"after the store": "register", "before the end": "retire_index_keys"}
    if died in place:
        monkeypatch.setattr(f"voiceassist_db.rotation.index_key.{place[died]}", die)
    with pytest.raises(KeyboardInterrupt):
        rotate_index_key(filled.engine, filled.keys, on_progress=die if died == "in the midst" else None)
    monkeypatch.undo()
    begun = provider.fetch()
    assert begun.previous_index_key is not None
    fresh = Database(filled.engine, provider)
    assert_all_found(fresh)
    with fresh.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-new", mrn="MRN-new"))
    assert rotate_index_key(filled.engine, filled.keys, resume_only=True).done
    assert begun.index_key == provider.fetch().index_key
    assert_all_found(fresh)


def test_it_stops_when_asked(filled: Database) -> None:
    """After the batch under way; the rest is done by the next run."""
    stop = threading.Event()
    report = rotate_index_key(filled.engine, filled.keys, stop=stop, on_progress=lambda _: stop.set())
    assert (report.rows, report.interrupted, report.done) == (500, True, False)
    assert rotate_index_key(filled.engine, filled.keys).done


def test_without_an_unfinished_one_resume_does_nothing(filled: Database, provider: VaultKeyProvider) -> None:
    """It begins no new one."""
    before = provider.fetch()
    with pytest.raises(NothingToDoError):
        rotate_index_key(filled.engine, filled.keys, resume_only=True)
    assert before == provider.fetch()


def test_resume_says_that_a_run_has_no_key_yet(filled: Database, provider: VaultKeyProvider) -> None:
    """The key store failed before it had the key. Resuming makes none, and says how to go on; that run is then finished."""

    class Unwritable:
        def fetch(self) -> KeySet:
            return provider.fetch()

        def create(self, keys: KeySet) -> None:
            raise AssertionError

        def replace(self, old: KeySet, new: KeySet) -> None:
            raise KeyStoreUnavailableError("it is away")

    before = provider.fetch()
    with pytest.raises(KeyStoreUnavailableError):
        rotate_index_key(filled.engine, KeyringSource(Unwritable()))
    with pytest.raises(
        NothingToDoError,
        match="rotation of the blind-index key from version 1 to 2 began, and its new key was never made",
    ):
        rotate_index_key(filled.engine, filled.keys, resume_only=True)
    assert before == provider.fetch()
    assert rotate_index_key(filled.engine, filled.keys).done
    with filled.engine.connect() as connection:
        assert [each.state for each in read_status(connection).rotations] == ["finished"]


def test_a_row_that_cannot_be_read_is_put_down(filled: Database) -> None:
    """It keeps its token and both keys stay, until it is mended; every other row is done."""
    damage = text(
        "UPDATE patient_data SET ssn_encrypted = set_byte(ssn_encrypted, 40, get_byte(ssn_encrypted, 40) # 1) "
        "WHERE patient_id = 'PT-0700' RETURNING id"
    )
    with filled.engine.begin() as connection:
        row = connection.execute(damage).scalar_one()
    report = rotate_index_key(filled.engine, filled.keys)
    assert (report.rows, report.quarantined, report.remaining, report.done) == (1199, 1, 1, False)
    assert report.done_but_quarantined
    with filled.engine.begin() as connection:
        put_down = connection.execute(text("SELECT row_id, sqlstate FROM key_rotation_failures")).one()
        assert (str(row), "39000") == tuple(put_down)
        connection.execute(
            text("UPDATE patient_data SET ssn_encrypted = NULL, ssn_index = NULL WHERE patient_id = 'PT-0700'")
        )
    assert rotate_index_key(filled.engine, filled.keys).done


def test_the_encryption_key_rotates_before_and_after(filled: Database) -> None:
    """Each rotation leaves the other's keys as they are."""
    assert rotate(filled.engine, filled.keys).done
    assert rotate_index_key(filled.engine, filled.keys).done
    assert_all_found(filled)
    assert not any(each.failed for each in verify(filled.engine, filled.keys))


# --- values without a token ------------------------------------------------------------------------------------------------


def failures(database: Database) -> set[tuple[str, str | None]]:
    """Return row and field of what verification finds."""
    return {(each.row_id, each.field) for report in verify(database.engine, database.keys) for each in report.failures}


def test_tokens_that_were_removed_are_made_again(filled: Database) -> None:
    """Searches find again, and verification is well; a record number that was given twice since stays a failure."""
    with filled.engine.begin() as connection:
        clear = (
            "UPDATE patient_data SET ssn_index = NULL, mrn_index = NULL, name_index = NULL WHERE patient_id < 'PT-0010'"
        )
        connection.execute(text(clear))
    twice = next(each for each in PATIENTS if each.mrn is not None)
    with filled.transaction() as tx:
        tx.patients.add(Patient(patient_id="SECOND", mrn=twice.mrn))
    report = rotate_index_key(filled.engine, filled.keys)
    assert (report.done, report.quarantined, report.remaining) == (True, 0, 0)
    with filled.transaction() as tx:
        first, second = tx.patients.get(twice.patient_id), tx.patients.get("SECOND")
        assert tx.patients.find_by_mrn(str(twice.mrn)) == second
        assert first in tx.patients.find_by_ssn(str(first.ssn))
    assert failures(filled) == {(str(first.id), "mrn")}
    with filled.transaction() as tx:
        tx.patients.delete("SECOND")
    assert rotate_index_key(filled.engine, filled.keys).done
    assert failures(filled) == set()
    assert_all_found(filled)


def test_a_value_that_is_changed_in_sql_meanwhile_gets_its_own_token(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and writing, somebody exchanges a value that has no token: the token of the older value is not written."""
    one, other = PATIENTS[0], PATIENTS[1]
    with filled.engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET name_index = NULL WHERE patient_id = 'PT-0000'"))
    renew = tokens_.TokenTable._tokens
    changed: list[object] = []

    def meanwhile(self: object, row: object, keyring: object, *, fills_unique: bool) -> list[bytes | None]:
        if not changed:
            changed.append(row)
            with filled.transaction() as tx:
                tx.patients.update("PT-0000", name="Somebody Else")
                tx.session.execute(text("UPDATE patient_data SET name_index = NULL WHERE patient_id = 'PT-0000'"))
        return renew(self, row, keyring, fills_unique=fills_unique)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens_.TokenTable, "_tokens", meanwhile)
    assert rotate_index_key(filled.engine, filled.keys).done
    assert changed
    assert failures(filled) == set()
    with filled.transaction() as tx:
        assert [each.patient_id for each in tx.patients.find_by_name("Somebody Else")] == [one.patient_id]
        assert other.patient_id in {each.patient_id for each in tx.patients.find_by_name(str(other.name))}


def test_adopted_values_are_made_searchable(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> None:
    """Values of the guide's statement: counted apart while they may be without a token, and a failure once none may."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
        insert = text(
            "INSERT INTO patient_data (id, patient_id, ssn_encrypted, mrn_encrypted, key_version) VALUES (gen_random_uuid(), :id, "
            "pgcrypto.pgp_sym_encrypt(:ssn, :key), pgcrypto.pgp_sym_encrypt(:mrn, :key), 1)"
        )
        key = provider.fetch().key.expose().decode()
        rows = [("A", "123-45-6789", "M-1"), ("B", "123-45-6780", "M-1"), ("C", "not a number", "M-2")]
        connection.execute(insert, [{"id": id_, "ssn": ssn, "mrn": mrn, "key": key} for id_, ssn, mrn in rows])
    database = Database(engine, provider)

    def counts() -> tuple[int, int]:
        report = verify(engine, database.keys)[1]
        return report.unindexed, report.failed

    assert counts() == (6, 0)
    assert rotate(engine, database.keys).done
    assert counts() == (6, 0)
    assert rotate_index_key(engine, database.keys).done
    with database.transaction() as tx:
        assert [each.patient_id for each in tx.patients.find_by_ssn("123-45-6789")] == ["A"]
        assert tx.patients.find_by_mrn("M-2") == tx.patients.get("C")
        assert tx.patients.find_by_mrn("M-1") is not None
    assert counts() == (2, 0)  # the second M-1, and what is no number
    retire(engine, database.keys, grace_days=0)
    assert counts() == (2, 0)
    assert rotate_index_key(engine, database.keys).done
    assert counts() == (0, 2)
    with database.transaction() as tx:
        tx.patients.update("C", ssn="123-45-6781")
        tx.patients.update("B", mrn="M-3")
        tx.patients.update("A", mrn="M-1")
    assert counts() == (0, 0)
