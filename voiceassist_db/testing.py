"""Fixtures for the tests of an application that keeps encrypted patients: real servers, and nothing to install beside the wheels.

In the application's ``conftest.py``::

    pytest_plugins = ["voiceassist_db.testing"]


    @pytest.fixture(scope="session")
    def voiceassist_tables():
        return Base.metadata.create_all

and a test takes ``voiceassist_database``. One PostgreSQL per process runs for the whole session, from the wheels of the
``embedded`` extra or at the address in ``VOICEASSIST_DB_TEST_DSN``. Each test has a database of its own, copied from one that was
migrated once, and keys of its own, which are in memory. Imports pytest: nothing else of the package may import this module.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, Engine, NullPool, make_url

from voiceassist_db.addresses import plain
from voiceassist_db.database import AsyncDatabase, Database
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.engine import create_async_engine, create_engine
from voiceassist_db.errors import KeysNotFoundError, KeyStoreConflictError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keys import KeySet
from voiceassist_db.masking import Opaque
from voiceassist_db.provisioning import Roles
from voiceassist_db.schema import migrate

__all__ = ["FAST", "SERVER", "Databases", "MemoryKeyProvider", "in_memory", "plain", "throwaway_server"]

SERVER: Final = "VOICEASSIST_DB_TEST_DSN"
"""Variable with the address of a server to use in place of the embedded one: its role needs CREATEDB."""

FAST: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Settings for servers whose data is thrown away."""

_OWNER: Final = "voiceassist_test"
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # no file of a fixed name is made there
_MEMORY_BYTES: Final = (
    2 << 30
)  # room for the databases of several processes; in a container the file system often has 64 MiB
_DROP_TIMEOUT_S: Final = 120


class MemoryKeyProvider(Opaque):
    """A key store in this process: keys can be made, rotated and retired as in Vault, and are gone at its end.

    Args:
        keys: What it holds at first; None: nothing, as a new path in Vault.
    """

    def __init__(self, keys: KeySet | None = None) -> None:
        self._keys = keys

    def fetch(self) -> KeySet:
        """Return the keys.

        Raises:
            KeysNotFoundError: There are none yet.
        """
        if self._keys is None:
            raise KeysNotFoundError("there are no keys yet: call voiceassist_db.initialisation.initialise_keys")
        return self._keys

    def create(self, keys: KeySet) -> None:
        """Store the first keys.

        Args:
            keys: The keys.

        Raises:
            KeyStoreConflictError: There are some already.
        """
        if self._keys is not None:
            raise KeyStoreConflictError("there are keys already")
        self._keys = replace(keys, revision=1, databases=None)

    def replace(self, old: KeySet, new: KeySet) -> None:
        """Store new keys in place of those that were fetched.

        Args:
            old: The keys as they were fetched.
            new: The keys to store.

        Raises:
            KeyStoreConflictError: Others were stored since.
        """
        if self._keys is None or self._keys.revision != old.revision:
            raise KeyStoreConflictError("the keys were changed meanwhile: fetch them again")
        self._keys = replace(new, revision=old.revision + 1, databases=None)

    def copied(self) -> MemoryKeyProvider:
        """Return a key store of its own that holds the same keys now."""
        return MemoryKeyProvider(self._keys)


@contextmanager
def throwaway_server(settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL whose data is thrown away, in memory where there is enough.

    Args:
        settings: Settings of the server, beside ``FAST``.

    Returns:
        A context manager with the server.
    """
    server = EmbeddedPostgres(settings=FAST | dict(settings or {}))
    with in_memory():
        server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def in_memory() -> Iterator[None]:
    """Let what starts in the block keep its temporary files in memory, where there is enough.

    It must start in the block: a server chooses its directory when it starts. A database for a test is copied in 10 ms
    there, and in up to 200 ms on a disk.
    """
    before = tempfile.tempdir
    if _MEMORY.is_mount() and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES:
        tempfile.tempdir = str(_MEMORY)
    try:
        yield
    finally:
        tempfile.tempdir = before


class Databases:
    """Makes and drops databases, all by one connection.

    Args:
        server: Address of the server, as a role that may create databases.
    """

    def __init__(self, server: URL) -> None:
        self._server = server
        self._admin = psycopg.connect(plain(server), autocommit=True)
        self._made: set[str] = set()

    def create(self, template: str | None = None) -> URL:
        """Create a database, empty or as a copy of another that nobody is connected to, and return its address.

        Args:
            template: Name of the database to copy; None: an empty one.
        """
        name = f"voiceassist_test_{secrets.token_hex(6)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' STRATEGY file_copy")
        self._admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        self._made.add(name)
        return self._server.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a database, if it is still there.

        Args:
            url: Its address, as :meth:`create` returned it.
        """
        assert url.database is not None
        self._drop(url.database)
        self._made.discard(url.database)

    def close(self) -> None:
        """Drop what is left."""
        for name in list(self._made):
            self.drop(self._server.set(database=name))
        self._admin.close()

    def _drop(self, name: str) -> None:
        """Drop a database; a role that is no superuser must wait for the connections of others to end."""
        give_up = time.monotonic() + _DROP_TIMEOUT_S
        while True:
            try:
                self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse):
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
            else:
                return


@pytest.fixture(scope="session")
def voiceassist_server() -> Iterator[URL]:
    """Address of a PostgreSQL server, as a role that may create databases and is no superuser. It has the roles of a deployment."""
    if address := os.environ.get(SERVER):
        yield make_url(address).set(drivername="postgresql+psycopg")
        return
    password = secrets.token_urlsafe(24)
    with throwaway_server() as server, psycopg.connect(plain(server.url()), autocommit=True) as admin:
        # Sent as SCRAM's verifier, so that the password itself is in no statement and no log.
        verifier = admin.pgconn.encrypt_password(password.encode(), _OWNER.encode(), b"scram-sha-256").decode()
        create = sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}")
        admin.execute(create.format(sql.Identifier(_OWNER), sql.Literal(verifier)))
        for role in Roles().names():  # so that an application's migrations can grant to them
            admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        yield server.url().set(username=_OWNER, password=password)


@pytest.fixture(scope="session")
def voiceassist_tables() -> Callable[[Engine], Any] | None:
    """What makes the application's own tables, called once with an engine; override it. None: there are only ours."""
    return None


@pytest.fixture(scope="session")
def voiceassist_databases(voiceassist_server: URL) -> Iterator[Databases]:
    """What makes databases on the server; those that are left are dropped at the end."""
    made = Databases(voiceassist_server)
    yield made
    made.close()


@pytest.fixture(scope="session")
def voiceassist_template(
    voiceassist_databases: Databases, voiceassist_tables: Callable[[Engine], Any] | None
) -> tuple[str, MemoryKeyProvider]:
    """Name of a migrated database with all tables and registered keys, and the keys; each test gets a copy of both."""
    url, keys = voiceassist_databases.create(), MemoryKeyProvider()
    engine = create_engine(url, poolclass=NullPool)  # nobody may be connected to a database that is copied
    migrate(engine)
    if voiceassist_tables is not None:
        voiceassist_tables(engine)
    with engine.begin() as connection:
        initialise_keys(keys, connection)
    assert url.database is not None
    return url.database, keys


@pytest.fixture
def voiceassist_url(
    voiceassist_databases: Databases, voiceassist_template: tuple[str, MemoryKeyProvider]
) -> Iterator[URL]:
    """Address of the test's own database, for SQLAlchemy; ``plain()`` writes it for psycopg."""
    url = voiceassist_databases.create(voiceassist_template[0])
    yield url
    voiceassist_databases.drop(url)


@pytest.fixture
def voiceassist_keys(voiceassist_template: tuple[str, MemoryKeyProvider]) -> MemoryKeyProvider:
    """The test's own key store, for ``Database(engine, voiceassist_keys)`` on an engine of the application."""
    return voiceassist_template[1].copied()


@pytest.fixture
def voiceassist_database(voiceassist_url: URL, voiceassist_keys: MemoryKeyProvider) -> Iterator[Database]:
    """The test's own database with its keys."""
    with Database(create_engine(voiceassist_url), voiceassist_keys) as database:
        yield database


@pytest.fixture
def voiceassist_async_database(voiceassist_url: URL, voiceassist_keys: MemoryKeyProvider) -> AsyncDatabase:
    """The same for asyncio. It keeps no connection between transactions, and so belongs to no event loop."""
    return AsyncDatabase(create_async_engine(voiceassist_url, poolclass=NullPool), voiceassist_keys)
