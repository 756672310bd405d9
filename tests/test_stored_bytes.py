"""What is in the table and its indexes: ciphertext in our format, and nothing of a patient."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import hvac
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests.conftest import VaultServer, in_memory
from voiceassist_db import ClinicalNote, Database, Patient, create_engine
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.errors import BindingError, ConstraintError, DecryptionError
from voiceassist_db.execution import execute
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import Key, Scheme
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.schema import allow_direct_format, migrate
from voiceassist_db.verification import verify

PATIENTS = [
    Patient(
        patient_id=f"PT-{n:03d}",
        ssn=f"987-65-{n:04d}",
        mrn=f"MRN-QUUX-{n}",
        name=f"Zoë Quux{n}",
        date_of_birth=date(1966, 6, 1 + n),
        address={"city": f"Quuxville {n}"},
    )
    for n in range(20)
]


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with patients and notes."""
    with database.transaction() as tx:
        tx.patients.add_many(PATIENTS[:10])
        for patient in PATIENTS[10:]:
            tx.patients.add(patient)
        tx.clinical_notes.add(ClinicalNote(patient=PATIENTS[0].id, note="Quux note", metadata={"by": "Dr. Quux"}))
        tx.patients.update("PT-011", name="Zoë Quux-New")
    return database


def test_no_plaintext_is_in_any_file_of_the_server(new_provider: Callable[..., VaultKeyProvider]) -> None:
    """Heap, TOAST, indexes and write-ahead log, read as raw files, hold no value in any of its usual spellings."""
    with in_memory():
        temporary = tempfile.TemporaryDirectory(prefix="voiceassist-test-")
    with temporary as parent:
        Path(parent).chmod(0o711)  # PostgreSQL's own user must get through
        directory = Path(parent) / "server"
        with EmbeddedPostgres(directory) as server:
            engine = create_engine(server.url())
            migrate(engine)
            with engine.begin() as connection:
                initialise_keys(provider := new_provider(), connection)
            with Database(engine, provider).transaction() as tx:
                tx.patients.add_many(PATIENTS)
                tx.clinical_notes.add(ClinicalNote(patient=PATIENTS[0].id, note="Quux note " * 1000))
                tx.patients.update("PT-011", name="Zoë Quux-New")
                assert tx.patients.find_by_name("Zoë Quux5") == [PATIENTS[5]]
            engine.dispose()
        files = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    found_in = {file.parent.name for file, content in files.items() if b"PT-011" in content}
    assert {"pg_wal"} < found_in, (
        "what is not encrypted must be found in the log and in the heap, or the scan sees nothing"
    )
    needles = [b"Quux", b"quux", b"987-65", b"98765", b"1966-06", b"Zo\xc3\xab", provider.fetch().key.expose()]
    assert [(file.name, needle) for file, content in files.items() for needle in needles if needle in content] == []


def test_every_value_has_our_header(filled: Database) -> None:
    """Each encrypted column of each row begins with our six bytes and has an integrity packet."""
    with filled.engine.connect() as connection:
        for table, columns in {
            "patient_data": ["ssn", "mrn", "name", "date_of_birth", "address"],
            "clinical_notes": ["note", "metadata"],
        }.items():
            for column in columns:
                values = connection.execute(text(f"SELECT {column}_encrypted FROM {table}")).scalars().all()
                assert values
                assert {(each[:6].hex(), each[14]) for each in values} == {("c30c04090108", 0xD2)}


def test_a_value_moved_to_another_row_is_refused(filled: Database) -> None:
    """Somebody who can write to the table cannot give one patient another's value unnoticed."""
    with filled.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patient_data SET ssn_encrypted = (SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-001') "
                "WHERE patient_id = 'PT-002'"
            )
        )
    with pytest.raises(BindingError, match=r"patient_data\.ssn") as caught, filled.transaction() as tx:
        tx.patients.get("PT-002")
    assert "987-65" not in str(caught.value)
    with filled.transaction() as tx:
        assert tx.patients.get("PT-002", fields=["name"]).name == PATIENTS[2].name
        assert tx.patients.get("PT-001") == PATIENTS[1]


def test_a_value_moved_to_another_column_does_not_open(filled: Database) -> None:
    """Each column has its own key, so a value in the wrong one is as good as encrypted by a stranger."""
    with filled.engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET name_encrypted = mrn_encrypted WHERE patient_id = 'PT-002'"))
    with pytest.raises(DecryptionError), filled.transaction() as tx:
        tx.patients.get("PT-002")


def test_a_flipped_byte_is_refused(filled: Database) -> None:
    """Damage is an error, never a wrong value."""
    with filled.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE patient_data SET name_encrypted = set_byte(name_encrypted, length(name_encrypted) - 1, "
                "get_byte(name_encrypted, length(name_encrypted) - 1) # 1) WHERE patient_id = 'PT-002'"
            )
        )
    with pytest.raises(DecryptionError, match="voiceassist-db verify"), filled.transaction() as tx:
        tx.patients.get("PT-002")


def test_plaintext_cannot_be_stored(filled: Database) -> None:
    """The table itself refuses a plaintext in an encrypted column, and the error does not repeat it."""
    with (
        pytest.raises(ConstraintError, match="patient_data_ssn_encrypted_format") as caught,
        filled.transaction() as tx,
    ):
        statement = text("UPDATE patient_data SET ssn_encrypted = :value")
        assert isinstance(tx.session, Session)
        execute(tx.session.connection(), statement, {"value": b"987-65-4321 quux"}, table="patient_data")
    assert "quux" not in str(caught.value)


GUIDE = """
INSERT INTO patient_data (id, patient_id, ssn_encrypted, mrn_encrypted, date_of_birth_encrypted, key_version)
VALUES (gen_random_uuid(), 'PT-001', pgp_sym_encrypt('123-45-6789', :key), pgp_sym_encrypt('MRN-12345', :key),
        pgp_sym_encrypt('1980-01-02', :key), 1)
"""
"""The guide's own statement, with pgcrypto's default options, and what the README says must be added to it."""


@pytest.fixture
def guide(
    engine: Engine, vault: VaultServer, vault_path: str, new_provider: Callable[..., VaultKeyProvider]
) -> Database:
    """A database that follows the guide: `vault kv put … key=…`, and rows by a bare `pgp_sym_encrypt(value, key)`."""
    key = Key.generate().expose().decode()
    mount, _, path = vault_path.partition("/")
    client = hvac.Client(vault.address, vault.root_token)
    client.secrets.kv.v2.create_or_update_secret(path, {"key": key, "redis_password": "kept"}, mount_point=mount)
    provider = new_provider()
    with engine.begin() as connection:
        assert initialise_keys(provider, connection, scheme=Scheme.DIRECT).created == ("index_key",)
        allow_direct_format(connection)
        connection.execute(text("SET LOCAL search_path = public, pgcrypto"))
        connection.execute(text(GUIDE), {"key": key})
    stored = client.secrets.kv.v2.read_secret_version(path, mount_point=mount, raise_on_deleted_version=True)
    assert stored["data"]["data"]["key"] == key
    assert stored["data"]["data"]["redis_password"] == "kept"
    return Database(engine, provider)


def test_the_guides_own_rows_are_read_written_and_rotated(guide: Database) -> None:
    """Under scheme `direct` they read back, are changed beside new ones, and a rotation turns them all into `bound`."""
    with guide.transaction() as tx:
        read = tx.patients.get("PT-001")
        assert (read.ssn, read.mrn, read.date_of_birth) == ("123-45-6789", "MRN-12345", date(1980, 1, 2))
        tx.patients.update("PT-001", name="José Núñez", mrn="MRN-2")
        tx.patients.add(Patient(patient_id="PT-002", name="Zoë"))
    with guide.engine.connect() as connection:
        stored = connection.execute(
            text("SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-001'")
        ).scalar_one()
        assert stored[:6].hex() == "c30d04070302", "the guide's default options: AES-128 with iterated SHA-1"
    assert [each.failed for each in verify(guide.engine, guide.keys)] == [0, 0]
    report = rotate(guide.engine, guide.keys)
    assert (report.rows, report.done) == (2, True)
    with guide.transaction() as tx:
        after = tx.patients.get("PT-001")
        assert (after.ssn, after.name, after.mrn) == ("123-45-6789", "José Núñez", "MRN-2")
        assert tx.patients.find_by_mrn("MRN-2") == after
    with guide.engine.connect() as connection:
        stored = connection.execute(
            text("SELECT ssn_encrypted FROM patient_data WHERE patient_id = 'PT-001'")
        ).scalar_one()
        assert stored[:6].hex() == "c30c04090108"
