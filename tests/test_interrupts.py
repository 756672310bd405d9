"""Interrupts and cancellations, at every message and at random: none is lost, no connection is, and nobody gets another's rows."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Engine, NestedTransaction, RootTransaction, Transaction, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from tests.interrupting import (
    ASYNC_WORK,
    WORK,
    AsyncWork,
    Interrupter,
    Limit,
    Places,
    Timeout,
    Work,
    a_in_a_made_session,
    name_of,
    patient,
)
from tests.rotation.proxy import Point, Proxy, proxied
from voiceassist_db import AsyncDatabase, Database, create_async_engine, create_engine
from voiceassist_db.errors import DuplicateError
from voiceassist_db.keys import KeyProvider

POOL = 2
KNOWN = [f"PT-{number}" for number in range(10)]
GIVE_UP_S = 30
REASON = "Cancelled by cancel scope 1"
"""anyio knows its own cancellations by such a message."""

MODES = ["asked", "answered", "cut", "twice"]
"""When the interrupt comes: before the server has the message, before the client has the answer, while the network fails, or twice."""

WORDS = [b"", b"SAVEPOINT", b"INSERT", b"UPDATE", b"RELEASE", b"COMMIT"]
"""What the messages of the short form hold, and their answers; the first is the pool's ping."""

PID = text("SELECT pg_catalog.pg_backend_pid()")
BUSY = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend' AND state <> 'idle'"
)


@dataclass
class Ledger:
    """What trials came to.

    Attributes:
        database: A database that nothing disturbs.
        interrupted: How often work was interrupted, by place.
        kept: How often its patients are stored all the same.
    """

    database: Database
    interrupted: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    _number: int = 0

    def new_ids(self, count: int = 8) -> list[str]:
        """Return ids of patients who are not stored."""
        self._number += 1
        return [f"NEW-{self._number}-{position}" for position in range(count)]

    def check(self, ids: Sequence[str], interrupted_in: str | None) -> None:
        """Assert that all of a work's patients are stored or none, and all where it was not interrupted; count it."""
        with self.database.transaction() as tx:
            found = tx.patients.get_many(ids)
        assert len(found) in (0, len(ids))
        assert found or interrupted_in is not None
        assert all(each.name == name_of(patient_id) for patient_id, each in found.items())
        if interrupted_in is not None:
            self.interrupted[interrupted_in] += 1
            self.kept += bool(found)

    def until_quiet(self) -> None:
        """Wait until the server has done what it was sent before its client went away; assert that nothing is left open."""
        give_up = time.monotonic() + GIVE_UP_S
        with self.database.engine.connect() as connection:
            while connection.scalar(BUSY):
                assert time.monotonic() < give_up, "a connection is left in a transaction"
                connection.rollback()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger; the patients who are known to everybody are stored."""
    with database.transaction() as tx:
        tx.patients.add_many([patient(each) for each in KNOWN])
        tx.patients.add_many([patient(f"OTHER-{number}") for number in range(300)])
    return Ledger(database)


@pytest.fixture
def proxy(database_url: URL) -> Iterator[Proxy]:
    """A proxy to the server."""
    assert database_url.host is not None
    with proxied(database_url.host, database_url.port or 5432) as made:
        yield made


@pytest.fixture
def small(proxy: Proxy, database_url: URL, provider: KeyProvider) -> Iterator[Database]:
    """A database behind the proxy, with a small pool."""
    engine = create_engine(database_url.set(port=proxy.port), pool_size=POOL, max_overflow=0, pool_timeout=GIVE_UP_S)
    with Database(engine, provider) as made:
        yield made


@pytest.fixture
async def small_async(proxy: Proxy, database_url: URL, provider: KeyProvider) -> AsyncIterator[AsyncDatabase]:
    """The same for asyncio."""
    url = database_url.set(port=proxy.port)
    engine = create_async_engine(url, pool_size=POOL, max_overflow=0, pool_timeout=GIVE_UP_S)
    async with AsyncDatabase(engine, provider) as made:
        yield made


@pytest.fixture
def interrupter(request: pytest.FixtureRequest) -> Iterator[Interrupter]:
    """What interrupts the main thread, by SIGINT."""
    made = Interrupter(getattr(request, "param", KeyboardInterrupt))
    with made.installed():
        yield made


def require_returned(engine: Engine) -> int:
    """Assert that all connections of a pool are back in it, and return how many it has."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    if pool.checkedout():
        gc.collect()  # an interrupt within the pool itself leaves a connection to the collector
    assert pool.checkedout() == 0
    return pool.size()


def require_whole(db: Database) -> None:
    """Assert that all connections of the pool can be used at once, and that each user reads its own patient."""
    size = require_returned(db.engine)
    pids = set()
    with ExitStack() as stack:
        for patient_id in KNOWN[:size]:
            tx = stack.enter_context(db.transaction())
            assert tx.patients.get(patient_id).name == name_of(patient_id)
            session: Any = tx.session
            pids.add(session.execute(PID).scalar_one())
    assert len(pids) == size
    require_returned(db.engine)


async def require_whole_async(db: AsyncDatabase) -> None:
    """The same for asyncio."""
    size = require_returned(db.engine.sync_engine)
    pids = set()
    async with AsyncExitStack() as stack:
        for patient_id in KNOWN[:size]:
            tx = await stack.enter_async_context(db.transaction())
            assert await read_name(tx, patient_id) == name_of(patient_id)
            pids.add((await tx.session.execute(PID)).scalar_one())
    assert len(pids) == size
    require_returned(db.engine.sync_engine)


async def read_name(tx: Any, patient_id: str) -> str:
    """Read a patient's name."""
    name: str = await tx.run(lambda tx: tx.patients.get(patient_id).name)
    return name


def everywhere(mode: str) -> Iterator[Point]:
    """Yield a point at each message in turn, until there is no further one, and at those that a work surely has."""
    for number in itertools.count():
        point = Point(skipped=number, is_answer=mode == "answered")
        yield point
        if not point.is_past:
            break
    yield from at_words(mode)


def at_words(mode: str) -> Iterator[Point]:
    """Yield a point at some messages only."""
    yield from (Point(words, is_answer=mode == "answered") for words in WORDS)


@contextmanager
def happening(proxy: Proxy, point: Point, interrupt: Callable[[], object], mode: str) -> Iterator[threading.Event]:
    """Let something happen at a point, at the latest at the end of the block: else it would cut the next trial's connection.

    What is given is set when it has happened.
    """
    is_over = threading.Event()

    def happens() -> None:
        interrupt()
        if mode == "cut":
            proxy.cut()
        elif mode == "twice":
            time.sleep(0.005)
            interrupt()
        is_over.set()

    point.happens = happens
    proxy.point = point
    yield is_over
    proxy.point = None
    if point.met:
        assert is_over.wait(60)


def place(point: Point, places: Places, task: object = None) -> str:
    """Return where an interrupt came, of which the message tells the COMMIT."""
    return "commit" if b"COMMIT" in point.met else places.of(task)


def interrupt_at(
    points: Iterator[Point], db: Database, ledger: Ledger, proxy: Proxy, interrupter: Interrupter, work: Work, mode: str
) -> None:
    """Interrupt a work at each of some points, one trial each."""
    places = Places(db.engine)
    require_whole(db)
    for point in points:
        ids = ledger.new_ids()
        where = "outside"

        def interrupt(point: Point = point) -> None:
            nonlocal where
            where = place(point, places)
            interrupter()

        with happening(proxy, point, interrupt, mode):
            is_interrupted = interrupter.run(lambda ids=ids: work(db, ids, lambda: None))  # type: ignore[misc]
        ledger.until_quiet()
        ledger.check(ids, where if is_interrupted else None)
        require_whole(db)


async def cancel_at(
    points: Iterator[Point], db: AsyncDatabase, ledger: Ledger, proxy: Proxy, work: AsyncWork, mode: str
) -> None:
    """Cancel a work at each of some points, one trial each; what cancelled it leaves it as it was."""
    places = Places(db.engine.sync_engine)
    loop = asyncio.get_running_loop()
    await require_whole_async(db)
    for point in points:
        trial = Cancelled(ledger.new_ids())
        task = asyncio.create_task(trial.run(db, work))

        def interrupt(trial: Cancelled = trial, task: asyncio.Task[None] = task, point: Point = point) -> None:
            trial.where = place(point, places, task)
            is_asked = threading.Event()

            def cancel() -> None:
                trial.cancel(task)
                is_asked.set()

            loop.call_soon_threadsafe(cancel)
            is_asked.wait(60)  # a cut that came first would end the task by an error of its own

        with happening(proxy, point, interrupt, mode) as is_over:
            await asyncio.wait({task})
            proxy.point = None
            if point.met:
                await asyncio.to_thread(is_over.wait, 60)  # which may wait for this loop
        await asyncio.to_thread(ledger.until_quiet)
        await asyncio.to_thread(trial.check, task, ledger)
        await require_whole_async(db)


class Cancelled:
    """A work that may be cancelled."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self.where = "outside"
        self._is_requested = False
        self._reasons: set[tuple[Any, ...]] = set()
        self._work: AsyncWork | None = None

    async def run(
        self, db: AsyncDatabase, work: AsyncWork, pause: Callable[[], Any] = lambda: asyncio.sleep(0)
    ) -> None:
        """Do the work."""
        self._work = work
        try:
            await work(db, self.ids, pause)
        except asyncio.CancelledError as error:
            self._reasons.add(error.args)
            raise

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel it, unless it is done."""
        self._is_requested |= task.cancel(REASON)

    def check(self, task: asyncio.Task[None], ledger: Ledger) -> None:
        """Assert that it is cancelled where it was asked to, and check its patients."""
        if not self._is_requested:
            task.result()
        if not (self.where == "commit" and self._work is a_in_a_made_session and _has_lost_commit(task)):
            assert task.cancelled() == self._is_requested, f"the cancellation was lost: {task}"
        assert self._reasons <= {(REASON,)}, "another cancellation took its place"
        ledger.check(self.ids, self.where if self._is_requested else None)


def _has_lost_commit(task: asyncio.Task[None]) -> bool:
    """Say whether a task ended by the failure of its COMMIT: SQLAlchemy's own, in a task that it does not cancel."""
    return not task.cancelled() and isinstance(task.exception(), OperationalError)


@pytest.mark.parametrize("mode", ["asked", "cut"])
def test_an_interrupt_reaches_the_caller(
    small: Database, ledger: Ledger, proxy: Proxy, interrupter: Interrupter, mode: str
) -> None:
    """Whatever it cuts: the ping of the pool, a savepoint, a pipeline, COMMIT."""
    interrupt_at(at_words(mode), small, ledger, proxy, interrupter, WORK["in_savepoint"], mode)
    require_counted(ledger)


@pytest.mark.parametrize("mode", ["cut", "twice"])
async def test_a_cancellation_ends_the_task(
    small_async: AsyncDatabase, ledger: Ledger, proxy: Proxy, mode: str
) -> None:
    """Whatever it cuts, and with the message that it was made with."""
    await cancel_at(at_words(mode), small_async, ledger, proxy, ASYNC_WORK["a_in_savepoint"], mode)
    require_counted(ledger)


def require_counted(ledger: Ledger) -> None:
    """Assert that interrupts came in savepoints and during COMMIT."""
    assert ledger.interrupted["savepoint"] >= 1
    assert ledger.interrupted["commit"] >= 1


@pytest.mark.wide
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_at_any_message_reaches_the_caller(
    small: Database, ledger: Ledger, proxy: Proxy, interrupter: Interrupter, name: str, mode: str
) -> None:
    """In every way in which an application may begin and end."""
    interrupt_at(everywhere(mode), small, ledger, proxy, interrupter, WORK[name], mode)
    require_counted(ledger)


@pytest.mark.wide
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ASYNC_WORK)
async def test_a_cancellation_at_any_message_ends_the_task(
    small_async: AsyncDatabase, ledger: Ledger, proxy: Proxy, name: str, mode: str
) -> None:
    """The same for tasks."""
    await cancel_at(everywhere(mode), small_async, ledger, proxy, ASYNC_WORK[name], mode)
    require_counted(ledger)


@pytest.mark.parametrize(
    "interrupter", [Timeout, Limit, pytest.param(SystemExit, marks=pytest.mark.wide)], indirect=True
)
def test_what_a_signal_handler_raises_reaches_the_caller(
    small: Database, ledger: Ledger, proxy: Proxy, interrupter: Interrupter
) -> None:
    """Also what the driver does not know, which leaves its connection in the middle of a statement."""
    interrupt_at(at_words("asked"), small, ledger, proxy, interrupter, WORK["in_two_savepoints"], "asked")
    require_counted(ledger)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, pytest.param(Timeout, marks=pytest.mark.wide)])
def test_an_interrupt_of_the_application_outlasts_a_lost_connection(
    small: Database, ledger: Ledger, proxy: Proxy, kind: type[BaseException]
) -> None:
    """It waits for something else, while the connection is lost: so the rollback is the first to learn of that."""

    def pause() -> None:
        proxy.cut()
        raise kind

    for work in WORK.values():
        with pytest.raises(kind):
            work(small, ledger.new_ids(), pause)
        require_whole(small)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, pytest.param(Timeout, marks=pytest.mark.wide)])
async def test_a_cancellation_of_the_application_outlasts_a_lost_connection(
    small_async: AsyncDatabase, ledger: Ledger, proxy: Proxy, kind: type[BaseException]
) -> None:
    """The same for tasks."""
    task: asyncio.Task[None]

    async def pause() -> None:
        proxy.cut()
        if kind is Timeout:
            raise Timeout
        task.cancel(REASON)
        await asyncio.sleep(GIVE_UP_S)

    for work in ASYNC_WORK.values():
        task = asyncio.create_task(Cancelled(ledger.new_ids()).run(small_async, work, pause))
        with pytest.raises(kind):
            await task
        await require_whole_async(small_async)


@pytest.mark.parametrize("kind", [RootTransaction, NestedTransaction])
def test_an_interrupt_as_a_commit_begins_reaches_the_caller(
    database: Database, ledger: Ledger, kind: type[Transaction]
) -> None:
    """SQLAlchemy then finds its transaction in a state that it takes for impossible, and raises an AssertionError."""
    ids = ledger.new_ids()

    def interrupted(_: Transaction) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "_do_commit", interrupted)
        WORK["in_two_savepoints"](database, ids, lambda: None)
    require_returned(database.engine)
    ledger.check(ids, "commit")
    assert ledger.kept == 0


def test_an_assertion_of_the_application_stays_one(database: Database) -> None:
    """It may be raised where an interrupt is handled, and in its place."""
    with pytest.raises(AssertionError, match="my own"), database.transaction():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AssertionError("my own") from None


@pytest.mark.parametrize("in_savepoint", [False, True])
def test_an_interrupt_at_the_end_of_a_pipeline_reaches_the_caller(
    database: Database, ledger: Ledger, in_savepoint: bool
) -> None:
    """The driver then cannot end its pipeline, and that error takes the interrupt's place."""
    ids = ledger.new_ids()

    def interrupted(pipeline: psycopg.Pipeline) -> Iterator[None]:
        pipeline.pgconn.pipeline_sync()
        raise KeyboardInterrupt
        yield

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt), database.transaction() as tx:
        patch.setattr(psycopg.Pipeline, "_exit_gen", interrupted)
        with tx.session.begin_nested() if in_savepoint else nullcontext():
            tx.patients.add_many([patient(each) for each in ids])
    require_returned(database.engine)
    ledger.check(ids, "pipeline")
    assert ledger.kept == 0


@pytest.mark.parametrize("in_savepoint", [False, True])
def test_an_interrupt_at_the_beginning_of_a_pipeline_reaches_the_caller(
    database: Database, ledger: Ledger, in_savepoint: bool
) -> None:
    """Of a session of the application's own, too. The driver then takes its pipeline for one that was left, and asserts that it is."""
    ids = ledger.new_ids()
    begin = psycopg.Pipeline._enter_gen

    def interrupted(pipeline: psycopg.Pipeline) -> Iterator[Any]:
        yield from begin(pipeline)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(psycopg.Pipeline, "_enter_gen", interrupted)
        with (
            Session(database.engine) as session,
            session.begin(),
            session.begin_nested() if in_savepoint else nullcontext(),
        ):
            database.using(session).patients.add_many([patient(each) for each in ids])
    require_returned(database.engine)
    ledger.check(ids, "pipeline")
    assert ledger.kept == 0


def test_an_error_of_the_driver_stays_one_where_an_interrupt_is_handled(database: Database, ledger: Ledger) -> None:
    """That interrupt came before the statement, and is the application's own affair."""
    with database.transaction() as tx:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            with pytest.raises(DuplicateError), tx.session.begin_nested():
                tx.patients.add(patient(KNOWN[0]))


CANCELLATIONS = 3000
INTERRUPTS = 300
TASKS = 40
SEED = 12


@pytest.mark.long
async def test_cancellations_at_random(database_url: URL, provider: KeyProvider, ledger: Ledger) -> None:
    """3,000 of them, of tasks that share a pool of ten, while others read their own patients all the time."""
    chance = random.Random(SEED)  # noqa: S311  # no key is made of it
    engine = create_async_engine(database_url, pool_size=10, max_overflow=0, pool_timeout=GIVE_UP_S)
    places = Places(engine.sync_engine)
    trials: list[tuple[Cancelled, asyncio.Task[None]]] = []

    async def cancel_often(db: AsyncDatabase) -> None:
        while sum(task.cancelled() for _, task in trials) < CANCELLATIONS:
            trial = Cancelled(ledger.new_ids())
            task = asyncio.create_task(trial.run(db, chance.choice(list(ASYNC_WORK.values()))))
            trials.append((trial, task))
            place, delay = chance.choice(["any", "savepoint", "savepoint", "commit"]), chance.uniform(0, 0.1)
            while place not in ("any", places.of(task)) and not task.done():  # noqa: ASYNC110  # the place is of another task
                await asyncio.sleep(0)
            if place != "commit":
                await asyncio.sleep(delay if place == "any" else delay / 20)
            trial.where = places.of(task)
            trial.cancel(task)
            await asyncio.wait({task})

    async def read_always(db: AsyncDatabase, patient_id: str) -> None:
        while True:
            async with db.transaction() as tx:
                assert await read_name(tx, patient_id) == name_of(patient_id)

    async with AsyncDatabase(engine, provider) as db:
        readers = [asyncio.create_task(read_always(db, each)) for each in KNOWN[:5]]
        await asyncio.gather(*(cancel_often(db) for _ in range(TASKS)))
        assert not any(each.done() for each in readers), "a reader failed"
        for each in readers:
            each.cancel()
        await asyncio.wait(readers)
        await asyncio.to_thread(ledger.until_quiet)
        for trial, task in trials:
            await asyncio.to_thread(trial.check, task, ledger)
        await require_whole_async(db)
    report(ledger)
    assert ledger.interrupted.total() >= CANCELLATIONS
    assert ledger.interrupted["savepoint"] >= CANCELLATIONS // 2
    assert ledger.interrupted["commit"] >= 1


@pytest.mark.long
def test_interrupts_at_random(
    database_url: URL, provider: KeyProvider, ledger: Ledger, interrupter: Interrupter
) -> None:
    """300 of them, by SIGINT at any moment, not only while the database is waited for."""
    chance = random.Random(SEED)  # noqa: S311  # no key is made of it
    engine = create_engine(database_url, pool_size=POOL, max_overflow=0, pool_timeout=GIVE_UP_S)
    places = Places(engine)

    def interrupt_in(place: str, delay: float) -> str:
        give_up = time.monotonic() + 1
        while place not in ("any", places.of()) and time.monotonic() < give_up:
            time.sleep(0)
        time.sleep(delay)
        where = places.of()
        interrupter()
        return where

    with Database(engine, provider) as db, ThreadPoolExecutor(1) as executor:
        require_whole(db)
        while ledger.interrupted.total() < INTERRUPTS or ledger.interrupted["savepoint"] < INTERRUPTS // 2:
            ids, work = ledger.new_ids(), chance.choice(list(WORK.values()))
            place = chance.choice(["any", "savepoint", "savepoint", "commit"])
            delay = chance.uniform(0, {"any": 0.02, "savepoint": 0.005, "commit": 0}[place])
            where = executor.submit(interrupt_in, place, delay)
            is_interrupted = interrupter.run(lambda ids=ids, work=work: work(db, ids, lambda: None))  # type: ignore[misc]
            came_in = where.result()
            ledger.until_quiet()
            ledger.check(ids, came_in if is_interrupted else None)
            require_whole(db)
            places.forget()
    report(ledger, interrupter)
    assert ledger.interrupted["savepoint"] >= INTERRUPTS // 2
    assert ledger.interrupted["commit"] >= 1


def report(ledger: Ledger, interrupter: Interrupter | None = None) -> None:
    """Print the figures of a long trial."""
    swallowed = interrupter.swallowed if interrupter else 0
    print(f"{dict(ledger.interrupted)}, {ledger.kept} kept, {swallowed} swallowed by Python in a finaliser")
