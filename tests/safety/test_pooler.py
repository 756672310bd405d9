"""Through pgbouncer in transaction mode everything works, and each transaction is looked at before it gets a key."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, text

from tests.conftest import plain
from tests.safety.conftest import ROLES, Deployment, use
from tests.safety.pooler import BINARY, Pooler
from voiceassist_db import AsyncDatabase, Database, Patient, create_async_engine, create_engine
from voiceassist_db.errors import ConfigurationError, UnsafeConnectionError
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.safety import Session, unsafe_hop
from voiceassist_db.verification import verify

pytestmark = [
    pytest.mark.skipif(BINARY is None and "CI" not in os.environ, reason="pgbouncer is not installed"),
]


@pytest.fixture
def pooler(deployment: Deployment) -> Iterator[Pooler]:
    """A pooler with one session for all, so that clients meet in it."""
    with Pooler(deployment.url()) as made:
        yield made


@pytest.fixture
def pooled(pooler: Pooler) -> Iterator[Engine]:
    """An engine that believes that it speaks to the server."""
    made = create_engine(pooler.url)
    yield made
    made.dispose()


def test_many_transactions_share_a_session(pooled: Engine, deployment: Deployment) -> None:
    """The driver prepares no statement, which another session would not know; nobody has to tell it."""
    for _ in range(10):
        use(pooled, deployment)


async def test_async_transactions_share_a_session(pooler: Pooler, deployment: Deployment) -> None:
    """The check that comes first in each transaction runs on the event loop as well."""
    database = AsyncDatabase(create_async_engine(pooler.url), deployment.provider)
    for _ in range(10):
        async with database.transaction() as tx:
            assert await tx.run(lambda tx: tx.patients.page()) == []
    await database.close()


def test_a_session_that_another_client_changed_is_refused(
    pooled: Engine, pooler: Pooler, deployment: Deployment
) -> None:
    """A SET of one client holds for the next one in the same session: its transaction gets no key, until it is undone."""
    use(pooled, deployment)
    with psycopg.connect(plain(pooler.url), autocommit=True, prepare_threshold=None) as other:
        other.execute("SET plan_cache_mode = auto")
        with pytest.raises(UnsafeConnectionError, match="plan_cache_mode: is auto"):
            use(pooled, deployment)
        other.execute("RESET plan_cache_mode")
        use(pooled, deployment)


@pytest.mark.parametrize("name", ["utf8", "UTF8", "utf-8", "UTF-8"])
def test_the_encoding_is_known_behind_a_pooler(pooler: Pooler, deployment: Deployment, name: str) -> None:
    """A pooler repeats the name that the client gave; another encoding of a transaction is refused."""
    engine = create_engine(pooler.url, connect_args={"client_encoding": name})
    use(engine, deployment)
    with Database(engine, deployment.provider).transaction() as tx:
        assert tx.patients.page() == []
        tx.session.execute(text("SET LOCAL client_encoding = 'LATIN1'"))
        with pytest.raises(ConfigurationError, match="client_encoding"):
            tx.patients.add(Patient(patient_id="PT-1", name="é"))
    engine.dispose()


def test_autocommit_behind_a_pooler_is_refused(pooled: Engine, deployment: Deployment) -> None:
    """What was looked at and what gets the key could be two sessions."""
    database = Database(pooled.execution_options(isolation_level="AUTOCOMMIT"), deployment.provider)
    with pytest.raises(UnsafeConnectionError, match="autocommit"), database.transaction() as tx:
        tx.patients.page()


@pytest.mark.parametrize("is_twophase", [False, True])
def test_a_transaction_that_begins_elsewhere_gets_no_unchecked_key(
    pooled: Engine, pooler: Pooler, deployment: Deployment, is_twophase: bool
) -> None:
    """On an engine of the same pool, and in two phases: each transaction is looked at, or gets no key."""
    database = Database(pooled.execution_options(logging_token="x"), deployment.provider)
    with psycopg.connect(plain(pooler.url), autocommit=True, prepare_threshold=None) as other:
        with pooled.connect() as connection:
            database.using(connection)  # in a session that is still safe
        other.execute("SET plan_cache_mode = auto")
        problem = (
            "outside of a transaction that began on a prepared engine" if is_twophase else "plan_cache_mode: is auto"
        )
        with pooled.connect() as connection, pytest.raises(UnsafeConnectionError, match=problem):
            connection.begin_twophase() if is_twophase else connection.begin()
            database.using(connection).patients.page()
        other.execute("RESET plan_cache_mode")


def test_a_transaction_that_a_statement_ended_gets_no_more_keys(deployment: Deployment) -> None:
    """The driver begins the next one by itself, here in a session that another client has changed."""
    with Pooler(deployment.url(), sessions=2) as pooler:
        engine = create_engine(pooler.url)
        database = Database(engine, deployment.provider)
        address = plain(pooler.url)
        with (
            engine.connect() as connection,
            psycopg.connect(address, autocommit=True, prepare_threshold=None) as other,
            psycopg.connect(address, autocommit=True, prepare_threshold=None) as third,
        ):
            for end in ("COMMIT", "ROLLBACK"):
                with connection.begin():
                    tx = database.using(connection)
                    assert tx.patients.page() == []
                    other.execute("SET log_parameter_max_length_on_error = -1")
                    other.execute("BEGIN")
                    connection.exec_driver_sql(end)
                    third.execute("BEGIN")  # takes the session that was given back
                    other.execute("COMMIT")
                    for _ in range(2):
                        with pytest.raises(UnsafeConnectionError, match="once a statement, such as COMMIT, has ended"):
                            tx.patients.page()
                    third.execute("COMMIT")
                    connection.exec_driver_sql("RESET ALL")
            with connection.begin():
                assert database.using(connection).patients.page() == []
        engine.dispose()


def test_a_search_path_that_another_client_changed_is_refused(
    pooled: Engine, pooler: Pooler, deployment: Deployment
) -> None:
    """Names could be found elsewhere, where nobody looked."""
    use(pooled, deployment)
    with psycopg.connect(plain(pooler.url), autocommit=True, prepare_threshold=None) as other:
        other.execute("SET search_path = pg_catalog, pgcrypto, public")
        with pytest.raises(UnsafeConnectionError, match="search_path: was changed"):
            use(pooled, deployment)
        other.execute("RESET search_path")


def test_a_temporary_table_that_hides_another_is_refused(
    pooled: Engine, pooler: Pooler, deployment: Deployment
) -> None:
    """It belongs to the session, and so to whoever comes next; its triggers would run on the patients."""
    deployment.admin.execute(f"GRANT TEMPORARY ON DATABASE postgres TO {ROLES.app}")
    try:
        with psycopg.connect(plain(pooler.url), autocommit=True, prepare_threshold=None) as other:
            other.execute("CREATE TEMPORARY TABLE patient_data (id int)")
            with pytest.raises(UnsafeConnectionError, match="pg_temp: holds table patient_data"):
                use(pooled, deployment)
            other.execute("DROP TABLE pg_temp.patient_data")
            use(pooled, deployment)
    finally:
        deployment.admin.execute(f"REVOKE TEMPORARY ON DATABASE postgres FROM {ROLES.app}")


def test_a_pooler_that_sends_keys_on_without_tls_is_refused(pooled: Engine) -> None:
    """The server tells where it sees the connection come from, and whether that way is encrypted."""
    with pooled.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        far = {
            "role": "app",
            "database": "d",
            "pid": 1,
            "client": "10.0.0.7/32",
            "server": "10.0.0.9/32",
            "settings": {},
        }
        open_way = unsafe_hop(driver, Session(**far, is_encrypted=False))  # type: ignore[arg-type]  # of one dict
        assert [each.problem for each in open_way] == [
            "of the pooler, from 10.0.0.7/32 to the server, is not encrypted"
        ]
        assert unsafe_hop(driver, Session(**far, is_encrypted=True)) == []  # type: ignore[arg-type]
        assert unsafe_hop(driver, Session(**far | {"client": "10.0.0.9/32"}, is_encrypted=False)) == []  # type: ignore[arg-type]


def test_a_rotation_and_a_verification_run_through_a_pooler(deployment: Deployment) -> None:
    """Workers share sessions, too: the lease is a row, and no session's state."""
    database = Database(create_engine(deployment.url()), deployment.provider)
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"9{n:08d}") for n in range(300))
    with Pooler(deployment.url(ROLES.rotator), sessions=3) as pooler:
        engine = create_engine(pooler.url)
        assert (rotate(engine, database.keys).rows, verify(engine, database.keys)[1].failed) == (300, 0)
        engine.dispose()
    owner = create_engine(deployment.url(ROLES.owner))
    retire(owner, database.keys, grace_days=0)
    owner.dispose()
    with database.transaction() as tx:
        assert [each.ssn for each in tx.patients.page()] == [f"9{n:08d}" for n in range(300)]
        for n in range(300):
            tx.patients.delete(f"PT-{n}")
    database.close()
