"""Somebody who can write to the tables, or swap the key store, cannot make the product use the wrong key or scheme."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.keyring.test_source import CountingProvider
from voiceassist_db import Database, Patient, Record, Repository, create_engine, record
from voiceassist_db.errors import (
    ConfigurationError,
    DuplicateError,
    KeyStoreUnavailableError,
    RotationError,
    UnknownKeyVersionError,
    WrongKeyError,
)
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.models import EncryptedRow, Kind, encrypted_column
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import rotate
from voiceassist_db.schema import allow_direct_format


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with two patients."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-00{n}", ssn=f"12345678{n}") for n in (1, 2))
    return database


def test_a_scheme_cannot_be_changed_in_the_registry(filled: Database, provider: VaultKeyProvider) -> None:
    """`direct` would take the binding off every value: the check value covers the scheme, so the edit is found at once."""
    with filled.engine.begin() as connection:
        connection.execute(text("UPDATE encryption_keys SET scheme = 'direct'"))
    fresh = Database(filled.engine, provider)
    with pytest.raises(WrongKeyError, match="encryption_keys"), fresh.transaction() as tx:
        tx.patients.get("PT-001", fields=[])
    with pytest.raises(WrongKeyError):
        rotate(filled.engine, KeyringSource(provider))


def test_another_databases_keys_are_not_registered(filled: Database, provider: VaultKeyProvider) -> None:
    """A secret with a higher version and nothing that this database knows is another one's: nothing is written to either."""
    foreign = KeySet(version=2, key=Key.generate(), index_key=provider.fetch().index_key)
    provider.replace(provider.fetch(), foreign)
    stored = provider.fetch()
    with filled.engine.begin() as connection, pytest.raises(WrongKeyError, match="encrypted with version 1"):
        initialise_keys(provider, connection)
    assert stored == provider.fetch()
    with filled.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM encryption_keys")).scalar_one() == 1


def test_a_lost_index_key_is_not_replaced_by_a_new_one(filled: Database, provider: VaultKeyProvider) -> None:
    """A new index key beside filled indexes would hide every patient: the store is left alone, and reads go on."""
    provider.replace(provider.fetch(), replace(provider.fetch(), index_key=None))
    stored = provider.fetch()
    with filled.engine.begin() as connection, pytest.raises(WrongKeyError, match="index_key is lost"):
        initialise_keys(provider, connection)
    assert stored == provider.fetch()
    with Database(filled.engine, provider).transaction() as tx:
        assert tx.patients.get("PT-001").ssn == "123456781"


def test_rows_that_are_hidden_from_the_role_stop_a_rotation(filled: Database) -> None:
    """Row-level security that hides rows is an error, and not a rotation that is done without them."""
    with filled.engine.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("ALTER TABLE patient_data FORCE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY visible ON patient_data USING (patient_id <> 'PT-002')"))
    with pytest.raises(RotationError, match="row-level security of patient_data hides rows"):
        rotate(filled.engine, filled.keys)


def test_a_bad_version_names_its_row(filled: Database) -> None:
    """One row with an impossible version fails a page by its name, so that it can be found and restored."""
    with filled.engine.begin() as connection:
        row = connection.execute(
            text("UPDATE patient_data SET key_version = 99 WHERE patient_id = 'PT-002' RETURNING id")
        ).scalar_one()
    with pytest.raises(UnknownKeyVersionError, match=str(row)) as caught, filled.transaction() as tx:
        tx.patients.page()
    assert caught.value.row_id == str(row)


def test_an_error_that_is_remembered_is_raised_anew(engine: Engine, provider: VaultKeyProvider) -> None:
    """One error object for many requests would gather the frames of all of them."""
    counting = CountingProvider(provider)
    keys = KeyringSource(counting)
    with engine.connect() as connection:
        keys.keyring(connection)
        counting.failure = KeyStoreUnavailableError("down")
        raised = []
        for _ in range(3):
            with pytest.raises(KeyStoreUnavailableError, match="down") as caught:
                keys.refresh(connection, 7)
            raised.append(caught.value)
    assert len({id(each) for each in raised}) == 3
    assert counting.fetches == 2


def test_a_connection_that_cannot_carry_every_text_is_refused(engine: Engine, provider: VaultKeyProvider) -> None:
    """Under another client encoding psycopg's own error would quote the text that it could not encode."""
    narrow = create_engine(engine.url, connect_args={"client_encoding": "latin1"})
    with pytest.raises(ConfigurationError, match="client_encoding"), Database(narrow, provider).transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", name="Łukasz"))
    narrow.dispose()


def test_an_encoding_in_the_environment_does_not_matter(
    engine: Engine, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGCLIENTENCODING is meant for other programs."""
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    ours = create_engine(engine.url)
    with Database(ours, provider).transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", name="Łukasz"))
        assert tx.patients.get("PT-001").name == "Łukasz"
    ours.dispose()


def test_a_packet_that_hides_its_missing_integrity_check_is_refused(engine: Engine) -> None:
    """A five-octet length moves the byte that the general format check looks at into the ciphertext: it is not accepted."""
    with engine.begin() as connection:
        allow_direct_format(connection)
    hidden = bytes.fromhex("c3ff0000000c0409010800112233445566") + b"\xc9" + bytes(240) + b"\xd2" * 10
    insert = text(
        "INSERT INTO patient_data (id, patient_id, ssn_encrypted, key_version) VALUES (gen_random_uuid(), 'x', :c, 1)"
    )
    with pytest.raises(sa.exc.IntegrityError, match="format"), engine.begin() as connection:
        connection.execute(insert, {"c": hidden})


def test_errors_come_back_from_other_processes() -> None:
    """An error with fields survives pickling, as process pools and task queues need."""
    error = DuplicateError("another row", table="patient_data", field="mrn")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own bytes
        assert (str(again), again.table, again.field, type(again)) == (
            "another row",
            "patient_data",
            "mrn",
            DuplicateError,
        )


class TeamBase(DeclarativeBase):
    """Another team's base."""


class BadgeRow(EncryptedRow, TeamBase):
    __tablename__ = "badges"
    id: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    colour: Mapped[str] = mapped_column(sa.String(5))
    owner_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)


@record
class Badge(Record):
    id: str
    colour: str
    owner: str | None = None


class BadgeRepository(Repository[Badge]):
    model = BadgeRow
    record = Badge


@pytest.mark.parametrize("add", ["add", "add_many"])
@pytest.mark.parametrize("long", [{"id": "ABCDEFGH-OTHER"}, {"colour": "vermilion"}])
def test_text_that_is_too_long_is_refused_and_never_cut(database: Database, add: str, long: dict[str, str]) -> None:
    """A cast to varchar(n) cuts silently, and a row under a cut key could never be read again."""
    with database.engine.begin() as connection:
        TeamBase.metadata.create_all(connection)
    badge = replace(Badge(id="ABCDEFGH", colour="red", owner="Zoë"), **long)
    said = "at most 8 characters" if "id" in long else "at most 5 characters"
    with pytest.raises(ValueError, match=said), database.transaction() as tx:
        badges = tx.repository(BadgeRepository)
        badges.add(badge) if add == "add" else badges.add_many([badge])
    with database.transaction() as tx:
        badges = tx.repository(BadgeRepository)
        badges.add(Badge(id="ABCDEFGH", colour="red"))
        with pytest.raises(ValueError, match="at most 8 characters"):
            badges.get_many(["ABCDEFGH-OTHER"])
        assert [each.id for each in badges.get_many(["ABCDEFGH"]).values()] == ["ABCDEFGH"]


@pytest.mark.parametrize("type_", [sa.Uuid(as_uuid=False), sa.Uuid(native_uuid=False)])
def test_a_uuid_that_is_kept_as_text_cannot_be_a_key(type_: sa.Uuid[Any]) -> None:
    """Its spelling in Python and in SQL differ, and values are bound to the spelling."""

    class OtherBase(DeclarativeBase):
        pass

    class OtherRow(EncryptedRow, OtherBase):
        __tablename__ = "others"
        id: Mapped[Any] = mapped_column(type_, primary_key=True)
        reason_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT)

    from voiceassist_db.models import EncryptedTable, table_of

    with pytest.raises(ValueError, match="cannot be bound"):
        EncryptedTable.of(table_of(OtherRow))


def test_two_columns_of_one_context_are_refused() -> None:
    """They would share a key and a prefix, and their values could be swapped."""

    class OtherBase(DeclarativeBase):
        pass

    class OtherRow(EncryptedRow, OtherBase):
        __tablename__ = "others"
        id: Mapped[int] = mapped_column(primary_key=True)
        one_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT, context="others.dose")
        two_encrypted: Mapped[bytes | None] = encrypted_column(Kind.TEXT, context="others.dose")

    from voiceassist_db.models import EncryptedTable, table_of

    with pytest.raises(ValueError, match="same context"):
        EncryptedTable.of(table_of(OtherRow))


def test_long_values_are_written_and_verified_in_small_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch ends by size as well as by count, for many long notes at once would fill the memory."""
    from voiceassist_db import ClinicalNote, verification
    from voiceassist_db.repositories import bulk
    from voiceassist_db.repositories.rows import Rows
    from voiceassist_db.verification import verify

    monkeypatch.setattr(bulk, "GROUP_CHARACTERS", 1000)
    monkeypatch.setattr(verification, "PAGE_BYTES", 1000)
    sizes: list[int] = []
    many: Callable[..., object] = Rows.many

    def counted(rows: object, records: list[object], keyring: object) -> object:
        sizes.append(len(records))
        return many(rows, records, keyring)

    monkeypatch.setattr(Rows, "many", counted)
    patient = Patient(patient_id="PT-001")
    with database.transaction() as tx:
        tx.patients.add(patient)
        tx.clinical_notes.add_many(ClinicalNote(patient=patient.id, note="x" * 400) for _ in range(10))
    assert sizes == [3, 3, 3, 1]
    reports = {each.table: each for each in verify(database.engine, database.keys)}
    assert (reports["clinical_notes"].rows, reports["clinical_notes"].failed) == (10, 0)
