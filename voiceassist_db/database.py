"""The front door of application code: a database with its keys, and a transaction with its repositories."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, memoized_property

from voiceassist_db import config, forks
from voiceassist_db.drivers import require_psycopg
from voiceassist_db.engine import create_async_engine, create_engine, prepare
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.execution import translated
from voiceassist_db.interrupts import Interrupt
from voiceassist_db.keyring import DEFAULT_TTL_S, KeyringSource
from voiceassist_db.keys import KeyProvider
from voiceassist_db.repositories import ClinicalNoteRepository, EncryptedRecord, PatientRepository, Repository
from voiceassist_db.sessions import AnySession, require_bound

T = TypeVar("T")
RepositoryT = TypeVar("RepositoryT", bound=Repository[Any])
RecordT = TypeVar("RecordT", bound=EncryptedRecord)

AnyAsyncSession = AsyncSession | async_scoped_session[AsyncSession]
"""What application code on an event loop may hand over."""


class Repositories:
    """The repositories of one session or connection. They never commit; whoever owns the session does.

    ``Database.transaction`` and ``Database.using`` make them.

    Attributes:
        session: The session or connection.
    """

    def __init__(self, session: AnySession, keys: KeyringSource, engine: Engine | None = None) -> None:
        self.session = session
        self._keys = keys
        self._engine = engine  # which the session must use for a table; None where it is sure to

    # Not by functools.cached_property: in Python 3.11 it has a lock, which another thread may hold when this process is forked.
    @memoized_property
    def patients(self) -> PatientRepository:
        """The patients."""
        return self.repository(PatientRepository)

    @memoized_property
    def clinical_notes(self) -> ClinicalNoteRepository:
        """Their notes."""
        return self.repository(ClinicalNoteRepository)

    @overload
    def repository(self, kind: type[RepositoryT]) -> RepositoryT: ...

    @overload
    def repository(self, kind: type[RecordT]) -> Repository[RecordT]: ...

    def repository(self, kind: type[Any]) -> Any:
        """Return a repository of another table, in the same session.

        Args:
            kind: The repository's class, or an ``EncryptedRecord``.

        Returns:
            The repository.

        Raises:
            ValueError: The session uses another engine for this table, whose database the keys need not fit; or the class is neither a
                repository nor an ``EncryptedRecord``.
        """
        kind = getattr(kind, "__repository__", kind)
        if not (isinstance(kind, type) and issubclass(kind, Repository)):
            given = kind.__name__ if isinstance(kind, type) else repr(type(kind))
            raise ValueError(f"{given} is no repository: give its Repository class, or an EncryptedRecord of one class")
        if self._engine is not None:
            prepare(require_bound(self.session, self._engine, kind.model))
        return kind(self.session, self._keys)


class Database:
    """A database and its keys.

    Args:
        engine: An engine for PostgreSQL through psycopg. One that was made elsewhere is made fit to send keys.
        provider: The key store.
        ttl_s: Age in seconds after which the keys are fetched again.

    Attributes:
        engine: The engine, prepared to send keys.
        keys: Where repositories read the keys.

    Raises:
        ConfigurationError: The engine is for another database or another driver, or is an async one.
    """

    def __init__(self, engine: Engine, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self.engine = prepare(require_psycopg(engine))
        self.keys = KeyringSource(provider, ttl_s=ttl_s)

    @classmethod
    def from_env(cls) -> Database:
        """Make one of the environment: the database of ``DATABASE_URL``, and keys from Vault (``VAULT_ADDR``) or ``ENCRYPTION_KEY``.

        Returns:
            The database. Nothing is connected yet.

        Raises:
            ConfigurationError: A variable is missing, malformed, or contradicts another one.
            UnsafeConnectionError: ``VAULT_ADDR`` is the address of another machine, without TLS.
        """
        engine = create_engine(config.database_url(), **config.engine_options())
        return cls(engine, config.key_provider())

    @contextmanager
    def transaction(self) -> Iterator[Repositories]:
        """Give repositories in a transaction that commits at the end of the block, and rolls back on an exception.

        Returns:
            A context manager with the repositories.

        Raises:
            VoiceAssistDBError: In place of every error of the database. An exception of the block itself passes unchanged.
        """
        forks.follow()
        interrupt = Interrupt()
        with interrupt.outlasts(), translated(), Session(self.engine) as session, session.begin(), interrupt.seen():
            yield Repositories(session, self.keys)

    def using(self, session: AnySession) -> Repositories:
        """Give repositories on a session or connection of the caller's own, who keeps its transaction.

        Args:
            session: A session, a ``scoped_session``, or a connection. A session with ``binds`` is asked for the engine of each table.

        Returns:
            The repositories.

        Raises:
            ValueError: It uses another engine for the patients, whose database these keys need not fit; or its
                ``schema_translate_map`` would move the table.
        """
        return _handed_over(session, self.keys, self.engine)

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handed_over(session: AnySession, keys: KeyringSource, engine: Engine) -> Repositories:
    forks.follow()
    repositories = Repositories(session, keys, engine)
    if _has_patients(session):
        _ = repositories.patients  # a session of another engine is refused here, and not at the first read
    return repositories


def _has_patients(session: AnySession) -> bool:
    """Say whether a session has an engine for the patients: one with binds for other tables only need not."""
    if isinstance(session, Connection):
        return True
    try:
        session.get_bind(mapper=PatientRepository.model)
    except UnboundExecutionError:
        return not session.binds
    return True


class AsyncTransaction:
    """A transaction on an event loop: hands its repositories to functions that run beside it, on the same connection.

    ``AsyncDatabase.transaction`` and ``AsyncDatabase.using`` make it.

    Attributes:
        session: The async session.
    """

    def __init__(self, session: AnyAsyncSession, keys: KeyringSource, engine: Engine | None = None) -> None:
        self.session = session
        self._keys = keys
        self._engine = engine

    async def run(self, work: Callable[[Repositories], T]) -> T:
        """Run code that uses repositories, such as ``lambda tx: tx.patients.get("PT-001")``.

        The loop goes on while the database and the key store are waited for.

        Args:
            work: What is called with the repositories. It must not be a coroutine function.

        Returns:
            What ``work`` returned.
        """
        session = _of_this_scope(self.session)
        handled = sys.exception()
        try:
            return await session.run_sync(lambda session: work(Repositories(session, self._keys, self._engine)))
        except VoiceAssistDBError as error:
            # The work has a stack of its own, so Python does not know that its error came while the caller handled another one.
            if error.__context__ is None and error is not handled:
                error.__context__ = handled
            raise


def _of_this_scope(session: AnyAsyncSession) -> AsyncSession:
    if isinstance(session, async_scoped_session):
        return session()
    return session


def _wait_on_loop(landed: Future[None], seconds: float) -> None:
    """Wait in a greenlet of the event loop, as repositories run, until a future of a thread is done."""
    await_only(_done(landed, seconds))


async def _done(landed: Future[None], seconds: float) -> None:
    waiting = asyncio.wrap_future(landed)
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()


class AsyncDatabase:
    """The same for asyncio: the same repositories, run by ``AsyncSession.run_sync``.

    Args:
        engine: An async engine for PostgreSQL through psycopg.
        provider: The key store; it is asked from a thread.
        ttl_s: Age in seconds after which the keys are fetched again.

    Raises:
        ConfigurationError: The engine is for another database or another driver, or is no async one.
    """

    def __init__(self, engine: AsyncEngine, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        prepare(require_psycopg(engine, is_async=True))
        self.engine = engine
        self.keys = KeyringSource(provider, ttl_s=ttl_s, wait=_wait_on_loop)

    @classmethod
    def from_env(cls) -> AsyncDatabase:
        """Make one of the environment, as :meth:`Database.from_env` does.

        Returns:
            The database. Nothing is connected yet.

        Raises:
            ConfigurationError, UnsafeConnectionError: As there.
        """
        engine = create_async_engine(config.database_url(), **config.engine_options())
        return cls(engine, config.key_provider())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Give a transaction that commits at the end of the block, and rolls back on an exception.

        Returns:
            An async context manager with the transaction.

        Raises:
            VoiceAssistDBError: As for :meth:`Database.transaction`.
        """
        forks.follow()
        interrupt = Interrupt()
        with interrupt.outlasts(), translated():
            async with AsyncSession(self.engine) as session, session.begin():
                with interrupt.seen():
                    yield AsyncTransaction(session, self.keys)

    def using(self, session: AnyAsyncSession) -> AsyncTransaction:
        """Give repositories on an async session of the caller's own, who keeps its transaction.

        Args:
            session: A session, or an ``async_scoped_session``.

        Returns:
            The transaction.

        Raises:
            ValueError: As for :meth:`Database.using`.
        """
        engine = self.engine.sync_engine
        _handed_over(_of_this_scope(session).sync_session, self.keys, engine)
        return AsyncTransaction(session, self.keys, engine)

    async def close(self) -> None:
        """Close the pooled connections."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
