"""A server that logs what it can for whoever is not provisioned, and a deployment on it."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Engine

from tests.conftest import VaultServer, plain, throwaway_server
from tests.scram import quick_verifier
from tests.tls import certified
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.embedded import EmbeddedPostgres
from voiceassist_db.embedded.accounts import server_account
from voiceassist_db.embedded.binaries import find_postgres
from voiceassist_db.embedded.process import HOST
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.provisioning import Roles, provision
from voiceassist_db.schema import migrate

ROLES = Roles()


def own_address() -> str:
    """Return the address by which this machine reaches others; loopback where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737); nothing is sent
        except OSError:
            return HOST
        return str(probe.getsockname()[0])


OWN_ADDRESS = own_address()
PASSWORD = secrets.token_hex(16)
TALKATIVE = {
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "plan_cache_mode": "auto",
    "max_parallel_workers_per_gather": "2",
    "auto_explain.log_min_duration": "0",
}


class Deployment:
    """A server that logs what it can, with a database whose roles are provisioned, and keys.

    Attributes:
        server: The server.
        admin: A superuser's connection.
        provider: The key store.
        authority: File of the certificate authority that the server's certificate is of.
    """

    def __init__(self, server: EmbeddedPostgres, provider: VaultKeyProvider, authority: Path) -> None:
        self.server = server
        self.authority = authority
        self.provider = provider
        self.admin = psycopg.connect(plain(server.url()), autocommit=True)
        superuser = create_engine(server.url())
        migrate(superuser)
        with superuser.begin() as connection:
            provision(connection, ROLES)
        superuser.dispose()
        for role in ROLES.names():
            self.admin.execute(f"ALTER ROLE {role} PASSWORD '{quick_verifier(PASSWORD)}'")
        owner = create_engine(self.url(ROLES.owner))
        with owner.begin() as connection:
            initialise_keys(provider, connection)
        owner.dispose()

    def url(self, role: str = ROLES.app) -> URL:
        """Return the database's address as a role."""
        return self.server.url().set(username=role, password=PASSWORD)

    def wait_until_nothing_is_temporary(self) -> None:
        """Wait until the server has removed what ended sessions leave: it does so after their clients are gone.

        Casts of temporary types concern every session, and the next test's check would find them.
        """
        query = "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE starts_with(n.nspname, 'pg_temp_')"
        for _ in range(6000):
            found = self.admin.execute(query).fetchone()
            if found == (0,):
                return
            time.sleep(0.01)
        raise AssertionError("a session with temporary objects was left open")

    def has(self, setting: str) -> bool:
        """Say whether the server has a setting; a module's are there where the module is loaded."""
        found = self.admin.execute("SELECT FROM pg_settings WHERE name = %s", [setting])
        return found.fetchone() is not None


def has_pgaudit() -> bool:
    """Say whether the server's binaries have pgaudit, which is a package of its own."""
    return (find_postgres(server_account()).directory.parent / "lib" / "pgaudit.so").exists()


@pytest.fixture(scope="session")
def deployment(vault: VaultServer) -> Iterator[Deployment]:
    """The server that the tests of this process share."""
    with deployed(vault) as made:
        yield made


@contextmanager
def deployed(vault: VaultServer) -> Iterator[Deployment]:
    """Start the server, with TLS, and with what modules of those that matter it has."""
    with ExitStack() as stack:
        tls = stack.enter_context(certified("safety", HOST, OWN_ADDRESS))
        modules = "auto_explain,pgaudit" if has_pgaudit() else "auto_explain"
        settings = TALKATIVE | tls.settings | {"shared_preload_libraries": modules, "wal_level": "replica"}
        server = stack.enter_context(throwaway_server(settings))
        provider = VaultKeyProvider(
            vault.address, TokenLogin(vault.root_token), mount="secret", path=f"test/{secrets.token_hex(6)}"
        )
        made = Deployment(server, provider, tls.authority)
        yield made
        made.admin.close()


@pytest.fixture(autouse=True)
def nothing_temporary(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no temporary object of a test reach the next one."""
    yield
    for name in {"deployment", "places"} & set(request.fixturenames):
        request.getfixturevalue(name).wait_until_nothing_is_temporary()


@pytest.fixture
def engine_of(deployment: Deployment) -> Iterator[Callable[..., Engine]]:
    """A function that makes an engine of the application's role."""
    made = []

    def make(**options: Any) -> Engine:
        made.append(create_engine(deployment.url(), **options))
        return made[-1]

    yield make
    for each in made:
        each.dispose()


def use(engine: Engine, deployment: Deployment) -> None:
    """Write and read a patient, in a transaction that is rolled back."""
    database = Database(engine, deployment.provider)
    with engine.connect() as connection, connection.begin() as transaction:
        tx = database.using(connection)
        tx.patients.add(Patient(patient_id="PT-001", ssn="123456789"))
        assert tx.patients.get("PT-001").ssn == "123456789"
        transaction.rollback()
