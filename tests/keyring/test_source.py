"""The keyring is proven before it is used, stays fresh by itself, and never makes a reader wait for nothing."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import pytest
from sqlalchemy import Engine, event, text

from voiceassist_db import Database, Patient, Repositories
from voiceassist_db.errors import (
    KeyNotRegisteredError,
    KeysNotFoundError,
    KeyStoreError,
    KeyStoreForbiddenError,
    KeyStoreUnavailableError,
    MissingKeyError,
    UnknownKeyVersionError,
    WrongKeyError,
)
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import KeyringSource, register, registered_keys, source
from voiceassist_db.keyring.single_flight import wait_in_thread
from voiceassist_db.keys import Key, KeyProvider, KeySet
from voiceassist_db.providers.environment import EnvironmentKeyProvider
from voiceassist_db.providers.vault import VaultKeyProvider


class CountingProvider:
    """Hands on to a real provider, counts the calls, and fails when told to: a store's outage on command."""

    def __init__(self, provider: KeyProvider) -> None:
        self._provider = provider
        self.fetches = 0
        self.failure: KeyStoreError | None = None
        self.hold: threading.Event | None = None

    def fetch(self) -> KeySet:
        self.fetches += 1
        if self.hold is not None:
            self.hold.wait(10)
        if self.failure is not None:
            raise self.failure
        return self._provider.fetch()

    def create(self, keys: KeySet) -> None:
        self._provider.create(keys)

    def replace(self, old: KeySet, new: KeySet) -> None:
        self._provider.replace(old, new)


def next_keys(keys: KeySet) -> KeySet:
    """Return what the store holds after the next rotation began."""
    return replace(
        keys, version=keys.version + 1, key=Key.generate(), previous_version=keys.version, previous_key=keys.key
    )


@pytest.fixture
def counting(provider: VaultKeyProvider) -> CountingProvider:
    """The test's key store, counted."""
    return CountingProvider(provider)


def test_the_store_is_asked_once_and_then_after_the_time_to_live(
    engine: Engine, counting: CountingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand uses cost one fetch; when the time to live is over, one more."""
    now = 1000.0
    monkeypatch.setattr("voiceassist_db.keyring.source.time.monotonic", lambda: now)
    keys = KeyringSource(counting, ttl_s=300)
    with engine.connect() as connection:
        first = keys.keyring(connection)
        assert all(keys.keyring(connection) is first for _ in range(1000))
        now += 299
        assert keys.keyring(connection) is first
        assert counting.fetches == 1
        now += 2
        assert keys.keyring(connection) is not first
        assert counting.fetches == 2


@pytest.mark.parametrize("failure", [KeyStoreUnavailableError("down"), KeyStoreForbiddenError("no")])
def test_an_outage_is_ridden_out_and_a_refusal_is_not(
    engine: Engine,
    counting: CountingProvider,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: KeyStoreError,
) -> None:
    """With the store down, keys fetched before stay in use, with a warning and without asking at every call."""
    now = 1000.0
    monkeypatch.setattr("voiceassist_db.keyring.source.time.monotonic", lambda: now)
    keys = KeyringSource(counting, ttl_s=300)
    counting.failure = failure
    with engine.connect() as connection:
        with pytest.raises(type(failure)):
            keys.keyring(connection)
        counting.failure = None
        now += 2  # after a failure, the store is left alone for a moment
        first = keys.keyring(connection)
        counting.failure = failure
        now += 301
        if isinstance(failure, KeyStoreForbiddenError):
            for _ in range(2):
                with pytest.raises(KeyStoreForbiddenError):
                    keys.keyring(connection)
            return
        with caplog.at_level(logging.WARNING):
            assert all(keys.keyring(connection) is first for _ in range(100))
        assert counting.fetches == 3
        assert "going on with the keys" in caplog.text
        counting.failure = None
        now += source.RETRY_AFTER_S + 1
        assert keys.keyring(connection) is not first


def test_others_go_on_while_one_thread_fetches(
    engine: Engine, counting: CountingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow key store delays one thread only; the others use the keyring that they have."""
    now = 1000.0
    monkeypatch.setattr("voiceassist_db.keyring.source.time.monotonic", lambda: now)
    keys = KeyringSource(counting, ttl_s=300)
    with engine.connect() as connection, engine.connect() as slow:
        first = keys.keyring(connection)
        now += 301
        counting.hold = threading.Event()
        thread = threading.Thread(target=keys.keyring, args=(slow,))
        thread.start()
        try:
            while counting.fetches < 2:
                pass
            assert keys.keyring(connection) is first
        finally:
            counting.hold.set()
            thread.join()
        assert keys.keyring(connection) is not first
        assert counting.fetches == 2


def test_threads_at_a_cold_start_wait_without_a_connection(database: Database, counting: CountingProvider) -> None:
    """Fifty threads share one fetch, and the pool is free for other code while they wait."""
    cold = Database(database.engine, counting)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    counting.hold = threading.Event()
    waiting = threading.Semaphore(0)
    found: list[str | None] = []

    def wait(landed: Future[None], seconds: float) -> None:
        waiting.release()
        wait_in_thread(landed, 60)

    cold.keys._flights._wait = wait

    def read() -> None:
        with cold.transaction() as tx:
            found.append(tx.patients.get("PT-001").ssn)

    threads = [threading.Thread(target=read) for _ in range(50)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=60)
    held = database.engine.pool.checkedout()  # type: ignore[attr-defined]  # of a QueuePool
    counting.hold.set()
    for thread in threads:
        thread.join(60)
    assert held == 0
    assert found == ["123-45-6789"] * 50
    assert counting.fetches == 1


@pytest.mark.parametrize("failure", [KeyStoreUnavailableError("down"), KeyStoreForbiddenError("no")])
def test_without_keys_no_caller_takes_a_connection(
    engine: Engine, counting: CountingProvider, failure: KeyStoreError
) -> None:
    """A caller that took one after a failure could wait for the next fetch while it holds it, and so exhaust the pool."""
    counting.failure = failure
    cold = Database(engine, counting)
    taken: list[object] = []
    event.listen(engine, "checkout", lambda *given: taken.append(given))
    patient = Patient(patient_id="PT-001")
    works: list[Callable[[Repositories], object]] = [
        lambda tx: tx.patients.get("PT-001"),
        lambda tx: tx.patients.update("PT-001", name="Zoë"),
        lambda tx: tx.patients.page(),
        lambda tx: tx.patients.add(patient),
        lambda tx: tx.patients.add_many([patient]),
    ]
    for work in works:
        with pytest.raises(type(failure)), cold.transaction() as tx:
            work(tx)
    assert taken == []


def test_a_wrong_key_is_refused_before_it_touches_a_row(engine: Engine, provider: VaultKeyProvider) -> None:
    """A key that is not the registered one for its version is an error for reading and writing alike."""
    database = Database(engine, provider)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    keys = provider.fetch()
    provider.replace(keys, replace(keys, key=Key.generate()))
    stranger = Database(engine, provider)
    for attempt in ("get", "add"):
        with pytest.raises(WrongKeyError, match="not the key that this database"), stranger.transaction() as tx:
            if attempt == "get":
                tx.patients.get("PT-001")
            else:
                tx.patients.add(Patient(patient_id="PT-002"))
    with engine.begin() as connection, pytest.raises(WrongKeyError):
        register(connection, provider.fetch())


def test_a_wrong_index_key_is_refused(engine: Engine, provider: VaultKeyProvider) -> None:
    """With another index key, searches would find nothing and duplicates would go unseen: so it is an error."""
    keys = provider.fetch()
    provider.replace(keys, replace(keys, index_key=Key.generate()))
    with engine.connect() as connection:
        with pytest.raises(WrongKeyError, match="index_key"):
            KeyringSource(provider).keyring(connection)
        with pytest.raises(WrongKeyError, match="index_key"):
            initialise_keys(provider, connection)


def test_keys_that_the_database_does_not_know_are_refused(engine: Engine) -> None:
    """A migrated database whose keys were never registered says which command registers them."""
    provider = EnvironmentKeyProvider(base64.b64encode(bytes(32)).decode())
    with engine.connect() as connection, pytest.raises(KeyNotRegisteredError, match="init-keys") as caught:
        KeyringSource(provider).keyring(connection)
    assert caught.value.version == 1


def test_without_an_index_key_nothing_is_searched_or_written_unsearchable(
    engine: Engine, provider: VaultKeyProvider
) -> None:
    """A secret without index_key reads, but a write that would leave a value unfindable is an error that says why.

    What has no such value is written.
    """
    with Database(engine, provider).transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    keys = provider.fetch()
    provider.replace(keys, replace(keys, index_key=None))
    database = Database(engine, provider)
    with database.transaction() as tx:
        assert tx.patients.get("PT-001").ssn == "123-45-6789"
    with pytest.raises(MissingKeyError, match="init-keys"), database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-002", ssn="123-45-6780"))
    with pytest.raises(MissingKeyError, match="init-keys"), database.transaction() as tx:
        tx.patients.find_by_ssn("123-45-6789")
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-003"))
        assert tx.patients.add_many([Patient(patient_id="PT-004"), Patient(patient_id="PT-005")]) == 2
        tx.patients.update("PT-001", ssn=None)
    with database.transaction() as tx:
        assert [each.ssn for each in tx.patients.page()] == [None] * 4


def test_a_version_in_the_store_that_is_not_registered_yet_is_not_written_with(
    engine: Engine, provider: VaultKeyProvider
) -> None:
    """Between a rotation's first two steps, or after it died there, processes start and write with the registered key."""
    provider.replace(provider.fetch(), next_keys(provider.fetch()))
    database = Database(engine, provider)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
        assert tx.patients.get("PT-001").ssn == "123-45-6789"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT key_version FROM patient_data")).scalars().all() == [1]


def test_a_row_under_a_version_that_nobody_has_is_an_error(engine: Engine, provider: VaultKeyProvider) -> None:
    """Reading and changing it asks the store once more, and then says which version is missing."""
    counting = CountingProvider(provider)
    database = Database(engine, counting)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE patient_data SET key_version = 7"))
    for attempt in ("get", "update", "get", "get"):
        with pytest.raises(UnknownKeyVersionError, match="key version 7") as caught, database.transaction() as tx:
            tx.patients.get("PT-001") if attempt == "get" else tx.patients.update("PT-001", name="X")
        assert caught.value.version == 7
    assert counting.fetches == 2


def test_an_unknown_version_while_the_store_is_down_is_an_outage(
    engine: Engine, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that the store does not answer, not that its secret should be rolled back; and it is not hammered."""
    monkeypatch.setattr("voiceassist_db.keyring.single_flight.time.monotonic", lambda: 1000.0)
    counting = CountingProvider(provider)
    database = Database(engine, counting)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    provider.replace(provider.fetch(), next_keys(provider.fetch()))
    with engine.begin() as connection:
        register(connection, provider.fetch())
    with Database(engine, provider).transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-002", ssn="123-45-6780"))
    counting.failure = KeyStoreUnavailableError("down")
    for _ in range(3):
        with pytest.raises(KeyStoreUnavailableError), database.transaction() as tx:
            tx.patients.get("PT-002")
    assert counting.fetches == 2
    with database.transaction() as tx:
        assert tx.patients.get("PT-001").ssn == "123-45-6789"


def test_an_old_snapshot_does_not_take_a_new_key_from_the_others(engine: Engine, provider: VaultKeyProvider) -> None:
    """A REPEATABLE READ transaction that cannot see the new key's registration goes on alone; others keep the new key."""
    database = Database(engine, provider)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        old.execute(text("SELECT 1 FROM patient_data"))
        provider.replace(provider.fetch(), next_keys(provider.fetch()))
        with engine.begin() as connection:
            register(connection, provider.fetch())
        with engine.connect() as connection:
            assert database.keys.keyring(connection).current.version == 2
        database.keys.forget()
        assert database.keys.keyring(old).current.version == 1
        with engine.connect() as connection:
            assert database.keys.refresh(connection, 2).current.version == 2
            assert database.keys.keyring(connection).current.version == 2


def test_many_may_initialise_at_once(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> None:
    """Replicas that start together all succeed, with one key between them."""
    done: list[tuple[int, ...]] = []

    def initialise() -> None:
        with engine.begin() as connection:
            done.append(initialise_keys(new_provider(), connection).registered)

    threads = [threading.Thread(target=initialise) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == [(), (), (), (1,)]


def test_initialising_twice_changes_nothing(engine: Engine, new_provider: Callable[..., VaultKeyProvider]) -> None:
    """The first call makes both keys, the second finds them, and the third registers them in another database."""
    provider = new_provider()
    with engine.begin() as connection:
        first = initialise_keys(provider, connection)
        keys = provider.fetch()
        again = initialise_keys(new_provider(), connection)
    assert (first.created, first.registered, first.version) == (("key", "index_key"), (1,), 1)
    assert (again.created, again.registered) == ((), ())
    assert keys == provider.fetch()


def test_an_empty_store_beside_a_filled_database_is_refused(
    engine: Engine, provider: VaultKeyProvider, new_provider: Callable[..., VaultKeyProvider]
) -> None:
    """New keys for rows that are encrypted already would be a disaster in waiting: nothing is created."""
    assert provider.fetch().version == 1
    empty = new_provider("/elsewhere")
    with engine.begin() as connection, pytest.raises(KeysNotFoundError, match="key version 1 registered"):
        initialise_keys(empty, connection)
    with pytest.raises(KeysNotFoundError):
        empty.fetch()


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY", "ISO"])
def test_keys_are_fetched_under_every_datestyle(
    engine: Engine, new_provider: Callable[..., VaultKeyProvider], style: str
) -> None:
    """A transaction that has set a style of dates learns of the keys, and the registry's moments are the same."""
    provider = new_provider()
    with engine.begin() as connection:
        initialise_keys(provider, connection)
        before = registered_keys(connection)
    keys = KeyringSource(provider)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL DateStyle = '{style}'"))
        connection.execute(text("SET LOCAL TimeZone = 'Asia/Kathmandu'"))
        assert keys.keyring(connection).current.version == 1
        assert registered_keys(connection) == before
    assert before[1].created_at.tzinfo is not None
    with engine.connect() as connection:
        assert before[1].created_at == connection.scalar(text("SELECT created_at FROM encryption_keys"))
