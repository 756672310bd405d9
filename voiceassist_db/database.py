"""The front door of application code: a database with its keys, and a transaction with its repositories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from voiceassist_db import config, forks
from voiceassist_db.engine import create_async_engine, create_engine, prepare
from voiceassist_db.execution import Interrupt, translated
from voiceassist_db.keyring import DEFAULT_TTL_S, KeyringSource
from voiceassist_db.keys import KeyProvider
from voiceassist_db.repositories import ClinicalNoteRepository, PatientRepository, Repository

T = TypeVar("T")
RepositoryT = TypeVar("RepositoryT", bound=Repository[Any])


class Repositories:
    """The repositories of one session or connection. They never commit; whoever owns the session does.

    Attributes:
        session: The session or connection.
        patients: The patients.
        clinical_notes: Their notes.
    """

    def __init__(self, session: Session | Connection, keys: KeyringSource) -> None:
        self.session = session
        self._keys = keys
        self.patients = PatientRepository(session, keys)
        self.clinical_notes = ClinicalNoteRepository(session, keys)

    def repository(self, kind: type[RepositoryT]) -> RepositoryT:
        """Return a repository of another table, in the same session."""
        return kind(self.session, self._keys)


class Database:
    """A database and its keys.

    Args:
        engine: An engine for PostgreSQL through psycopg. One that was made elsewhere is made fit to send keys.
        provider: The key store.
        ttl_s: Age in seconds after which the keys are fetched again.
    """

    def __init__(self, engine: Engine, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self.engine = prepare(engine)
        self.keys = KeyringSource(provider, ttl_s=ttl_s)

    @classmethod
    def from_env(cls) -> Database:
        """Take the database from ``DATABASE_URL`` and the keys from Vault (``VAULT_ADDR``), or ``ENCRYPTION_KEY``."""
        engine = create_engine(config.database_url(), **config.engine_options())
        return cls(engine, config.key_provider())

    @contextmanager
    def transaction(self) -> Iterator[Repositories]:
        """Give repositories in a transaction that commits at the end of the block, and rolls back on an exception."""
        forks.follow()
        interrupt = Interrupt()
        with interrupt.outlasts(), translated(), Session(self.engine) as session, session.begin(), interrupt.seen():
            yield Repositories(session, self.keys)

    def using(self, session: Session | Connection) -> Repositories:
        """Give repositories on a session or connection of the caller's own, who keeps its transaction.

        Raises:
            ValueError: It belongs to another engine, whose database these keys need not fit.
        """
        forks.follow()
        engine = session.get_bind() if isinstance(session, Session) else session
        if engine.engine.pool is not self.engine.pool:
            raise ValueError("this session belongs to another engine: give that engine to Database()")
        prepare(engine.engine)  # which may have been made of this one's by execution_options(), or this one of it
        return Repositories(session, self.keys)

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTransaction:
    """A transaction on an event loop: hands its repositories to functions that run beside it, on the same connection."""

    def __init__(self, session: AsyncSession, keys: KeyringSource) -> None:
        self.session = session
        self._keys = keys

    async def run(self, work: Callable[[Repositories], T]) -> T:
        """Run code that uses repositories, such as ``lambda tx: tx.patients.get("PT-001")``.

        The loop goes on while the database and the key store are waited for.
        """
        return await self.session.run_sync(lambda session: work(Repositories(session, self._keys)))


class AsyncDatabase:
    """The same for asyncio: the same repositories, run by ``AsyncSession.run_sync``.

    Args:
        engine: An async engine for PostgreSQL through psycopg.
        provider: The key store; it is asked from a thread.
        ttl_s: Age in seconds after which the keys are fetched again.
    """

    def __init__(self, engine: AsyncEngine, provider: KeyProvider, *, ttl_s: float = DEFAULT_TTL_S) -> None:
        prepare(engine.sync_engine)
        self.engine = engine
        # Repositories run in a greenlet of the event loop, which may wait for a thread that waits for the key store.
        self.keys = KeyringSource(provider, ttl_s=ttl_s, fetch=lambda fetch: await_only(asyncio.to_thread(fetch)))

    @classmethod
    def from_env(cls) -> AsyncDatabase:
        """Take the database and the keys from the environment, as :meth:`Database.from_env` does."""
        engine = create_async_engine(config.database_url(), **config.engine_options())
        return cls(engine, config.key_provider())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTransaction]:
        """Give a transaction that commits at the end of the block, and rolls back on an exception."""
        forks.follow()
        interrupt = Interrupt()
        with interrupt.outlasts(), translated():
            async with AsyncSession(self.engine) as session, session.begin():
                with interrupt.seen():
                    yield AsyncTransaction(session, self.keys)

    def using(self, session: AsyncSession) -> AsyncTransaction:
        """Give repositories on an async session of the caller's own, who keeps its transaction.

        Raises:
            ValueError: It belongs to another engine, whose database these keys need not fit.
        """
        forks.follow()
        if session.get_bind().engine.pool is not self.engine.pool:
            raise ValueError("this session belongs to another engine: give that engine to AsyncDatabase()")
        prepare(session.get_bind().engine)
        return AsyncTransaction(session, self.keys)

    async def close(self) -> None:
        """Close the pooled connections."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
