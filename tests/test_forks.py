"""A connection that another process opened is never used: forked children read and write their own patients, and hang on nothing.

The parent reads first, so that its pool holds connections; it also has a session in progress. Then children and parent work at
the same time, and every value that anybody reads is compared.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemy_create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import AssertionPool, NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from tests.conftest import VaultServer, throwaway_server
from tests.forking import Child, ChildError, HungError, fork_in_c
from tests.tls import certified
from voiceassist_db import AsyncDatabase, Database, Patient, Repositories, create_async_engine, create_engine, uuid7
from voiceassist_db.database import AsyncTransaction
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.process import HOST
from voiceassist_db.engine import prepare
from voiceassist_db.errors import ConfigurationError, DatabaseUnavailableError
from voiceassist_db.forks import UNFORKED
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.schema import migrate

pytestmark = pytest.mark.wide

PATIENTS = 5
ROUNDS = 3
TRIALS = 20
LONG_TRIALS = 300

SYNC_POOLS: list[type[Pool] | None] = [None, NullPool, StaticPool, SingletonThreadPool, AssertionPool]
ASYNC_POOLS: list[type[Pool] | None] = [None, NullPool, StaticPool, AssertionPool]


def ssn(number: int) -> str:
    return f"{123_450_000 + number}"


def add_patients(tx: Repositories) -> None:
    tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=ssn(n), mrn=f"M-{n}") for n in range(PATIENTS))


def work_on(number: int) -> Callable[[Repositories], int]:
    """Return work for one transaction: it reads every patient, and changes, adds and finds one; it returns how many reads were wrong."""

    def work(tx: Repositories) -> int:
        name = uuid4().hex
        own = Patient(patient_id=name, ssn=ssn(number), mrn=name, name=name)
        tx.patients.add(own)
        tx.patients.update(name, name=f"{name} changed")
        wrong = sum(tx.patients.get(f"PT-{n}").ssn != ssn(n) for n in range(PATIENTS))
        wrong += tx.patients.get(name).name != f"{name} changed"
        found = tx.patients.find_by_mrn(name)
        return wrong + (found is None or found.id != own.id)

    return work


def work(database: Database, rounds: int = ROUNDS) -> int:
    """Read and write in transactions; return how many reads were wrong."""
    wrong = 0
    for number in range(rounds):
        with database.transaction() as tx:
            wrong += work_on(number)(tx)
    return wrong


def work_async(database: AsyncDatabase, rounds: int = ROUNDS) -> int:
    """Do the same in an event loop of its own, which ends with it."""

    async def run() -> int:
        wrong = 0
        for number in range(rounds):
            async with database.transaction() as tx:
                wrong += await tx.run(work_on(number))
        await database.close()
        return wrong

    return asyncio.run(run())


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server that speaks TLS."""
    with ExitStack() as stack:
        tls = stack.enter_context(certified("forks", HOST))
        yield stack.enter_context(throwaway_server(tls.settings))


@pytest.fixture(scope="module", params=["plain", "TLS"])
def url(request: pytest.FixtureRequest, server: EmbeddedPostgres) -> URL:
    """Address of a database with keys, through TLS or not."""
    mode = "require" if request.param == "TLS" else "disable"
    return server.url().update_query_dict({"sslmode": mode})


@pytest.fixture(scope="module")
def deployed(server: EmbeddedPostgres, vault: VaultServer) -> VaultKeyProvider:
    """The keys of that database, which is migrated and has a few patients."""
    provider = VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount="secret", path="test/forks")
    engine = create_engine(server.url(), poolclass=NullPool)
    migrate(engine)
    with engine.begin() as connection:
        initialise_keys(provider, connection)
    with Database(engine, provider).transaction() as tx:
        add_patients(tx)
    return provider


@pytest.fixture(autouse=True)
def _own_rows(server: EmbeddedPostgres, deployed: VaultKeyProvider) -> Iterator[None]:
    """Leave nothing but the first patients."""
    yield
    with psycopg.connect(server.url().set(drivername="postgresql").render_as_string(hide_password=False)) as admin:
        admin.execute("DELETE FROM patient_data WHERE patient_id NOT LIKE 'PT-%'")


def options(pool: type[Pool] | None) -> dict[str, Any]:
    return {} if pool is None else {"poolclass": pool}


def pool_name(pool: type[Pool] | None) -> str:
    return "QueuePool" if pool is None else pool.__name__


@pytest.mark.parametrize("pool", SYNC_POOLS, ids=pool_name)
@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["own", "callers"])
def test_children_and_parent_work_at_once(
    url: URL, deployed: VaultKeyProvider, make: Callable[..., Engine], pool: type[Pool] | None
) -> None:
    """Whatever the pool, whoever made the engine, with TLS or without: all values are right, and nothing fails or hangs."""
    with Database(make(url, **options(pool)), deployed) as database:
        assert work(database, 1) == 0
        children = [Child(lambda: work(database)) for _ in range(2)]
        assert work(database) == 0
        assert [child.result() for child in children] == [0, 0]
        assert work(database, 1) == 0


@pytest.mark.parametrize("pool", ASYNC_POOLS, ids=pool_name)
@pytest.mark.parametrize("make", [create_async_engine, sqlalchemy_create_async_engine], ids=["own", "callers"])
def test_event_loops_of_children_and_parent_work_at_once(
    url: URL, deployed: VaultKeyProvider, make: Callable[..., Any], pool: type[Pool] | None
) -> None:
    """The same for engines of an event loop, which ends in the parent and begins anew in each child."""
    database = AsyncDatabase(make(url, **options(pool)), deployed)

    async def warm() -> None:
        async with database.transaction() as tx:
            assert await tx.run(work_on(0)) == 0

    async def in_parent(loop: asyncio.Runner) -> int:
        wrong = 0
        for number in range(1, ROUNDS):
            async with database.transaction() as tx:
                wrong += await tx.run(work_on(number))
        return wrong

    with asyncio.Runner() as loop:
        loop.run(warm())
        children = [Child(lambda: work_async(database)) for _ in range(2)]
        assert loop.run(in_parent(loop)) == 0
        assert [child.result() for child in children] == [0, 0]
        loop.run(database.close())


@pytest.fixture
def database(url: URL, deployed: VaultKeyProvider) -> Iterator[Database]:
    """A database whose pool holds a connection that was used."""
    with Database(create_engine(url), deployed) as made:
        assert work(made, 1) == 0
        yield made


def pid_of(session: Session) -> int:
    """Return the number of the server's process behind a session."""
    return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_session_in_progress_is_the_parents(database: Database) -> None:
    """A child that uses it gets an error, by our calls and by its own SQL; the parent's transaction goes on unharmed."""

    def use() -> list[str]:
        errors = []
        for attempt in (
            lambda: tx.patients.get("PT-1"),
            lambda: session.execute(text("SELECT ssn_encrypted FROM patient_data")),
            session.commit,
            session.rollback,
            session.close,
        ):
            try:
                attempt()
            except Exception as error:  # noqa: BLE001  # the kind is what is looked at
                errors.append(type(error).__name__)
            else:
                errors.append("")
        with database.transaction() as other:
            assert other.patients.get("PT-1").ssn == ssn(1)
        gc.collect()
        return errors

    with Session(database.engine) as session:
        tx = database.using(session)
        tx.patients.add(Patient(patient_id="in progress", ssn=ssn(99)))
        before = pid_of(session)
        used = Child(use).result()
        assert used[0] == "DatabaseUnavailableError"
        assert used[1] == "PendingRollbackError"  # of the lost connection
        assert (pid_of(session), tx.patients.get("in progress").ssn) == (before, ssn(99))
        session.commit()
    with database.transaction() as tx:
        assert tx.patients.get("in progress").ssn == ssn(99)


def test_the_applications_own_sql_does_not_reach_the_parents_connection(database: Database) -> None:
    """Not even where it is the first thing that a child does with the session, or where it has the driver's connection."""

    def by_session() -> str:
        with pytest.raises(SQLAlchemyError) as caught:
            session.execute(text("DELETE FROM patient_data"))
        return type(caught.value).__name__

    def by_driver() -> str:
        with pytest.raises(psycopg.OperationalError):
            driver.execute("DELETE FROM patient_data")
        with pytest.raises(psycopg.Error):
            cursor.execute("DELETE FROM patient_data")
        driver.close()
        return str(driver.info.transaction_status.name)

    with Session(database.engine) as session:
        before = pid_of(session)
        driver: Any = session.connection().connection.driver_connection
        cursor = driver.cursor()
        assert Child(by_session).result() == "OperationalError"
        assert Child(by_driver).result() == TransactionStatus.UNKNOWN.name
        assert pid_of(session) == before
        assert database.using(session).patients.get("PT-2").ssn == ssn(2)


def test_an_async_session_in_progress_is_the_parents(url: URL, deployed: VaultKeyProvider) -> None:
    """A child's event loop gets an error from it, and connections of its own from the engine."""
    database = AsyncDatabase(create_async_engine(url), deployed)

    async def get(tx: AsyncTransaction) -> str | None:
        return await tx.run(lambda tx: tx.patients.get("PT-1").ssn)

    async def use() -> str | None:
        with pytest.raises(DatabaseUnavailableError, match="forked from it"):
            await get(inherited)
        async with database.transaction() as tx:
            return await get(tx)

    with asyncio.Runner() as loop:
        session = AsyncSession(database.engine)
        inherited = database.using(session)
        assert loop.run(get(inherited)) == ssn(1)
        assert Child(lambda: asyncio.run(use())).result() == ssn(1)
        assert loop.run(get(inherited)) == ssn(1)
        loop.run(session.close())
        loop.run(database.close())


def test_our_error_says_what_to_do(database: Database) -> None:
    """It names the fork, and the way out."""

    def use() -> None:
        with pytest.raises(DatabaseUnavailableError, match="forked from it: begin a new session"):
            tx.patients.get("PT-1")
        session.rollback()
        assert tx.patients.get("PT-1").ssn == ssn(1)  # the same session, on a connection of this process

    with Session(database.engine) as session:
        tx = database.using(session)
        tx.patients.get("PT-1")
        Child(use).result()
        assert tx.patients.get("PT-1").ssn == ssn(1)


def test_a_childs_garbage_does_not_end_the_parents_session(database: Database) -> None:
    """Neither the connection that a child collects nor the process's end says goodbye to the server, in TLS or before it."""

    def collect() -> int:
        sessions.clear()
        database.engine.dispose()
        gc.collect()
        return work(database, 1)

    sessions = [Session(database.engine)]
    before = pid_of(sessions[0])
    with database.engine.connect() as connection:
        in_pool = connection.scalar(text("SELECT pg_backend_pid()"))
    for _ in range(3):
        assert Child(collect).result() == 0
    assert pid_of(sessions[0]) == before
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == in_pool
    sessions[0].close()


def test_a_statement_that_runs_at_the_fork_hangs_nobody(database: Database) -> None:
    """Another thread of the parent is in the middle of it, with the driver's lock; a child that uses its session gets an error."""
    started, done = threading.Event(), threading.Event()
    with Session(database.engine) as session:
        session.connection()

        def wait() -> None:
            started.set()
            session.execute(text("SELECT pg_sleep(1)"))
            done.set()

        def use() -> int:
            with pytest.raises(SQLAlchemyError):
                session.execute(text("SELECT 1"))
            return work(database, 1)

        thread = threading.Thread(target=wait)
        thread.start()
        started.wait()
        driver: Any = session.connection().connection.driver_connection
        while not driver.lock.locked():
            pass
        assert not done.is_set()
        assert Child(use).result() == 0
        thread.join()
        assert done.is_set()


def test_locks_that_another_thread_holds_at_the_fork_hang_nobody(url: URL, deployed: VaultKeyProvider) -> None:
    """The keyring's, the token's, and those of SQLAlchemy's pool, which engines made elsewhere have: a child has its own."""
    database = Database(create_engine(url, poolclass=QueuePool), deployed)
    assert work(database, 1) == 0
    pool: Any = database.engine.pool
    keys: Any = database.keys
    provider: Any = keys.provider
    token_lock = provider._token._lock
    held = [pool._overflow_lock, pool._pool.mutex, keys._renewing, token_lock]
    with ExitStack() as stack:
        for lock in held:
            if hasattr(lock, "__enter__"):
                stack.enter_context(lock)

        def use() -> int:
            database.keys.forget()
            wrong = work(database, 1)
            assert keys._due > 0  # renewed
            return wrong

        child = Child(use)
        assert child.result() == 0
    assert work(database, 1) == 0
    database.close()


def test_locks_of_our_attributes_hang_nobody(database: Database) -> None:
    """In Python 3.11 a ``functools.cached_property`` has one lock for all objects, which another thread may hold at the fork."""
    locks = [lock for each in vars(Repositories).values() if (lock := getattr(each, "lock", None)) is not None]
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert Child(lambda: work(database, 1)).result() == 0
    finally:
        done.set()
        thread.join()


def test_a_child_of_a_child(database: Database) -> None:
    """Each generation has its own connections, and all work at once."""

    def generation(depth: int) -> int:
        wrong = work(database, 1)
        child = Child(lambda: generation(depth - 1)) if depth else None
        wrong += work(database, 1)
        return wrong + (child.result() if child else 0)

    assert generation(3) == 0


def test_engines_of_one_pool_share_one_in_a_child(database: Database, deployed: VaultKeyProvider) -> None:
    """A session on an engine that execution_options() made is still of the same database."""
    derived = database.engine.execution_options(isolation_level="REPEATABLE READ")
    other = Database(derived, deployed)
    assert work(other, 1) == 0

    def use() -> int:
        with Session(derived) as session:
            assert database.using(session).patients.get("PT-3").ssn == ssn(3)
        with Session(database.engine) as session:
            assert other.using(session).patients.get("PT-3").ssn == ssn(3)
        return work(database, 1) + work(other, 1)

    children = [Child(use) for _ in range(2)]
    assert [use(), *(child.result() for child in children)] == [0, 0, 0]


@pytest.mark.parametrize("pool", SYNC_POOLS, ids=pool_name)
def test_an_engine_that_is_prepared_after_the_fork(
    url: URL, deployed: VaultKeyProvider, pool: type[Pool] | None
) -> None:
    """Connections of its pool that nobody had seen before are the parent's, and the child replaces them."""
    engine = sqlalchemy.create_engine(url, **options(pool))
    with engine.connect() as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    children = [Child(lambda: work(Database(engine, deployed))) for _ in range(2)]
    assert [child.result() for child in children] == [0, 0]
    if pool is not NullPool:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) == before
    assert work(Database(engine, deployed)) == 0
    engine.dispose()


def test_a_connection_from_before_prepare_is_replaced(url: URL, deployed: VaultKeyProvider) -> None:
    """In the process that opened it as well: nobody saw how it was made."""
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        before = connection.scalar(text("SELECT pg_backend_pid()"))
    prepare(engine)
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) != before
    assert work(Database(engine, deployed), 1) == 0
    engine.dispose()


@pytest.mark.parametrize("pool", SYNC_POOLS, ids=pool_name)
def test_a_fork_that_runs_no_hook_of_python(url: URL, deployed: VaultKeyProvider, pool: type[Pool] | None) -> None:
    """The first transaction finds that this is another process, before it takes a connection out of the pool."""
    with Database(create_engine(url, **options(pool)), deployed) as database:
        assert work(database, 1) == 0
        children = [Child(lambda: work(database), fork=fork_in_c) for _ in range(2)]
        assert work(database) == 0
        assert [child.result() for child in children] == [0, 0]


def test_a_session_of_the_applications_own_after_a_fork_without_hooks(url: URL, deployed: VaultKeyProvider) -> None:
    """The check at checkout replaces the connection, where nothing of ours came first and nothing pings it."""
    engine = create_engine(url, pool_pre_ping=False)
    database = Database(engine, deployed)
    assert work(database, 1) == 0

    def use() -> int:
        with Session(engine) as session:
            pid = pid_of(session)
            assert database.using(session).patients.get("PT-4").ssn == ssn(4)
        return pid

    before = use()
    children = [Child(use, fork=fork_in_c) for _ in range(2)]
    assert len({before, *(child.result() for child in children)}) == 3
    assert use() == before
    engine.dispose()


@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_a_creator_that_hands_on_the_parents_connections(
    url: URL, deployed: VaultKeyProvider, fork: Callable[[], int]
) -> None:
    """As a pool of the driver's own does: a child gets an error that says so, and the parent's connections stay usable."""
    address = url.set(drivername="postgresql").update_query_dict({"require_auth": "scram-sha-256"})
    opened = [psycopg.connect(address.render_as_string(hide_password=False)) for _ in range(3)]
    idle = list(opened)
    engine = sqlalchemy.create_engine("postgresql+psycopg://", poolclass=NullPool, creator=lambda: idle.pop())
    database = Database(engine, deployed)
    assert work(database, 1) == 0

    def use() -> int:
        with pytest.raises(ConfigurationError, match="another process opened"), Session(engine) as session:
            session.execute(text("SELECT 1"))
        with pytest.raises(ConfigurationError, match="another process opened"), database.transaction() as tx:
            tx.patients.get("PT-1")
        idle.append(psycopg.connect(address.render_as_string(hide_password=False)))
        return work(database, 1)

    assert [child.result() for child in [Child(use, fork=fork) for _ in range(2)]] == [0, 0]
    assert work(database, 1) == 0
    for each in opened:
        each.close()


@pytest.mark.parametrize("pool", SYNC_POOLS, ids=pool_name)
def test_a_session_of_the_applications_own_that_connects_first(
    url: URL, deployed: VaultKeyProvider, pool: type[Pool] | None
) -> None:
    """After a fork without hooks: the connection that it opens is the child's own, and stays usable."""
    engine = create_engine(url, **options(pool))
    database = Database(engine, deployed)
    engine.dispose()

    def use() -> str | None:
        with Session(engine) as session:
            session.execute(text("SELECT 1"))
            return database.using(session).patients.get("PT-4").ssn

    assert Child(use, fork=fork_in_c).result() == ssn(4)
    engine.dispose()


@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_children_make_different_ids(fork: Callable[[], int]) -> None:
    """Though they began with the state of the same random number generator, at the same time."""
    uuid7()
    children = [Child(lambda: [str(uuid7()) for _ in range(1000)], fork=fork) for _ in range(2)]
    made = [{each[15:] for each in child.result()} for child in children]
    assert not made[0] & made[1]  # nor are they the same but for the time


def test_threads_that_meet_a_fork_without_hooks_at_once(database: Database) -> None:
    """One of them renews what was inherited, and the others wait for it."""

    def use() -> int:
        wrong: list[int] = []
        threads = [threading.Thread(target=lambda: wrong.append(work(database, 1))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == len(threads)
        return sum(wrong)

    assert Child(use, fork=fork_in_c).result() == 0


def pool_task(number: int) -> int:
    assert POOLED is not None
    return work(POOLED, 1)


POOLED: Database | None = None


def test_a_pool_of_processes(database: Database) -> None:
    """Multiprocessing forks its workers, and whatever a module holds is used in each."""
    global POOLED  # noqa: PLW0603  # tasks find it as an application's do
    POOLED = database
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(3) as workers:
            found = workers.map_async(pool_task, range(12)).get(60)
    assert found == [0] * 12


@dataclass
class Tally:
    """What became of the children of all trials."""

    reads_wrong: int = 0
    errors: int = 0
    hung: int = 0


@contextmanager
def busy(database: Database) -> Iterator[Callable[[], int]]:
    """Let another thread of the parent work as long as the block does; give what returns how many of its reads were wrong."""
    ends, wrong = threading.Event(), []

    def run() -> None:
        while not ends.is_set():
            wrong.append(work(database, 1))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: sum(wrong)
    finally:
        ends.set()
        thread.join()


def run_trials(database: Database, trials: int) -> Tally:
    """Fork two children again and again, which read and write at once, as two threads of the parent do."""
    tally = Tally()
    with busy(database) as wrong_of_one, busy(database) as wrong_of_another:
        for _ in range(trials):
            children = [Child(lambda: work(database)) for _ in range(2)]
            for child in children:
                try:
                    tally.reads_wrong += child.result()
                except ChildError:
                    tally.errors += 1
                except HungError:
                    tally.hung += 1
    tally.reads_wrong += wrong_of_one() + wrong_of_another()
    return tally


def test_a_fork_waits_for_work_that_it_must_not_cut_in_two() -> None:
    """A child that inherited a lock of OpenSSL while a thread held it waited for it without end, once in 600 forks."""
    has_begun, done = threading.Event(), []

    def make_context() -> None:
        with UNFORKED:
            has_begun.set()
            for _ in range(500):  # until somebody wants to fork
                if not UNFORKED._forks:
                    time.sleep(0.001)
            done.append("the context")

    thread = threading.Thread(target=make_context)
    thread.start()
    has_begun.wait()
    assert Child(lambda: list(done)).result() == ["the context"]
    thread.join()
    with UNFORKED:  # a fork by who is at such work itself does not wait for ever
        assert Child(lambda: "a child").result() == "a child"


@pytest.mark.parametrize("trials", [TRIALS, pytest.param(LONG_TRIALS, marks=pytest.mark.long)])
def test_trials(database: Database, trials: int) -> None:
    """None wrong, none failed, none hung."""
    assert run_trials(database, trials) == Tally(0, 0, 0)
