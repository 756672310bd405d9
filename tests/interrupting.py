"""Work that trials interrupt: each writes its patients in one transaction, with savepoints, in one of the ways that applications use.

Whatever cuts it short, all of its patients are stored or none.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from voiceassist_db import AsyncDatabase, Database, Patient
from voiceassist_db.database import Repositories

Pause = Callable[[], None]
"""Called within a savepoint, where the application waits for something else than the database."""

AsyncPause = Callable[[], Awaitable[None]]
Work = Callable[[Database, Sequence[str], Pause], None]
AsyncWork = Callable[[AsyncDatabase, Sequence[str], AsyncPause], Awaitable[None]]

READ = text("SELECT pg_catalog.count(*) FROM patient_data")


def name_of(patient_id: str) -> str:
    """Return the name that a patient has in every trial."""
    return f"Name {patient_id}"


def patient(patient_id: str) -> Patient:
    """Return a patient."""
    return Patient(patient_id=patient_id, name=name_of(patient_id))


def first(tx: Repositories, ids: Sequence[str]) -> None:
    """Write the first patient."""
    tx.patients.add(patient(ids[0]))


def rest(tx: Repositories, ids: Sequence[str]) -> None:
    """Write the other patients, read long and short, and change one."""
    tx.patients.add_many([patient(each) for each in ids[1:]])
    tx.patients.page(limit=300)
    tx.patients.update(ids[0], name=name_of(ids[0]))
    assert tx.patients.get(ids[0]).name == name_of(ids[0])


def in_savepoint(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """As the README recommends."""
    with db.transaction() as tx:
        first(tx, ids)
        with tx.session.begin_nested():
            rest(tx, ids)
            pause()


def in_two_savepoints(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """One savepoint in another, and SQL of the application's own."""
    with db.transaction() as tx, tx.session.begin_nested():
        first(tx, ids)
        with tx.session.begin_nested():
            tx.session.execute(READ)
            pause()
            rest(tx, ids)


def with_cleaning_up(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """A statement after what was interrupted, which fails where that ended the transaction."""
    with db.transaction() as tx:
        try:
            first(tx, ids)
            with tx.session.begin_nested():
                pause()
                rest(tx, ids)
        finally:
            tx.patients.page(limit=1)


def in_a_session(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """The application's own session and savepoint."""
    with Session(db.engine) as session, session.begin():
        first(db.using(session), ids)
        with session.begin_nested():
            rest(db.using(session), ids)
            pause()


def in_a_session_that_commits(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """A session that begins by itself, and is committed by hand."""
    with Session(db.engine) as session:
        with session.begin_nested():
            first(db.using(session), ids)
            pause()
        rest(db.using(session), ids)
        session.commit()


def in_a_made_session(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """``sessionmaker.begin()``."""
    with sessionmaker(db.engine).begin() as session:
        first(db.using(session), ids)
        with session.begin_nested():
            session.execute(READ)
            rest(db.using(session), ids)
        pause()


def by_hand(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """No block of SQLAlchemy's at all."""
    session = Session(db.engine)
    try:
        savepoint = session.begin_nested()
        try:
            first(db.using(session), ids)
            pause()
        except BaseException:
            savepoint.rollback()
            raise
        savepoint.commit()
        rest(db.using(session), ids)
        session.commit()
    except BaseException:
        session.rollback()
        raise
    finally:
        session.close()


def on_a_connection(db: Database, ids: Sequence[str], pause: Pause) -> None:
    """A connection instead of a session."""
    with db.engine.begin() as connection:
        first(db.using(connection), ids)
        with connection.begin_nested():
            rest(db.using(connection), ids)
            pause()


WORK: dict[str, Work] = {
    each.__name__: each
    for each in (
        in_savepoint,
        in_two_savepoints,
        with_cleaning_up,
        in_a_session,
        in_a_session_that_commits,
        in_a_made_session,
        by_hand,
        on_a_connection,
    )
}


def _both(ids: Sequence[str]) -> Callable[[Repositories], None]:
    """Return all of the work on one greenlet, with its savepoint."""

    def work(tx: Repositories) -> None:
        first(tx, ids)
        with tx.session.begin_nested():
            rest(tx, ids)

    return work


async def a_in_savepoint(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """As the README recommends, in asyncio."""
    async with db.transaction() as tx:
        await tx.run(lambda tx: first(tx, ids))
        async with tx.session.begin_nested():
            await tx.run(lambda tx: rest(tx, ids))
            await pause()


async def a_in_one_call(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """The savepoint is within what is run."""
    async with db.transaction() as tx, tx.session.begin_nested():
        await tx.run(_both(ids))
        await pause()


async def a_with_cleaning_up(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """A statement after what was interrupted."""
    async with db.transaction() as tx:
        try:
            await tx.run(lambda tx: first(tx, ids))
            async with tx.session.begin_nested():
                await pause()
                await tx.run(lambda tx: rest(tx, ids))
        finally:
            await tx.run(lambda tx: tx.patients.page(limit=1))


async def a_in_a_session(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """The application's own session and savepoint."""
    async with AsyncSession(db.engine) as session, session.begin():
        await db.using(session).run(lambda tx: first(tx, ids))
        async with session.begin_nested():
            await session.execute(READ)
            await db.using(session).run(lambda tx: rest(tx, ids))
            await pause()


async def a_in_a_session_that_commits(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """A session that begins by itself, and is committed by hand."""
    async with AsyncSession(db.engine) as session:
        await db.using(session).run(_both(ids))
        await pause()
        await session.commit()


async def a_in_a_made_session(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """``async_sessionmaker.begin()``, whose end SQLAlchemy runs in a task of its own that is not cancelled."""
    async with async_sessionmaker(db.engine).begin() as session:
        await db.using(session).run(lambda tx: first(tx, ids))
        async with session.begin_nested():
            await db.using(session).run(lambda tx: rest(tx, ids))
        await pause()


async def a_by_hand(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """No block of SQLAlchemy's at all."""
    session = AsyncSession(db.engine)
    try:
        savepoint = await session.begin_nested()
        try:
            await db.using(session).run(lambda tx: first(tx, ids))
            await pause()
        except BaseException:
            await savepoint.rollback()
            raise
        await savepoint.commit()
        await db.using(session).run(lambda tx: rest(tx, ids))
        await session.commit()
    except BaseException:
        await session.rollback()
        raise
    finally:
        await session.close()


async def a_on_a_connection(db: AsyncDatabase, ids: Sequence[str], pause: AsyncPause) -> None:
    """A connection instead of a session."""

    def work(connection: Any) -> None:
        repositories = Repositories(connection, db.keys)
        first(repositories, ids)
        with connection.begin_nested():
            rest(repositories, ids)

    async with db.engine.begin() as connection, connection.begin_nested():
        await connection.run_sync(work)
        await pause()


ASYNC_WORK: dict[str, AsyncWork] = {
    each.__name__: each
    for each in (
        a_in_savepoint,
        a_in_one_call,
        a_with_cleaning_up,
        a_in_a_session,
        a_in_a_session_that_commits,
        a_in_a_made_session,
        a_by_hand,
        a_on_a_connection,
    )
}


class Timeout(BaseException):
    """What gevent's is: no Exception, and unknown to the driver."""


class Limit(Exception):  # noqa: N818  # as Celery's SoftTimeLimitExceeded
    """What a signal handler raises in a Celery worker."""


_OF_DROPPED = (GeneratorExit, ResourceWarning)
"""What Python and the driver raise about a connection that an interrupt dropped, and that nobody else knows of."""


class Places:
    """Knows which part of its transaction each task, or the main thread, is in.

    Args:
        engine: The engine whose transactions are watched.
    """

    def __init__(self, engine: Engine) -> None:
        self._known: WeakKeyDictionary[object, str] = WeakKeyDictionary()
        self._main = threading.main_thread()
        for name, place in (
            ("begin", "transaction"),
            ("savepoint", "savepoint"),
            ("release_savepoint", "transaction"),
            ("rollback_savepoint", "transaction"),
            ("commit", "commit"),
        ):
            event.listen(engine, name, self._listener(place))

    def _listener(self, place: str) -> Callable[..., None]:
        def listen(*_: object) -> None:
            self._known[self._here() or self._main] = place

        return listen

    def _here(self) -> object:
        with suppress(RuntimeError):  # there is no event loop
            return asyncio.current_task()
        return None

    def forget(self) -> None:
        """Begin anew: all are outside."""
        self._known.clear()

    def of(self, task: object = None) -> str:
        """Return where a task is, or the main thread: ``outside``, ``transaction``, ``savepoint`` or ``commit``."""
        return self._known.get(task or self._main, "outside")


class Interrupter:
    """Raises an interrupt in the main thread when another thread says so.

    Attributes:
        kind: The interrupt's class.
        raised: How many were raised.
        swallowed: How many of them Python itself swallowed, in the finaliser of an object.
        is_armed: Whether signals raise interrupts now.
    """

    def __init__(self, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.kind = kind
        self.raised = 0
        self.swallowed = 0
        self.is_armed = False
        self._main = threading.main_thread().ident or 0

    def __call__(self) -> None:
        """Send the signal."""
        signal.pthread_kill(self._main, signal.SIGINT)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signal during the block."""
        before, hook = signal.signal(signal.SIGINT, self._handle), sys.unraisablehook

        def count(unraisable: Any) -> None:
            if unraisable.exc_type is self.kind:
                self.swallowed += 1
            elif unraisable.exc_type not in _OF_DROPPED and "_exit_gen" not in repr(unraisable.object):
                hook(unraisable)  # but for a generator of the driver's, whose connection is closed already

        sys.unraisablehook = count
        try:
            yield
        finally:
            sys.unraisablehook = hook
            signal.signal(signal.SIGINT, before)

    def _handle(self, *_: object) -> None:
        if self.is_armed:
            self.raised += 1
            raise self.kind

    def run(self, work: Callable[[], None]) -> bool:
        """Run a work that may be interrupted, and say whether it was; assert that its caller learns of it."""
        raised, swallowed = self.raised, self.swallowed
        is_interrupted = False
        try:
            self.is_armed = True
            work()
            self.is_armed = False
        except self.kind:
            is_interrupted = True
        finally:
            self.is_armed = False
        assert is_interrupted == (self.raised - raised > self.swallowed - swallowed), "the interrupt was lost"
        return is_interrupted
