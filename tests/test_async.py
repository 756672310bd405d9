"""Many tasks of one event loop share a database: none blocks the loop, whatever the keyring has to fetch meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.test_running_process import change_key
from voiceassist_db import AsyncDatabase, Database, Patient, create_async_engine
from voiceassist_db.errors import DatabaseUnavailableError, DuplicateError
from voiceassist_db.keys import KeySet
from voiceassist_db.providers.vault import VaultKeyProvider

TASKS = 10


@pytest.fixture
async def async_database(database_url: URL, provider: VaultKeyProvider) -> AsyncIterator[AsyncDatabase]:
    """A database for one event loop."""
    # 500 tasks that keep a busy machine's loop from its new connections are no server that does not answer.
    engine = create_async_engine(database_url, connect_args={"connect_timeout": 120})
    async with AsyncDatabase(engine, provider) as made:
        yield made


async def read(database: AsyncDatabase, patient_id: str) -> str | None:
    """Read one patient in a transaction of its own."""
    async with database.transaction() as tx:
        return await tx.run(lambda tx: tx.patients.get(patient_id).ssn)


async def test_tasks_that_start_at_once_all_get_keys(async_database: AsyncDatabase, database: Database) -> None:
    """The first use by many tasks at once fetches the keys and deadlocks none of them."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    async with asyncio.timeout(120):
        found = await asyncio.gather(*(read(async_database, "PT-001") for _ in range(TASKS)))
    assert found == ["123-45-6789"] * TASKS


async def test_tasks_that_meet_a_new_key_at_once_all_learn_it(
    async_database: AsyncDatabase, engine: Engine, provider: VaultKeyProvider, database: Database
) -> None:
    """After a rotation every task that meets a new row refreshes the keyring, beside the others."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    assert await read(async_database, "PT-001") == "123-45-6789"
    change_key(engine, provider)
    with Database(engine, provider).transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-002", ssn="123-45-6780"))
    async with asyncio.timeout(120):
        found = await asyncio.gather(*(read(async_database, f"PT-00{1 + n % 2}") for n in range(TASKS)))
    assert found == ["123-45-6789", "123-45-6780"] * (TASKS // 2)


async def test_a_slow_key_store_does_not_stop_the_loop(
    async_database: AsyncDatabase, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one task waits for the key store, the others of the loop go on."""
    fetch = provider.fetch
    loop = asyncio.get_running_loop()
    fetching, ticked = asyncio.Event(), threading.Event()

    def slow_fetch() -> KeySet:
        loop.call_soon_threadsafe(fetching.set)
        assert ticked.wait(120), "the loop stood still"
        return fetch()

    monkeypatch.setattr(provider, "fetch", slow_fetch)

    async def tick() -> None:
        await fetching.wait()
        for _ in range(10):
            await asyncio.sleep(0.01)
        ticked.set()

    ticking = asyncio.create_task(tick())
    async with async_database.transaction() as tx:
        await tx.run(lambda tx: tx.patients.add_many(Patient(patient_id=f"PT-{n}") for n in range(10)))
    await ticking


@pytest.mark.parametrize(
    "meets_new_key", [False, pytest.param(True, marks=pytest.mark.wide)], ids=["cold start", "rotation"]
)
async def test_a_full_executor_of_the_loop_stops_no_task(
    async_database: AsyncDatabase, engine: Engine, provider: VaultKeyProvider, database: Database, meets_new_key: bool
) -> None:
    """Jobs that wait for the tasks fill the loop's executor; keys are fetched all the same."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn="123-45-6789"))
    if meets_new_key:
        assert await read(async_database, "PT-001") == "123-45-6789"
        change_key(engine, provider)
        with Database(engine, provider).transaction() as tx:
            tx.patients.update("PT-001", name="Zoë")
            tx.patients.add(Patient(patient_id="PT-002", ssn="123-45-6780"))
    done = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    job = loop.run_in_executor(None, done.wait, 300)
    try:
        wanted = "PT-002" if meets_new_key else "PT-001"
        async with asyncio.timeout(240):
            found = await asyncio.gather(*(read(async_database, wanted) for _ in range(500)))
    finally:
        done.set()
        await job
    assert set(found) == {"123-45-6780" if meets_new_key else "123-45-6789"}


async def test_a_bulk_add_of_many_batches(async_database: AsyncDatabase) -> None:
    """It writes them all; one duplicate undoes them all, and the connection serves the next transaction."""
    patients = [Patient(patient_id=f"PT-{n:04d}", mrn=f"M{n}", name="Zoë") for n in range(1000)]
    with pytest.raises(DuplicateError, match="mrn"):
        async with async_database.transaction() as tx:
            more = [*patients, Patient(patient_id="PT-9999", mrn="m0")]
            await tx.run(lambda each: each.patients.add_many(more))
    async with async_database.transaction() as tx:
        assert await tx.run(lambda tx: tx.patients.page()) == []
        assert await tx.run(lambda tx: tx.patients.add_many(patients)) == len(patients)
        assert await tx.run(lambda tx: tx.patients.page()) == sorted(patients, key=lambda each: each.id)


async def test_a_session_of_the_callers_own(async_database: AsyncDatabase, database_url: URL) -> None:
    """The same repositories on the caller's async session, whose transaction stays the caller's; another engine's is refused."""
    async with AsyncSession(async_database.engine) as session:
        tx = async_database.using(session)
        await tx.run(lambda tx: tx.patients.add(Patient(patient_id="PT-001", name="Zoë")))
        assert await tx.run(lambda tx: len(tx.patients.page())) == 1
        await session.rollback()
        assert await tx.run(lambda tx: tx.patients.page()) == []
    stranger = create_async_engine(database_url)
    async with AsyncSession(stranger) as session:
        with pytest.raises(ValueError, match="another engine"):
            async_database.using(session)
    await stranger.dispose()


async def test_a_cancelled_task_leaves_nothing(async_database: AsyncDatabase) -> None:
    """A transaction that is cancelled halfway is rolled back, and its connection serves the next one."""

    async def write() -> None:
        async with async_database.transaction() as tx:
            await tx.run(lambda tx: tx.patients.add(Patient(patient_id="PT-001")))
            await asyncio.sleep(60)

    for _ in range(20):
        task = asyncio.create_task(write())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with async_database.transaction() as tx:
        assert await tx.run(lambda tx: tx.patients.page()) == []


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_lost_connection_is_told_unless_the_task_was_cancelled(
    async_database: AsyncDatabase, is_cancelled: bool
) -> None:
    """A timeout within the block, which asyncio makes of a cancellation, does not make the loss one."""
    lost = asyncio.Event()

    async def write() -> None:
        async with async_database.transaction() as tx:
            pid = await tx.session.scalar(text("SELECT pg_backend_pid()"))
            async with async_database.transaction() as other:
                await other.session.execute(text("SELECT pg_terminate_backend(:pid, 20000)"), {"pid": pid})
            async with asyncio.timeout(60 if is_cancelled else 0.1):
                lost.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(write())
    await lost.wait()
    if is_cancelled:
        task.cancel()
    with pytest.raises(asyncio.CancelledError if is_cancelled else DatabaseUnavailableError):
        await task
