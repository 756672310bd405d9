"""Servers, databases and keys for the tests: all real.

PostgreSQL comes from ``VOICEASSIST_DB_TEST_DSN`` (a role that may create databases), else from Docker where its daemon
answers, else from the embedded server. Vault comes from Docker or is the embedded OpenBao. Each test has a database of its
own, copied from a migrated template, and a path of its own in the key store.
"""

from __future__ import annotations

import functools
import gc
import http.client
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import URL, Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from tests.scram import quick_verifier
from voiceassist_db import Database, create_engine
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.safety import SETTINGS
from voiceassist_db.schema import migrate
from voiceassist_db.testing import FAST, Databases, in_memory, plain, throwaway_server

__all__ = ["FAST", "Databases", "in_memory", "plain", "throwaway_server"]  # what test modules import from here

OWNER = "voiceassist_test"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``: the long forms of trials, whose short forms always run; and ``--wide``, which CI gives."""
    parser.addoption("--long", action="store_true", help="also run the long trials")
    parser.addoption("--wide", action="store_true", help="also run the widest matrices, as CI does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long trials and the widest matrices out, visibly, unless they are asked for."""
    for name in ("long", "wide"):
        if not config.getoption(f"--{name}"):
            config.hook.pytest_deselected(items=[item for item in items if _is_marked(item, name)])
            items[:] = [item for item in items if not _is_marked(item, name)]


def _is_marked(item: pytest.Item, name: str) -> bool:
    """Say whether a test is left out without an option; a long trial in a wide file needs ``--long`` alone."""
    is_long = item.get_closest_marker("long") is not None
    return is_long if name == "long" else item.get_closest_marker(name) is not None and not is_long


@functools.cache
def docker_is_present() -> bool:
    """Say whether a Docker daemon answers."""
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # a client that finds no daemon leaves its socket to the collector
        try:
            client = docker.from_env()
            present = bool(client.ping())
            client.close()
        except DockerException:
            present = False
        gc.collect()
    return present


@dataclass(frozen=True)
class VaultServer:
    """A running Vault or OpenBao."""

    address: str
    root_token: str

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request of the HTTP API as root, past the product, and return the answer."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        try:
            connection.request(method, f"/v1/{path}", json.dumps(body or {}), {"X-Vault-Token": self.root_token})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        assert response.status == http.HTTPStatus.OK, answer
        return answer


@pytest.fixture(scope="session")
def server_url() -> Iterator[URL]:
    """Address of a PostgreSQL server, as a role that may create databases and need not be a superuser."""
    with ExitStack() as stack:
        if dsn := os.environ.get("VOICEASSIST_DB_TEST_DSN"):
            yield make_url(dsn).set(drivername="postgresql+psycopg")
        elif docker_is_present():
            from testcontainers.community.postgres import PostgresContainer

            settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items() if "." not in name)
            container = PostgresContainer("postgres:17", driver="psycopg").with_command(f"postgres {settings}")
            stack.enter_context(container)
            yield make_url(container.get_connection_url())
        else:
            server = stack.enter_context(throwaway_server())
            password = secrets.token_hex(16)
            with psycopg.connect(plain(server.url()), autocommit=True) as admin:
                create = sql.SQL("CREATE ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}")
                admin.execute(create.format(sql.Identifier(OWNER), sql.Literal(quick_verifier(password))))
            yield server.url().set(username=OWNER, password=password)


@pytest.fixture(scope="session")
def vault() -> Iterator[VaultServer]:
    """A Vault server that every test of this process shares, each on a path of its own."""
    if docker_is_present():
        from testcontainers.community.vault import VaultContainer

        with VaultContainer("hashicorp/vault:1.20") as container:
            yield VaultServer(container.get_connection_url(), container.root_token)
    else:
        with EmbeddedOpenBao() as server:
            yield VaultServer(server.address, server.root_token)


def leading_to(url: URL, vault: VaultServer, path: str) -> dict[str, str]:
    """Return the environment of a command that works on this database, with the keys at this path, and on nothing else."""
    return {
        "PATH": "/usr/bin:/bin",
        "DATABASE_URL": plain(url),
        "VAULT_ADDR": vault.address,
        "VAULT_TOKEN": vault.root_token,
        "VOICEASSIST_DB_VAULT_PATH": path,
    }


def drop(url: URL, server_url: URL) -> None:
    """Drop a database, if it is still there, by a connection to this server."""
    databases = Databases(server_url)
    databases.drop(url)
    databases.close()


@pytest.fixture(scope="session")
def databases(server_url: URL) -> Iterator[Databases]:
    """What makes the databases of this process."""
    made = Databases(server_url)
    yield made
    made.close()


@pytest.fixture(scope="session")
def new_database(databases: Databases) -> Callable[[str | None], URL]:
    """A function that creates a database, empty or as a copy of another; those that are left at the end are dropped."""
    return databases.create


@pytest.fixture(scope="session")
def template(new_database: Callable[[str | None], URL]) -> str:
    """Name of a migrated database without any connection, from which each test's is copied."""
    url = new_database(None)
    engine = create_engine(url)
    migrate(engine)
    engine.dispose()
    assert url.database is not None
    return url.database


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[URL]:
    """Address of an empty database."""
    url = databases.create()
    yield url
    databases.drop(url)


AT_HOME: Final = """
    UPDATE database_identity SET place = pg_catalog.concat((SELECT system_identifier FROM pg_catalog.pg_control_system()), '/',
        (SELECT oid FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database()))
"""
"""Lets a copy keep the identity of its template, whose secret is copied with it."""


@dataclass(frozen=True)
class Registered:
    """A migrated database that has registered keys, without any connection, and the fields of its secret."""

    template: str
    secret: dict[str, str | int]


@pytest.fixture(scope="session")
def registered(new_database: Callable[[str | None], URL], template: str, vault: VaultServer) -> Registered:
    """What most tests begin with. They copy it, which takes a tenth of the time that the registration of keys takes."""
    url = new_database(template)
    path = f"test/{secrets.token_hex(6)}"
    engine = create_engine(url)
    with engine.begin() as connection:
        initialise_keys(VaultKeyProvider(vault.address, TokenLogin(vault.root_token), path=path), connection)
    engine.dispose()
    assert url.database is not None
    secret = vault.ask("GET", f"secret/data/{path}")["data"]["data"]
    return Registered(url.database, secret)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, databases: Databases, template: str) -> Iterator[URL]:
    """Address of a migrated database that holds no row, and has registered keys in a test that uses ``provider``."""
    if "provider" in request.fixturenames:
        template = request.getfixturevalue("registered").template
    url = databases.create(template)
    if "provider" in request.fixturenames:
        with psycopg.connect(plain(url), autocommit=True) as connection:
            connection.execute(AT_HOME)
    yield url
    databases.drop(url)


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    """An engine on a migrated database."""
    made = create_engine(database_url)
    yield made
    made.dispose()


@pytest.fixture
def old_ciphers(engine: Engine) -> None:
    """Skip a test where the server's pgcrypto refuses Blowfish and CAST5, as with CVE-2026-14663 mended; PostgreSQL 17.10 has them."""
    statement = text("SELECT pgcrypto.pgp_sym_encrypt('text', 'key', 'cipher-algo=bf')")
    try:
        with engine.connect() as connection:
            connection.execute(statement)
    except DBAPIError:
        pytest.skip("this server's pgcrypto has no Blowfish")


@pytest.fixture
def vault_path() -> str:
    """A path in the key store, ``MOUNT/PATH``, that nothing is stored at yet."""
    return f"secret/test/{secrets.token_hex(6)}"


@pytest.fixture
def new_provider(vault: VaultServer, vault_path: str) -> Callable[..., VaultKeyProvider]:
    """A function that makes one more client of the test's path in the key store, as another process would."""
    mount, _, path = vault_path.partition("/")

    def make(below: str = "") -> VaultKeyProvider:
        return VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount=mount, path=path + below)

    return make


@pytest.fixture
def provider(
    new_provider: Callable[..., VaultKeyProvider],
    engine: Engine,
    registered: Registered,
    vault: VaultServer,
    vault_path: str,
) -> VaultKeyProvider:
    """A key store with keys that the test's database has registered."""
    mount, _, path = vault_path.partition("/")
    secret = json.dumps(registered.secret)
    assert engine.url.database is not None
    secret = secret.replace(registered.template, engine.url.database)  # the name that the list of databases has
    vault.ask("POST", f"{mount}/data/{path}", {"data": json.loads(secret), "options": {"cas": 0}})
    return new_provider()


@pytest.fixture
def database(engine: Engine, provider: VaultKeyProvider) -> Database:
    """A database with keys, ready for application code."""
    return Database(engine, provider)


@pytest.fixture
def environment(database: Database, database_url: URL, vault: VaultServer, vault_path: str) -> dict[str, str]:
    """Environment variables that lead a command to the test's database and keys, and none that lead elsewhere."""
    assert database is not None  # the keys are made and registered
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return leading_to(database_url, vault, vault_path) | inherited


@pytest.fixture(scope="session")
def synthea_csv() -> Path:
    """The real-format patient export that lies beside the checkout; ``VOICEASSIST_DB_TEST_SYNTHEA`` names it elsewhere."""
    default = Path(__file__).parents[2] / "shared" / "data" / "synthea_patients.csv"
    path = Path(os.environ.get("VOICEASSIST_DB_TEST_SYNTHEA", default))
    if not path.exists() and "CI" not in os.environ:
        pytest.skip(f"no patient export at {path}: set VOICEASSIST_DB_TEST_SYNTHEA to Synthea's patients.csv")
    return path
