"""Whatever happened to a stored value, verification finds it: that value, of that row, and no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text

from tests.conftest import throwaway_server
from voiceassist_db import ClinicalNote, Database, Patient, create_engine
from voiceassist_db import verification as module
from voiceassist_db.errors import KeyNotRegisteredError, KeyStoreUnavailableError, MissingKeyError
from voiceassist_db.examination import UNINDEXED
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import Key, KeySet, Scheme
from voiceassist_db.pgcrypto.codec import prefix
from voiceassist_db.pgcrypto.expressions import OPTIONS
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.rotation import rotate, rotate_index_key
from voiceassist_db.schema import allow_direct_format, migrate
from voiceassist_db.verification import KEPT_FAILURES, MISSED, Failure, TableReport, verify

PATIENTS: Final = 8
FIELDS: Final = 5

DAMAGED: Final = "does not open: damaged, or under another key"
MOVED: Final = "was encrypted for another row or column"


def patients(count: int) -> list[Patient]:
    """Return patients who have every field, each value of each unlike any other's."""
    return [
        Patient(
            patient_id=f"PT-{number:03d}",
            ssn=f"{100 + number % 800:03d}-{number // 800 % 100:02d}-{6000 + number:04d}",
            mrn=f"MRN-{number:06d}",
            name=f"Zoë Nº {number}",
            date_of_birth=date(1950, 1, 1).replace(year=1950 + number % 60),
            address={"street": f"{number} Secret Street"},
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Ward:
    """A database with patients, and all that it takes to do harm to their rows in SQL."""

    database: Database
    keys: KeySet
    rows: tuple[UUID, ...]

    def verify(self) -> dict[str, TableReport]:
        """Verify as another process would, and return the reports by table."""
        return {each.table: each for each in verify(self.database.engine, KeyringSource(self.database.keys.provider))}

    def patients(self) -> TableReport:
        """Verify, and return the report on the patients; the notes must be well."""
        reports = self.verify()
        assert reports["clinical_notes"].failed == 0
        return reports["patient_data"]

    def execute(self, statement: str, **values: Any) -> None:
        """Change rows past the package and, where need be, past the checks, which an attacker may have dropped."""
        with self.database.engine.begin() as connection:
            drop_checks(connection)
            connection.execute(text(statement), values)

    def put(self, row: UUID, field: str, ciphertext: bytes | None) -> None:
        """Replace one ciphertext."""
        self.execute(f"UPDATE patient_data SET {field}_encrypted = :value WHERE id = :id", value=ciphertext, id=row)

    def stored(self, row: UUID, field: str) -> bytes:
        """Return one ciphertext."""
        with self.database.engine.connect() as connection:
            query = text(f"SELECT {field}_encrypted FROM patient_data WHERE id = :id")
            return bytes(connection.execute(query, {"id": row}).scalar_one())

    def encrypt(self, field: str, plaintext: str, *, key: Key | None = None, options: str = OPTIONS) -> bytes:
        """Encrypt in SQL with a column's own key, as somebody who has it could."""
        used = (key or self.keys.key).derive(f"patient_data.{field}").expose().decode()
        statement = text("SELECT pgcrypto.pgp_sym_encrypt(:plaintext, :key, :options)")
        with self.database.engine.connect() as connection:
            values = {"plaintext": plaintext, "key": used, "options": options}
            return bytes(connection.execute(statement, values).scalar_one())


def drop_checks(connection: Connection) -> None:
    """Drop the format checks."""
    for column in ("ssn", "mrn", "name", "date_of_birth", "address"):
        name = f"patient_data_{column}_encrypted_format"
        connection.execute(text(f"ALTER TABLE patient_data DROP CONSTRAINT IF EXISTS {name}"))


def fill(database: Database, count: int = PATIENTS) -> Ward:
    """Fill a database with patients."""
    made = patients(count)
    with database.transaction() as tx:
        tx.patients.add_many(made)
        tx.clinical_notes.add(ClinicalNote(patient=made[0].id, note="Secret Note", metadata={"by": "Dr Secret"}))
    return Ward(database, database.keys.provider.fetch(), tuple(each.id for each in made))


@pytest.fixture
def ward(database: Database) -> Ward:
    """A few patients and a note."""
    return fill(database)


def flipped(value: bytes, position: int, bit: int = 1) -> bytes:
    """Return a value with one bit changed."""
    changed = bytearray(value)
    changed[position] ^= bit
    return bytes(changed)


# --- all is well -----------------------------------------------------------------------------------------------------


def test_undamaged_data_is_counted_to_the_value(ward: Ward) -> None:
    """Rows and values are exact, NULLs are not values, and nothing fails."""
    with ward.database.transaction() as tx:
        tx.patients.add(Patient(patient_id="BARE"))
        tx.patients.add(Patient(patient_id="EMPTY", address={}))
    assert ward.verify() == {
        "clinical_notes": TableReport("clinical_notes", rows=1, values=2),
        "patient_data": TableReport("patient_data", rows=PATIENTS + 2, values=PATIENTS * FIELDS + 1),
    }


def test_empty_tables_are_well(database: Database) -> None:
    """A database without a row is verified, and says zero."""
    reports = verify(database.engine, database.keys)
    assert reports == [TableReport("clinical_notes"), TableReport("patient_data")]


def test_rows_of_both_versions_are_verified(ward: Ward) -> None:
    """While a rotation is in progress, each row is opened by the key of its own version."""
    keys = KeyringSource(ward.database.keys.provider)
    rotate(ward.database.engine, keys)
    before = ward.keys.key
    bound = [
        ward.encrypt("name", prefix("patient_data.name", str(row)) + f"Zoë Nº {number}", key=before)
        for number, row in enumerate(ward.rows[:2])
    ]
    for row, value in zip(ward.rows, bound, strict=False):
        statement = (
            "UPDATE patient_data SET key_version = 1, name_encrypted = :value, ssn_encrypted = NULL, mrn_encrypted = NULL,"
            " date_of_birth_encrypted = NULL, address_encrypted = NULL, ssn_index = NULL, mrn_index = NULL WHERE id = :id"
        )
        ward.execute(statement, value=value, id=row)
    report = ward.patients()
    assert (report.rows, report.failed, report.unindexed) == (PATIENTS, 0, 0)
    assert report.values == (PATIENTS - 2) * FIELDS + 2


# --- one value each --------------------------------------------------------------------------------------------------


Harm = Callable[[Ward, UUID, UUID], None]


def _moved_from_another_row(ward: Ward, row: UUID, other: UUID) -> None:
    ward.put(row, "ssn", ward.stored(other, "ssn"))


def _moved_from_another_column(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "name", ward.stored(row, "mrn"))


def _bound_to_another_column(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "name", ward.encrypt("name", prefix("patient_data.mrn", str(row)) + "MRN-1"))


def _unbound(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "name", ward.encrypt("name", "Zoë"))


def _bit_flipped(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "address", flipped(ward.stored(row, "address"), -1))


def _cut(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "address", ward.stored(row, "address")[:-1])


def _made_empty(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "address", b"")


def _plaintext(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "address", b'{"street": "Secret Street"}')


def _another_key(ward: Ward, row: UUID, _other: UUID) -> None:
    bound = prefix("patient_data.name", str(row)) + "Zoë"
    ward.put(row, "name", ward.encrypt("name", bound, key=Key.generate()))


def _not_a_date(ward: Ward, row: UUID, _other: UUID) -> None:
    bound = prefix("patient_data.date_of_birth", str(row)) + "a secret day"
    ward.put(row, "date_of_birth", ward.encrypt("date_of_birth", bound))


def _not_json(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "address", ward.encrypt("address", prefix("patient_data.address", str(row)) + "{secret"))


def _default_options(ward: Ward, row: UUID, _other: UUID) -> None:
    bound = prefix("patient_data.date_of_birth", str(row)) + "1980-02-29"
    ward.put(row, "date_of_birth", ward.encrypt("date_of_birth", bound, options=""))


def _not_text(ward: Ward, row: UUID, _other: UUID) -> None:
    key = ward.keys.key.derive("patient_data.name").expose().decode()
    statement = (
        "UPDATE patient_data SET name_encrypted = pgcrypto.pgp_sym_encrypt_bytea('\\xff'::bytea, :key, :options) "
        "WHERE id = :id"
    )
    ward.execute(statement, key=key, options=OPTIONS, id=row)


def _token_of_another(ward: Ward, row: UUID, other: UUID) -> None:
    take = "UPDATE patient_data SET ssn_index = (SELECT ssn_index FROM patient_data WHERE id = :other) WHERE id = :id"
    ward.execute(take, id=row, other=other)


def _token_without_value(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "name", None)


def _cannot_be_searched(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.put(row, "ssn", ward.encrypt("ssn", prefix("patient_data.ssn", str(row)) + "secret"))


def _unknown_version(ward: Ward, row: UUID, _other: UUID) -> None:
    ward.execute("UPDATE patient_data SET key_version = 9 WHERE id = :id", id=row)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("harm", "field", "problem"),
    [
        (_moved_from_another_row, "ssn", MOVED),
        (_moved_from_another_column, "name", DAMAGED),
        (_bound_to_another_column, "name", MOVED),
        (_unbound, "name", MOVED),
        (_bit_flipped, "address", DAMAGED),
        (_cut, "address", DAMAGED),
        (_made_empty, "address", DAMAGED),
        (_plaintext, "address", DAMAGED),
        (_another_key, "name", DAMAGED),
        (_not_a_date, "date_of_birth", "is not of type date"),
        (_not_json, "address", "is not of type json"),
        (_default_options, "date_of_birth", "is not in the format of scheme bound"),
        (_not_text, "name", DAMAGED),
        (_token_of_another, "ssn", "has the blind index of another value"),
        (_token_without_value, "name", "has a blind index, but no value"),
        (_cannot_be_searched, "ssn", "has a blind index, but a value that cannot be searched"),
        (_unknown_version, None, "is under key version 9, which the key store does not hold"),
    ],
)
def test_one_bad_value_is_found_and_nothing_else(ward: Ward, harm: Harm, field: str | None, problem: str) -> None:
    """Each kind of harm is one failure, at its row and field; all other values are read and counted."""
    row, other = ward.rows[3], ward.rows[5]
    harm(ward, row, other)
    report = ward.patients()
    assert report.failures == [Failure(str(row), field, problem)]
    assert (report.failed, report.rows, report.unindexed) == (1, PATIENTS, 0)
    unread = {"has a blind index, but no value": 1, None: FIELDS}.get(problem if field else None, 0)
    assert report.values == PATIENTS * FIELDS - unread
    assert "ecret" not in repr(report)


def test_a_value_without_its_token_fails(ward: Ward) -> None:
    """Searches miss it, and a second patient may get the same record number: each such value is named."""
    ward.execute("UPDATE patient_data SET ssn_index = NULL, mrn_index = NULL WHERE id = :id", id=ward.rows[0])
    ward.execute("UPDATE patient_data SET name_index = NULL WHERE id = :id", id=ward.rows[1])
    with ward.database.transaction() as tx:
        tx.patients.add(Patient(patient_id="SECOND", mrn="MRN-000000"))
    report = ward.patients()
    expected = {(ward.rows[0], "ssn"), (ward.rows[0], "mrn"), (ward.rows[1], "name")}
    assert {(each.row_id, each.field, each.problem) for each in report.failures} == {
        (str(row), field, UNINDEXED) for row, field in expected
    }
    assert (report.failed, report.unindexed) == (3, 0)


def test_a_token_of_another_length_or_key_fails(ward: Ward) -> None:
    """A token that is cut, lengthened, empty, or of an index key that was retired, is no token of its value."""
    whole = "SELECT mrn_index FROM patient_data WHERE id = :id"
    with ward.database.engine.connect() as connection:
        kept = bytes(connection.execute(text(whole), {"id": ward.rows[4]}).scalar_one())
    rotate_index_key(ward.database.engine, ward.database.keys)
    changes = {0: "substring(mrn_index from 1 for 8)", 1: "mrn_index || '\\x00'", 2: "''"}
    for number, change in changes.items():
        ward.execute(f"UPDATE patient_data SET mrn_index = {change} WHERE id = :id", id=ward.rows[number])
    ward.execute("UPDATE patient_data SET mrn_index = :kept WHERE id = :id", kept=kept, id=ward.rows[4])
    report = ward.patients()
    assert {(each.row_id, each.field, each.problem) for each in report.failures} == {
        (str(ward.rows[number]), "mrn", "has the blind index of another value") for number in (0, 1, 2, 4)
    }


def test_rows_that_an_index_lacks_are_missed_by_name(new_provider: Callable[..., VaultKeyProvider]) -> None:
    """A damaged index of the primary key, made as a superuser can: rows that it lacks are not walked, and counted."""
    with throwaway_server({"enable_seqscan": "off"}) as server:
        engine = create_engine(server.url())
        migrate(engine)
        provider = new_provider()
        with engine.begin() as connection:
            initialise_keys(provider, connection)
        database = Database(engine, provider)
        ready = "UPDATE pg_index SET indisready = {} WHERE indrelid = 'patient_data'::regclass AND indisprimary"
        with database.transaction() as tx:
            tx.patients.add_many(patients(PATIENTS))
        with engine.begin() as connection:
            connection.execute(text(ready.format("false")))
        with database.transaction() as tx:
            tx.patients.add_many(replace(each, ssn=None, mrn=None) for each in patients(PATIENTS + 2)[PATIENTS:])
        with engine.begin() as connection:
            connection.execute(text(ready.format("true")))
        report = verify(engine, database.keys)[1]
        assert report.failures == [Failure("", None, MISSED.format(missed=2))]
        with engine.begin() as connection:
            connection.execute(text("REINDEX TABLE patient_data"))
        assert verify(engine, database.keys)[1].failed == 0
        engine.dispose()


def test_a_bare_packet_is_never_taken_for_a_value(ward: Ward) -> None:
    """Stripped of its integrity packet, which pgcrypto would accept, it fails in one way or the other."""
    row = ward.rows[2]
    whole = ward.stored(row, "name")
    assert whole[14] == 0xD2
    ward.put(row, "name", whole[:14] + b"\xc9" + whole[15:])
    report = ward.patients()
    assert [(each.row_id, each.field) for each in report.failures] == [(str(row), "name")]


# --- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_flip_of_any_bit_is_found(database: Database) -> None:
    """One row for each bit of a packet's header and its ends, and for a bit of every other byte: none changes a value.

    Of a length that is too large, pgcrypto does not mind: it reads to the end, and the value is whole.
    """
    ward = fill(database, 1)
    whole = ward.stored(ward.rows[0], "name")
    bits = [(byte, 1 << bit) for byte in (*range(16), len(whole) - 1) for bit in range(8)]
    bits += [(byte, 1 << byte % 8) for byte in range(16, len(whole) - 1)]
    bare = [replace(each, ssn=None, mrn=None, date_of_birth=None, address=None) for each in patients(len(bits) + 1)]
    more = [replace(each, name="Zoë Nº 0") for each in bare[1:]]
    with database.transaction() as tx:
        tx.patients.add_many(more)
    flip = (
        "UPDATE patient_data SET name_encrypted = set_byte(name_encrypted, :at, get_byte(name_encrypted, :at) # :bit) "
        "WHERE id = :id"
    )
    with database.engine.begin() as connection:
        drop_checks(connection)
        harm = [{"id": patient.id, "at": at, "bit": bit} for patient, (at, bit) in zip(more, bits, strict=True)]
        connection.execute(text(flip), harm)
    report = ward.patients()
    found = {each.row_id for each in report.failures}
    passed = [(patient, at) for patient, (at, _) in zip(more, bits, strict=True) if str(patient.id) not in found]
    assert {at for _, at in passed} <= {15}  # the packet's length
    assert {each.field for each in report.failures} == {"name"}
    assert report.failed == len(found) == len(bits) - len(passed)
    assert (report.rows, report.values) == (len(bits) + 1, len(bits) + FIELDS)
    with database.transaction() as tx:
        assert {tx.patients.get(patient.patient_id).name for patient, _ in passed} <= {"Zoë Nº 0"}


def test_several_poison_values_of_a_page_are_each_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scattered over pages, two in one row, first and last row included: exactly those, and all others counted."""
    monkeypatch.setattr(module, "PAGE_ROWS", 100)
    ward = fill(database, 250)
    poison = [(0, "ssn"), (1, "address"), (42, "name"), (42, "mrn"), (99, "name"), (100, "ssn"), (249, "date_of_birth")]
    for number, field in poison:
        row = ward.rows[number]
        ward.put(row, field, flipped(ward.stored(row, field), 40))
    moved = ward.rows[43]
    ward.put(moved, "address", ward.stored(ward.rows[44], "address"))
    report = ward.patients()
    expected = {(str(ward.rows[number]), field, DAMAGED) for number, field in poison}
    expected |= {(str(moved), "address", MOVED)}
    assert {(each.row_id, each.field, each.problem) for each in report.failures} == expected
    assert (report.failed, report.rows, report.values) == (len(poison) + 1, 250, 250 * FIELDS)


def test_more_failures_than_can_be_kept_are_all_counted(database: Database) -> None:
    """A restored backup of another column's values is counted in full, while the report stays small."""
    count = KEPT_FAILURES + 100
    ward = fill(database, 1)
    with database.transaction() as tx:
        tx.patients.add_many(replace(each, mrn=None) for each in patients(count)[1:])
    ward.execute("UPDATE patient_data SET name_encrypted = :value", value=ward.stored(ward.rows[0], "name"))
    report = ward.patients()
    assert (report.failed, len(report.failures), report.rows) == (count - 1, KEPT_FAILURES, count)


def test_all_rows_under_a_lost_version_are_each_reported(ward: Ward) -> None:
    """Where the key store lost a version, its rows are named one by one, and the key store is not an error."""
    ward.execute("UPDATE patient_data SET key_version = 7")
    report = ward.patients()
    assert {each.row_id for each in report.failures} == {str(row) for row in ward.rows}
    assert {each.field for each in report.failures} == {None}
    assert (report.failed, report.values) == (PATIENTS, 0)


# --- beside others -----------------------------------------------------------------------------------------------------


def test_rows_that_come_and_go_meanwhile_do_not_matter(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inserts, deletes and a whole rotation between its pages: verification ends, and accuses nobody."""
    monkeypatch.setattr(module, "PAGE_ROWS", 10)
    fill(database, 60)
    extra = iter(patients(200)[100:])
    seen: list[tuple[int, int | None]] = []

    def meanwhile(done: int, total: int | None) -> None:
        seen.append((done, total))
        if len(seen) > 12:
            return
        with database.transaction() as tx:
            tx.patients.add(next(extra))
            tx.patients.delete(tx.patients.page(limit=70)[-2].patient_id)
        if len(seen) == 3:
            rotate(database.engine, KeyringSource(database.keys.provider))

    reports = verify(database.engine, KeyringSource(database.keys.provider), on_progress=meanwhile)
    assert [each.failed for each in reports] == [0, 0]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(total is not None and done <= total for done, total in seen)


def test_no_transaction_stays_open_between_pages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long verification never holds back vacuum: after each page, its session is idle outside a transaction."""
    monkeypatch.setattr(module, "PAGE_ROWS", 5)
    ward = fill(database, 20)
    ward.put(ward.rows[7], "name", b"damaged")
    query = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL")
    open_transactions: list[int] = []

    def count(_done: int, _total: int | None) -> None:
        with database.engine.connect() as connection:
            open_transactions.append(int(connection.execute(query).scalar_one()) - 1)

    verify(database.engine, database.keys, on_progress=count)
    assert open_transactions == [0] * 5


def test_nothing_is_changed(ward: Ward) -> None:
    """Verification reads: the same row versions are there afterwards, also where a value is damaged."""
    ward.put(ward.rows[0], "name", b"damaged")
    query = text("SELECT ctid::text, xmin::text, xmax::text, md5(p::text) FROM patient_data p ORDER BY 1")
    with ward.database.engine.connect() as connection:
        before = connection.execute(query).all()
    ward.verify()
    with ward.database.engine.connect() as connection:
        assert connection.execute(query).all() == before


def test_a_verification_in_a_thread_needs_nothing_of_its_caller(ward: Ward) -> None:
    """Two at once on one database and one keyring give the same answer."""
    results: list[list[TableReport]] = []
    threads = [
        threading.Thread(target=lambda: results.append(verify(ward.database.engine, ward.database.keys)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]


# --- other tables, other keys ------------------------------------------------------------------------------------------


def test_a_teams_table_with_an_awkward_key_is_verified(ward: Ward) -> None:
    """Text with the separators in it, a date, mixed case and another schema: rows are named as they are bound."""
    engine = ward.database.engine
    create = """
        CREATE SCHEMA team;
        CREATE TABLE team."Visits" (
            "Ward" text, day date, "Reason_encrypted" bytea, key_version integer NOT NULL, PRIMARY KEY ("Ward", day));
        COMMENT ON COLUMN team."Visits"."Reason_encrypted" IS 'encrypted visits.reason as text';
    """
    key = ward.keys.key.derive("visits.reason").expose().decode()
    rows = [("a/b:c%", date(2026, 1, 2)), ("", date(2026, 1, 2)), ("Zoë's", date(1, 1, 1))]
    names = ["a%2Fb%3Ac%25/2026-01-02", "/2026-01-02", "Zoë's/0001-01-01"]
    insert = text('INSERT INTO team."Visits" VALUES (:ward, :day, pgcrypto.pgp_sym_encrypt(:value, :key, :options), 1)')
    with engine.begin() as connection:
        connection.execute(text(create))
        for (place, day), name in zip(rows, names, strict=True):
            value = prefix("visits.reason", name) + "secret reason"
            connection.execute(insert, {"ward": place, "day": day, "value": value, "key": key, "options": OPTIONS})
    assert ward.verify()["team.Visits"] == TableReport("team.Visits", rows=3, values=3)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL DateStyle = 'German'"))
        connection.execute(text("""UPDATE team."Visits" SET day = '2026-01-03' WHERE "Ward" = 'a/b:c%'"""))
    assert ward.verify()["team.Visits"].failures == [Failure("a%2Fb%3Ac%25/2026-01-03", "Reason", MOVED)]


def test_adopted_rows_are_verified_by_their_own_scheme(
    engine: Engine, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """Under scheme direct, any pgcrypto options are right and no binding is asked for; types and damage still count."""
    provider = new_provider()
    provider.create(KeySet.generate())
    key = provider.fetch().key.expose().decode()
    insert = text(
        "INSERT INTO patient_data (id, patient_id, ssn_encrypted, date_of_birth_encrypted, key_version) "
        "VALUES (gen_random_uuid(), :name, pgcrypto.pgp_sym_encrypt('123-45-6789', :key), "
        "pgcrypto.pgp_sym_encrypt(:birth, :key), 1)"
    )
    with engine.begin() as connection:
        initialise_keys(provider, connection, scheme=Scheme.DIRECT)
        allow_direct_format(connection)
        for number, birth in enumerate(["1980-02-29", "1980-02-30", "29.2.1980"]):
            connection.execute(insert, {"name": f"PT-{number}", "key": key, "birth": birth})
    report = verify(engine, KeyringSource(provider))[1]
    assert (report.rows, report.values, report.unindexed, report.failed) == (3, 6, 3, 2)
    assert {(each.field, each.problem) for each in report.failures} == {("date_of_birth", "is not of type date")}


def test_without_the_right_keys_nothing_is_accused(
    ward: Ward, new_provider: Callable[..., VaultKeyProvider], vault_path: str
) -> None:
    """A key store that is down, foreign or lacks its index key is an error of its own, not a thousand damaged rows."""
    engine = ward.database.engine
    foreign = new_provider("/foreign")
    foreign.create(replace(KeySet.generate(), version=5))
    with pytest.raises(KeyNotRegisteredError):
        verify(engine, KeyringSource(foreign))
    incomplete = new_provider("/incomplete")
    incomplete.create(replace(ward.keys, index_key=None, revision=0))
    with pytest.raises(MissingKeyError, match="init-keys"):
        verify(engine, KeyringSource(incomplete))
    down = VaultKeyProvider("http://127.0.0.1:1", TokenLogin("none"), mount="secret", path=vault_path)
    with pytest.raises(KeyStoreUnavailableError):
        verify(engine, KeyringSource(down))
