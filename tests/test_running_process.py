"""A process that is never restarted writes with the new key and reads both, whichever way it executes.

This is the compiled-statement trap: a key that is put into a statement when it is built stays in SQLAlchemy's cache, and rows
go on being written under yesterday's key. So every way runs its statements before the key changes, and again after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.orm import Session

from voiceassist_db import AsyncDatabase, ClinicalNote, Database, Patient, Repositories, create_async_engine
from voiceassist_db.keyring import register
from voiceassist_db.keys import Key, KeySet
from voiceassist_db.providers.vault import VaultKeyProvider

pytestmark = pytest.mark.wide

Work = Callable[[Repositories], object]
Run = Callable[[Work], object]

SOON_S = 0.0
"""A time to live that is over at once; with the default, the process would learn of the key up to five minutes later."""
NEVER_S = 3600.0


def change_key(engine: Engine, provider: VaultKeyProvider) -> KeySet:
    """Put a new key into the store and the registry, as a rotation's first two steps do."""
    old = provider.fetch()
    provider.replace(
        old, replace(old, version=2, key=Key.generate(), previous_version=old.version, previous_key=old.key)
    )
    with engine.begin() as connection:
        register(connection, provider.fetch())
    return provider.fetch()


@pytest.fixture(autouse=True)
def no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time to live that is over at once asks the key store at each use, which a pace would delay."""
    monkeypatch.setattr("voiceassist_db.pacing.PERIOD_S", 0.0)


@pytest.fixture(params=["orm", "core", "transaction", "async"])
def run(
    request: pytest.FixtureRequest, engine: Engine, provider: VaultKeyProvider, database_url: URL
) -> Iterator[Callable[[float], Run]]:
    """A function that opens the database once, and returns how to run work on it: one process in each of four ways."""
    with asyncio.Runner() as loop:
        opened: list[AsyncDatabase] = []

        def by_orm(database: Database, work: Work) -> object:
            with Session(database.engine) as session, session.begin():
                return work(database.using(session))

        def by_core(database: Database, work: Work) -> object:
            with database.engine.begin() as connection:
                return work(database.using(connection))

        def by_transaction(database: Database, work: Work) -> object:
            with database.transaction() as tx:
                return work(tx)

        def by_async(database: AsyncDatabase, work: Work) -> object:
            async def run() -> object:
                async with database.transaction() as tx:
                    return await tx.run(work)

            return loop.run(run())

        def open_(ttl_s: float) -> Run:
            if request.param == "async":
                opened.append(AsyncDatabase(create_async_engine(database_url), provider, ttl_s=ttl_s))
                return lambda work: by_async(opened[0], work)
            way = {"orm": by_orm, "core": by_core, "transaction": by_transaction}[request.param]
            database = Database(engine, provider, ttl_s=ttl_s)
            return lambda work: way(database, work)

        yield open_
        for each in opened:
            loop.run(each.close())


def write_all(suffix: str) -> Work:
    """Return work that writes one row in each way there is: single, bulk, and a child table's."""

    def work(tx: Repositories) -> None:
        patient = Patient(patient_id=f"single-{suffix}", ssn="123-45-6789", name="Zoë")
        tx.patients.add(patient)
        tx.patients.add_many([Patient(patient_id=f"bulk-{suffix}", ssn="123-45-6780", name="Zoë")])
        tx.clinical_notes.add(ClinicalNote(patient=patient.id, note=f"note-{suffix}"))

    return work


def versions(engine: Engine) -> dict[str, int]:
    """Return the key version of each patient's row."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT patient_id, key_version FROM patient_data"))
        return {row.patient_id: row.key_version for row in rows}


def opens_with(engine: Engine, patient_id: str, key: Key) -> bool:
    """Say whether a row's value really is under a key, by pgcrypto alone."""
    statement = text(
        "SELECT pgcrypto.pgp_sym_decrypt(ssn_encrypted, :key) LIKE '%123-45-678%' FROM patient_data WHERE patient_id = :id"
    )
    parameters = {"key": key.derive("patient_data.ssn").expose().decode(), "id": patient_id}
    with engine.connect() as connection:
        return bool(connection.execute(statement, parameters).scalar_one())


def test_after_its_time_to_live_it_writes_with_the_new_key_and_reads_both(
    run: Callable[[float], Run], engine: Engine, provider: VaultKeyProvider
) -> None:
    """The same statements, executed before and after, are under the old and the new key; both read back in one page."""
    process = run(SOON_S)
    process(write_all("before"))
    keys = change_key(engine, provider)
    process(write_all("after"))
    process(lambda tx: tx.patients.update("bulk-before", name="Changed"))
    assert versions(engine) == {"single-before": 1, "bulk-before": 1, "single-after": 2, "bulk-after": 2}
    assert keys.previous_key is not None
    for patient_id, key in {
        "single-before": keys.previous_key,
        "bulk-before": keys.previous_key,
        "single-after": keys.key,
        "bulk-after": keys.key,
    }.items():
        assert opens_with(engine, patient_id, key)
    page = process(lambda tx: {each.patient_id: (each.ssn, each.name) for each in tx.patients.page()})
    assert page == {
        "single-before": ("123-45-6789", "Zoë"),
        "bulk-before": ("123-45-6780", "Changed"),
        "single-after": ("123-45-6789", "Zoë"),
        "bulk-after": ("123-45-6780", "Zoë"),
    }
    notes = process(lambda tx: {each.note for each in tx.clinical_notes.page()})
    assert notes == {"note-before", "note-after"}


@pytest.mark.parametrize("meets", ["get", "get_many", "page", "find", "update"])
def test_a_row_under_an_unknown_version_is_read_at_once(
    run: Callable[[float], Run], engine: Engine, provider: VaultKeyProvider, meets: str
) -> None:
    """However long its keys would still live, a process that meets a row of the new version learns the key and goes on."""
    process = run(NEVER_S)
    process(write_all("before"))
    change_key(engine, provider)
    with Database(engine, provider).transaction() as other_process:
        other_process.patients.add(Patient(patient_id="new", ssn="999-99-9999", name="Other"))

    def update(tx: Repositories) -> object:
        tx.patients.update("new", mrn="M-1")
        return tx.patients.get("new").ssn

    ways: dict[str, Work] = {
        "get": lambda tx: tx.patients.get("new").ssn,
        "get_many": lambda tx: tx.patients.get_many(["single-before", "new"])["new"].ssn,
        "page": lambda tx: {each.patient_id: each.ssn for each in tx.patients.page()}["new"],
        "find": lambda tx: tx.patients.find_by_name("other")[0].ssn,
        "update": update,
    }
    assert process(ways[meets]) == "999-99-9999"
    process(write_all("after"))
    assert versions(engine) == {
        "single-before": 1,
        "bulk-before": 1,
        "new": 2,
        "single-after": 2,
        "bulk-after": 2,
    }
