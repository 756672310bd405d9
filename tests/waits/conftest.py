"""A server whose every setting and file a test may spoil, with a rotation's database on it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL

from tests.cli.conftest import check, run
from tests.conftest import VaultServer, leading_to, plain, throwaway_server
from tests.rotation.patients import fill
from tests.scram import quick_verifier
from voiceassist_db import Database, create_engine
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.provisioning import Roles, provision
from voiceassist_db.schema import migrate

__all__ = ["check", "run"]

ROLES = Roles()
ROWS = 40
SETTINGS = {
    "max_prepared_transactions": "5",
    "wal_level": "logical",
    "max_connections": "20",
    "max_locks_per_transaction": "10",
}


class Spoilt:
    """A server, and the commands that spoil it.

    Args:
        server: The server.
    """

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self.password = secrets.token_hex(16)

    def admin(self, database: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
        """Return a superuser's connection, in autocommit."""
        return psycopg.connect(plain(self.server.url(database or "postgres")), autocommit=True)

    def url(self, role: str, database: str) -> URL:
        """Return the address of a database for one of the roles."""
        return self.server.url(database).set(username=role, password=self.password)

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server."""
        with self.admin() as admin:
            admin.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            admin.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="session")
def spoilt() -> Iterator[Spoilt]:
    """A server of its own, with the four roles of a deployment and a migrated template."""
    with throwaway_server(SETTINGS) as server:
        made = Spoilt(server)
        with made.admin() as admin:
            admin.execute("CREATE DATABASE template_of_waits")
        superuser = create_engine(server.url("template_of_waits"))
        with superuser.begin() as connection:
            provision(connection, ROLES)
        with made.admin() as admin:
            for role in ROLES.names():
                statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
                admin.execute(statement.format(sql.Identifier(role), sql.Literal(quick_verifier(made.password))))
        owner = create_engine(made.url(ROLES.owner, "template_of_waits"))
        migrate(owner)
        owner.dispose()
        with superuser.begin() as connection:
            provision(connection, ROLES)
        superuser.dispose()
        yield made


@pytest.fixture
def clinic(spoilt: Spoilt) -> Iterator[str]:
    """Name of a migrated database on that server."""
    name = f"clinic_{secrets.token_hex(4)}"
    with spoilt.admin() as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template_of_waits STRATEGY file_copy").format(sql.Identifier(name))
        )
        # Of a copy the rights of the database itself are the default ones.
        statement = sql.SQL("GRANT CREATE, TEMPORARY ON DATABASE {} TO {}")
        admin.execute(statement.format(sql.Identifier(name), sql.Identifier(ROLES.owner)))
        admin.execute(sql.SQL("REVOKE CREATE, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    yield name
    with spoilt.admin() as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def keys(spoilt: Spoilt, clinic: str, new_provider: Callable[..., VaultKeyProvider]) -> VaultKeyProvider:
    """The keys of that database, which holds some patients."""
    provider = new_provider()
    engine = create_engine(spoilt.url(ROLES.owner, clinic))
    with engine.begin() as connection:
        initialise_keys(provider, connection)
        fill(connection, provider.fetch().key, rows=ROWS)
    engine.dispose()
    return provider


@pytest.fixture
def at(spoilt: Spoilt, clinic: str, keys: VaultKeyProvider) -> Iterator[Callable[[str], Database]]:
    """A function that gives the database as one of the roles sees it."""
    made: list[Database] = []

    def of(role: str) -> Database:
        database = Database(create_engine(spoilt.url(role, clinic)), keys)
        made.append(database)
        return database

    yield of
    for each in made:
        each.close()


@pytest.fixture
def env(
    spoilt: Spoilt, clinic: str, keys: VaultKeyProvider, vault: VaultServer, vault_path: str
) -> Callable[[str], dict[str, str]]:
    """A function that gives the environment of a command, as one of the roles."""
    assert keys is not None

    return lambda role: leading_to(spoilt.url(role, clinic), vault, vault_path)


@contextmanager
def changed(spoilt: Spoilt, database: str, statement: str, back: str) -> Iterator[None]:
    """Execute a statement as superuser, and what takes it back at the end."""
    with spoilt.admin(database) as admin:
        admin.execute(statement.encode())
        try:
            yield
        finally:
            admin.execute(back.encode())
