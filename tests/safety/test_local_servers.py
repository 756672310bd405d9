"""A server on this machine gets keys when it has proven itself, and not because of its address: any user could run it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, event, text

from tests.conftest import plain
from tests.safety.conftest import Deployment, use
from tests.safety.rogue import Rogue
from voiceassist_db import AsyncDatabase, Database, Patient, config, create_async_engine, create_engine
from voiceassist_db.checking import Verdict, check
from voiceassist_db.embedded.process import HOST
from voiceassist_db.engine import prepare
from voiceassist_db.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    UnsafeConnectionError,
    VoiceAssistDBError,
)
from voiceassist_db.safety import proof

NOT_PROVEN = "the server on this machine has not proven itself"
CLEARTEXT, SASL, OK = 3, 10, 0
"""Authentication requests of PostgreSQL's protocol."""


@pytest.fixture(scope="module")
def rogue(deployment: Deployment) -> Iterator[Rogue]:
    """A server of another user."""
    with Rogue(deployment) as server:
        yield server


def attempt(engine: Engine, deployment: Deployment) -> None:
    """Write a patient, and find, page and read one."""
    database = Database(engine, deployment.provider)
    with engine.connect() as connection:
        tx = database.using(connection)
        for work in (
            lambda: tx.patients.add(Patient(patient_id="PT-001", ssn="123456789")),
            lambda: tx.patients.add_many([Patient(patient_id="PT-002", ssn="123456780")]),
            lambda: tx.patients.page(),
            lambda: tx.patients.get("PT-001"),
        ):
            with pytest.raises(UnsafeConnectionError, match=NOT_PROVEN):
                work()
            connection.rollback()
    engine.dispose()


def ways(rogue: Rogue) -> list[URL]:
    """Return the ways to the server, and with them the claims of a client that prove nothing."""
    return [
        rogue.url(),
        rogue.url().update_query_dict({"require_auth": "none"}),
        rogue.url().update_query_dict({"requirepeer": "nobody"}),  # which libpq heeds on sockets only
        rogue.socket_url(),
        rogue.socket_url().set(password="x"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")
def test_a_server_of_another_user_gets_nothing(rogue: Rogue, deployment: Deployment) -> None:
    """On a socket and on a port; over our engines and the caller's, sync and async: no key and no value."""
    for url in ways(rogue):
        attempt(create_engine(url), deployment)
        attempt(sqlalchemy.create_engine(url), deployment)
        attempt(sqlalchemy.create_engine(url, creator=lambda url=url: psycopg.connect(plain(url))), deployment)
    assert rogue.captured() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")
async def test_the_async_engine_gives_it_nothing(rogue: Rogue, deployment: Deployment) -> None:
    """The same proof is asked for on the event loop."""
    for url in ways(rogue):
        database = AsyncDatabase(create_async_engine(url), deployment.provider)
        with pytest.raises(UnsafeConnectionError, match=NOT_PROVEN):
            async with database.transaction() as tx:
                await tx.run(lambda tx: tx.patients.page())
        await database.close()
    assert rogue.captured() == []


def test_a_port_that_asks_for_no_password_is_refused(rogue: Rogue, deployment: Deployment) -> None:
    """Whoever runs the server; statements without keys run, and check names the way."""
    engine = create_engine(rogue.url())
    attempt(engine, deployment)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        (line,) = [each for each in check(connection) if each.subject == f"the connection to {HOST}"]
    engine.dispose()
    assert line.verdict is Verdict.UNSAFE
    assert all(way in line.remedy for way in ("scram-sha-256", "requirepeer", "verify-full", config.TRUST_LOCAL))


def test_the_setting_trusts_it(rogue: Rogue, deployment: Deployment) -> None:
    """The control: with the one setting the same server is given key and value, and its functions log both."""
    before = len(rogue.captured())
    engine = create_engine(rogue.url(), trust_local=config.trust_local({config.TRUST_LOCAL: "1"}))
    with pytest.raises((VoiceAssistDBError, AssertionError)):  # it gives back nothing
        use(engine, deployment)
    with engine.connect() as connection:
        (line,) = [each for each in check(connection, trust_local=True) if each.subject == "connection"]
    engine.dispose()
    assert line.verdict is Verdict.OK
    assert config.TRUST_LOCAL in line.detail
    assert "123456789" in "".join(rogue.captured()[before:])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")
def test_requirepeer_names_whom_to_trust(rogue: Rogue) -> None:
    """Libpq compares the user that listens on the socket: the one that was named is accepted, and no other."""
    named = create_engine(rogue.socket_url().update_query_dict({"requirepeer": "nobody"}))
    with named.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        assert "requirepeer" in str(proof(driver))
    named.dispose()
    other = create_engine(rogue.socket_url().update_query_dict({"requirepeer": "root"}))
    with pytest.raises(sqlalchemy.exc.OperationalError, match="requirepeer"), other.connect():
        pass


@contextmanager
def relayed(directory: Path, port: int) -> Iterator[URL]:
    """Listen on a socket as this process's own user, and pass one connection on to a port."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / ".s.PGSQL.5432"))
    listener.listen()

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listener.accept()
        server = socket.create_connection((HOST, port))
        threads = [threading.Thread(target=copy, args=each) for each in ((client, server), (server, client))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        server.close()

    serving = threading.Thread(target=serve)
    serving.start()
    yield URL.create("postgresql+psycopg", "postgres", query={"host": str(directory), "port": "5432"})
    serving.join()
    listener.close()


def test_a_socket_of_this_user_is_trusted(rogue: Rogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who listens there: this user, or root, could read this process's memory anyway; nobody else is trusted."""
    with (
        relayed(tmp_path, rogue.port) as url,
        psycopg.connect(plain(url.set(database="postgres"))) as connection,
        monkeypatch.context() as patch,
    ):
        assert "own user" in str(proof(connection))
        patch.setattr("voiceassist_db.safety.transport._ROOT", -1)
        assert "own user" in str(proof(connection))
        patch.setattr(os, "geteuid", lambda: 54321)
        assert proof(connection) is None


def test_scram_proves_a_server(deployment: Deployment) -> None:
    """Our engines, the caller's, and those whose password comes from a listener; a creator of the caller's must ask for it."""
    late = create_engine(deployment.url().set(password=None))
    event.listen(late, "do_connect", lambda *given: given[3].update(password=deployment.url().password))
    own = plain(deployment.url())
    url = deployment.url()
    proven = [
        create_engine(url),
        prepare(sqlalchemy.create_engine(url)),
        late,
        sqlalchemy.create_engine(url, creator=lambda: psycopg.connect(own, require_auth="scram-sha-256")),
    ]
    for engine in proven:
        use(engine, deployment)
        engine.dispose()
    attempt(sqlalchemy.create_engine(url, creator=lambda: psycopg.connect(own)), deployment)


def test_a_wrong_password_is_what_it_is(deployment: Deployment) -> None:
    """An error of the login is not taken for a server without proof."""
    database = Database(create_engine(deployment.url().set(password="wrong")), deployment.provider)
    with pytest.raises(DatabaseUnavailableError), database.transaction() as tx:
        tx.patients.page()


@contextmanager
def asking(*requests: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Answer each connection on a port with these requests for authentication; yields the port, and what clients said."""
    heard: list[bytes] = []
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    for request in requests:
                        heard.append(client.recv(65536))
                        client.sendall(request)
                    heard.append(client.recv(65536))

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    yield listener.getsockname()[1], heard
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    serving.join()


def request(kind: int, rest: bytes = b"") -> bytes:
    """Return a request for authentication."""
    return b"R" + struct.pack("!ii", 8 + len(rest), kind) + rest


def test_it_does_not_get_the_password_itself(deployment: Deployment) -> None:
    """A server that asks for it in clear text gets no answer, and the error says what to do."""
    with asking(request(CLEARTEXT)) as (port, heard):
        database = Database(create_engine(deployment.url().set(port=port)), deployment.provider)
        with pytest.raises(UnsafeConnectionError, match=config.TRUST_LOCAL), database.transaction() as tx:
            tx.patients.page()
    assert len(heard) == 4
    assert str(deployment.url().password).encode() not in b"".join(heard)


def test_an_exchange_that_is_broken_off_proves_nothing(deployment: Deployment) -> None:
    """A server that lets the client in before it has shown its signature is not let through; libpq says so where it is asked to."""
    sasl = request(SASL, b"SCRAM-SHA-256\0\0")
    with (
        asking(sasl, request(OK)) as (port, _),
        pytest.raises(psycopg.OperationalError, match='"scram-sha-256" failed'),
    ):
        psycopg.connect(plain(deployment.url().set(port=port)), require_auth="scram-sha-256")


@pytest.mark.parametrize("value", ["yes", "2"])
def test_the_setting_is_1_or_nothing(value: str) -> None:
    """Whatever else it is set to is an error, and not a guess."""
    with pytest.raises(ConfigurationError, match=config.TRUST_LOCAL):
        config.trust_local({config.TRUST_LOCAL: value})
    assert not config.trust_local({})
