"""The servers of a run, its database, and what the report says of the machine.

Owns everything that must be there before the first measurement and gone after the last one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import psycopg
from psycopg import sql
from sqlalchemy import URL, Engine

from voiceassist_db import Database, config, create_engine
from voiceassist_db.embedded import EmbeddedOpenBao, EmbeddedPostgres
from voiceassist_db.errors import VoiceAssistDBError
from voiceassist_db.execution import translated
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.schema import migrate

SETTINGS: Final = {"shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB"}
"""Of the embedded server. All that makes data durable is as PostgreSQL has it."""

INSUFFICIENT_PRIVILEGE: Final = "42501"
POOL_SIZE: Final = 70
"""Room for the most workers that a rotation may have, and its own connections."""


def plain(url: URL) -> str:
    """Return an address as psycopg takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def connect(url: URL) -> psycopg.Connection[Any]:
    """Return a connection for statements of the benchmark's own: in autocommit, and on one core."""
    connection = psycopg.connect(plain(url), autocommit=True)
    connection.execute("SET max_parallel_workers_per_gather = 0; SET jit = off; SET client_min_messages = warning")
    return connection


@dataclass(frozen=True)
class Deployment:
    """A database with keys, on a server that does nothing else.

    Attributes:
        url: Its address.
        engine: An engine that may send keys.
        provider: The key store.
        raw: A connection of the benchmark's own.
        is_embedded: Whether the server was started by this process.
    """

    url: URL
    engine: Engine
    provider: VaultKeyProvider
    raw: psycopg.Connection[Any]
    is_embedded: bool

    @property
    def database(self) -> Database:
        """The database as application code has it."""
        return Database(self.engine, self.provider)

    @property
    def postgres(self) -> str:
        """The server's version."""
        return str(self.one("SELECT current_setting('server_version')")[0])

    def settle(self, table: str) -> None:
        """Let a table rest, as it would between two rotations."""
        self.raw.execute(f"VACUUM ANALYZE {table}")
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write all out, so that no measurement pays for what went before; where this role may not, it goes on without."""
        try:
            self.raw.execute("CHECKPOINT")
        except psycopg.errors.InsufficientPrivilege:
            return

    def wal(self) -> int:
        """Return the position of the write-ahead log, in bytes."""
        return int(self.one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")[0])

    def one(self, statement: str) -> tuple[Any, ...]:
        """Return the one row of a statement of constants."""
        row = self.raw.execute(statement).fetchone()
        assert row is not None
        return tuple(row)


@contextmanager
def deployed(dsn: str | None = None) -> Iterator[Deployment]:
    """Give a migrated database with keys, and remove it at the end.

    Args:
        dsn: Address of a server whose role may create databases; None starts one.
    """
    with ExitStack() as stack:
        if dsn is None:
            server = stack.enter_context(EmbeddedPostgres(settings=SETTINGS)).url()
            url = stack.enter_context(_new_database(server))
        else:
            try:
                url = stack.enter_context(_new_database(config.parse_database_url(dsn)))
            except VoiceAssistDBError as error:
                raise click.ClickException(_of_dsn(error)) from None
        openbao = stack.enter_context(EmbeddedOpenBao())
        provider = VaultKeyProvider(openbao.address, TokenLogin(openbao.root_token), mount="secret", path="benchmark")
        with made(url, provider, is_embedded=dsn is None) as deployment:
            yield deployment


def _of_dsn(error: VoiceAssistDBError) -> str:
    if getattr(error, "sqlstate", None) == INSUFFICIENT_PRIVILEGE:
        return "--dsn: this role may not create databases, of which a run makes one of its own: ALTER ROLE … CREATEDB"
    return str(error).replace(config.DATABASE_URL, "--dsn")


@contextmanager
def made(url: URL, provider: VaultKeyProvider, *, is_embedded: bool = True) -> Iterator[Deployment]:
    """Migrate an empty database, make its keys, and give both.

    Args:
        url: Address of the database.
        provider: A key store without keys.
        is_embedded: Whether the server was started by this process.
    """
    engine = create_engine(url, **config.engine_options(), pool_size=POOL_SIZE)
    try:
        migrate(engine)
        with engine.begin() as connection:
            initialise_keys(provider, connection)
        with connect(url) as raw:
            yield Deployment(url, engine, provider, raw, is_embedded)
    finally:
        engine.dispose()


@contextmanager
def _new_database(server: URL) -> Iterator[URL]:
    database = f"voiceassist_benchmark_{secrets.token_hex(6)}"
    name = sql.Identifier(database)
    with translated():
        admin = psycopg.connect(plain(server), autocommit=True)
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))
    with admin:
        try:
            yield server.set(database=database)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def described(deployment: Deployment) -> dict[str, Any]:
    """Return what a reader must know of the machine and the versions to place the figures."""
    fsync, commit = deployment.one("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
    versions = {name: importlib.metadata.version(name) for name in ("voiceassist-db", "psycopg", "sqlalchemy")}
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": deployment.postgres,
        "server": "embedded" if deployment.is_embedded else "given by --dsn",
        "fsync": fsync,
        "synchronous_commit": commit,
        **versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
