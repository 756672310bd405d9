"""A key goes to another machine only by TLS that verifies whom it speaks to; and to a replica as to its primary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Engine

from tests.rotation.proxy import Proxy
from tests.rotation.standby import Standby
from tests.safety.conftest import OWN_ADDRESS, ROLES, Deployment, use
from voiceassist_db import Database, Patient, create_engine
from voiceassist_db.checking import Verdict, check
from voiceassist_db.embedded.process import HOST, poll
from voiceassist_db.errors import UnsafeConnectionError

needs_a_network = pytest.mark.skipif(OWN_ADDRESS == HOST, reason="this machine has no address but loopback")


@pytest.fixture
def far(deployment: Deployment) -> Iterator[URL]:
    """Address of the database by an address that is not loopback, as the server of another machine has."""
    proxy = Proxy(HOST, deployment.server.port, listens_on=OWN_ADDRESS)
    yield deployment.url().set(host=OWN_ADDRESS, port=proxy.port, query={})
    proxy.close()


def verdict(engine: Engine) -> tuple[Verdict, str]:
    """Return what `check` says of the way to the server."""
    with engine.connect() as connection:
        (line,) = [each for each in check(connection) if each.subject.startswith(("connection", "the connection"))]
    return line.verdict, line.detail


@needs_a_network
@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        ("disable", "is not encrypted"),
        ("require", "sslmode=require does not verify"),
        ("verify-ca", "sslmode=verify-ca does not verify"),
    ],
)
def test_an_open_or_unverified_way_is_refused(deployment: Deployment, far: URL, mode: str, problem: str) -> None:
    """Without TLS everybody on the way reads the key; without verification whoever answers does."""
    engine = create_engine(far.update_query_dict({"sslmode": mode, "sslrootcert": str(deployment.authority)}))
    with pytest.raises(UnsafeConnectionError, match=problem) as refused:
        use(engine, deployment)
    assert "sslmode=verify-full" in str(refused.value)
    assert verdict(engine)[0] is Verdict.UNSAFE
    engine.dispose()


@needs_a_network
def test_tls_that_verifies_is_safe(deployment: Deployment, far: URL) -> None:
    """The certificate is of the name that was connected to, by an authority that was named."""
    engine = create_engine(far.update_query_dict({"sslmode": "verify-full", "sslrootcert": str(deployment.authority)}))
    use(engine, deployment)
    assert verdict(engine) == (Verdict.OK, f"reaches {OWN_ADDRESS} by TLS with its certificate verified")
    engine.dispose()


@needs_a_network
def test_the_way_is_that_of_the_socket_and_not_what_was_asked_for(deployment: Deployment, far: URL) -> None:
    """Libpq goes to `hostaddr`, whatever `host` says; here host looks like a socket's directory."""
    engine = create_engine(
        far.set(host=None, port=None).update_query_dict(
            {"host": "/var/run/postgresql", "hostaddr": OWN_ADDRESS, "port": str(far.port), "sslmode": "disable"}
        )
    )
    with pytest.raises(UnsafeConnectionError, match=f"the connection to {OWN_ADDRESS}: is not encrypted"):
        use(engine, deployment)
    engine.dispose()


def test_a_replica_is_asked_as_its_primary_is(deployment: Deployment) -> None:
    """It has the roles' settings by replication, and takes keys for reading; without them it gets none."""
    engine = create_engine(deployment.url())
    database = Database(engine, deployment.provider)
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-9", ssn="123456789"))
    with Standby(deployment.server) as standby:
        url = standby.url.set(username=ROLES.app, password=deployment.url().password)
        replica = Database(create_engine(url), deployment.provider)
        for _ in poll(30):
            with replica.transaction() as tx:
                if found := tx.patients.get_many(["PT-9"]):
                    assert found["PT-9"].ssn == "123456789"
                    break
        unsafe = Database(create_engine(url.set(username=ROLES.auditor)), deployment.provider)
        with pytest.raises(UnsafeConnectionError), unsafe.transaction() as tx:
            tx.patients.get("PT-9")
        replica.close()
        unsafe.close()
    with database.transaction() as tx:
        tx.patients.delete("PT-9")
    database.close()
