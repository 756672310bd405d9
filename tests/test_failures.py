"""Each way in which the world can fail has its own error, says what to do, and shows no secret."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import hvac
import psycopg
import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from tests.conftest import VaultServer
from voiceassist_db import ClinicalNote, Database, Patient, Repositories, create_engine
from voiceassist_db.embedded import EmbeddedOpenBao
from voiceassist_db.errors import (
    ConfigurationError,
    ConstraintError,
    DatabaseUnavailableError,
    DuplicateError,
    KeysDeletedError,
    KeysNotFoundError,
    KeyStoreForbiddenError,
    KeyStoreSealedError,
    KeyStoreUnavailableError,
    PgcryptoMissingError,
    SchemaNotMigratedError,
    TransactionConflictError,
    TransactionFailedError,
    VoiceAssistDBError,
)
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider

SECRET = "123-45-6789"  # a made-up patient's
PATIENT = Patient(patient_id="PT-001", ssn=SECRET)


def assert_clean(error: VoiceAssistDBError, *secrets: str) -> None:
    """Check that nothing of an error, and nothing that hangs on it, holds a secret."""
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = f"{error} {error!r} {error.args} {vars(error)}"
    for secret in (SECRET, *secrets):
        assert secret not in shown


@pytest.mark.parametrize("attempt", ["get", "add", "add_many", "find", "page"])
def test_no_pgcrypto(database: Database, attempt: str) -> None:
    """Without the extension, every access names it and the command that installs it."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    with database.engine.begin() as connection:
        connection.execute(text("DROP EXTENSION pgcrypto CASCADE"))
    with pytest.raises(PgcryptoMissingError, match="voiceassist-db migrate") as caught:
        _attempt(database, attempt)
    assert_clean(caught.value)


def _attempt(database: Database, what: str) -> None:
    with database.transaction() as tx:
        attempts: dict[str, Callable[[], object]] = {
            "get": lambda: tx.patients.get("PT-001"),
            "add": lambda: tx.patients.add(Patient(patient_id="PT-002", ssn=SECRET)),
            "add_many": lambda: tx.patients.add_many([Patient(patient_id="PT-002", ssn=SECRET)]),
            "find": lambda: tx.patients.find_by_ssn(SECRET),
            "page": lambda: tx.patients.page(),
        }
        attempts[what]()


@pytest.mark.parametrize("attempt", ["get", "add", "add_many", "find", "page"])
def test_no_tables(empty_url: URL, provider: VaultKeyProvider, attempt: str) -> None:
    """A database that was never migrated says so, and how to do it."""
    engine = create_engine(empty_url)
    with pytest.raises(SchemaNotMigratedError, match="voiceassist-db migrate") as caught:
        _attempt(Database(engine, provider), attempt)
    assert_clean(caught.value)
    engine.dispose()


def test_a_table_that_is_too_old(database: Database) -> None:
    """A missing column is a missing migration."""
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE patient_data DROP COLUMN name_index"))
    with pytest.raises(SchemaNotMigratedError, match="patient_data"):
        _attempt(database, "add")


@pytest.mark.parametrize("attempt", ["get", "add"])
def test_no_database(database_url: URL, provider: VaultKeyProvider, attempt: str) -> None:
    """A server that does not answer, and a login that is refused, are told with no password in the message."""
    for url in (
        database_url.set(port=1),
        database_url.set(password="wrong-password"),
        database_url.set(database="none"),
    ):
        engine = create_engine(url)
        with pytest.raises(DatabaseUnavailableError, match="DATABASE_URL") as caught:
            _attempt(Database(engine, provider), attempt)
        assert_clean(caught.value, str(database_url.password), "wrong-password")
        engine.dispose()


@pytest.mark.parametrize("attempt", ["get", "add", "find"])
def test_a_connection_that_is_cut(database: Database, attempt: str) -> None:
    """A statement on a dead connection is our error, and the next transaction simply works."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    with pytest.raises(DatabaseUnavailableError) as caught, database.transaction() as tx:
        assert isinstance(tx.session, Session)
        pid = tx.session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        if attempt == "get":
            tx.patients.get("PT-001")
        elif attempt == "add":
            tx.patients.add(Patient(patient_id="PT-002", ssn=SECRET))
        else:
            tx.patients.find_by_ssn(SECRET)
    assert_clean(caught.value)
    with database.transaction() as tx:
        assert tx.patients.get("PT-001").ssn == SECRET


def test_a_lock_that_does_not_come(database: Database) -> None:
    """A lock timeout may be tried again, and says so."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    with database.engine.begin() as holder:
        holder.execute(text("SELECT FROM patient_data FOR UPDATE"))
        with pytest.raises(TransactionConflictError, match="try it again") as caught, database.transaction() as tx:
            tx.session.execute(text("SET LOCAL lock_timeout = '50ms'"))
            tx.patients.update("PT-001", ssn="999-99-9999")
    assert caught.value.sqlstate == "55P03"
    assert_clean(caught.value)


def test_a_deadlock(database: Database) -> None:
    """Of two transactions that wait for each other one is told to try again, and the other commits."""
    with database.transaction() as tx:
        tx.patients.add_many([PATIENT, Patient(patient_id="PT-002")])
    meet = threading.Barrier(2)
    caught: list[VoiceAssistDBError] = []

    def update(first: str, second: str) -> None:
        try:
            with database.transaction() as tx:
                tx.patients.update(first, name=f"by {first}")
                meet.wait(10)
                tx.patients.update(second, name=f"by {first}")
        except TransactionConflictError as error:
            caught.append(error)

    threads = [threading.Thread(target=update, args=order) for order in (("PT-001", "PT-002"), ("PT-002", "PT-001"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [error.sqlstate for error in caught if isinstance(error, TransactionConflictError)] == ["40P01"]
    assert_clean(caught[0])
    with database.transaction() as tx:
        assert len({each.name for each in tx.patients.page()}) == 1


@pytest.mark.parametrize("own", ["transaction", "session", "connection"])
def test_a_transaction_that_failed_does_not_pretend_to_commit(database: Database, own: str) -> None:
    """PostgreSQL would answer COMMIT by rolling back: whoever caught the first error is told, and knows what was not kept."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)

    def work(tx: Repositories) -> None:
        tx.patients.add(Patient(patient_id="PT-002"))
        with pytest.raises(DuplicateError):
            tx.patients.add(Patient(patient_id="PT-001"))

    with pytest.raises(TransactionFailedError, match="begin_nested") as caught:
        if own == "transaction":
            with database.transaction() as tx:
                work(tx)
        elif own == "session":
            with Session(database.engine) as session, session.begin():
                work(database.using(session))
        else:
            with database.engine.begin() as connection:
                work(database.using(connection))
    assert_clean(caught.value)
    with pytest.raises(TransactionFailedError), database.transaction() as tx:
        work(tx)
        tx.patients.get("PT-001")
    with database.transaction() as tx:
        assert [each.patient_id for each in tx.patients.page()] == ["PT-001"]


def test_a_savepoint_keeps_the_rest(database: Database) -> None:
    """What may fail goes into a savepoint, and the rest of the transaction is kept."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    with database.transaction() as tx:
        assert isinstance(tx.session, Session)
        tx.patients.add(Patient(patient_id="PT-002"))
        with pytest.raises(DuplicateError), tx.session.begin_nested():
            tx.patients.add(Patient(patient_id="PT-001"))
    with database.transaction() as tx:
        assert [each.patient_id for each in tx.patients.page()] == ["PT-001", "PT-002"]


def test_an_engine_that_binds_in_the_client_is_refused(database_url: URL, provider: VaultKeyProvider) -> None:
    """With psycopg's client-side cursors the key would stand in the statement's text."""
    engine = create_engine(database_url, connect_args={"cursor_factory": psycopg.ClientCursor})
    with pytest.raises(ConfigurationError, match="ClientCursor"), Database(engine, provider).transaction() as tx:
        tx.patients.page()
    engine.dispose()


def test_cursors_that_come_later_put_no_key_into_a_statement(database: Database) -> None:
    """A listener to ``checkout`` can give them to a connection that was checked before. Nothing is sent, for one row or many."""
    text = "Overheard"
    sent: list[bytes] = []

    class Spy(psycopg.ClientCursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            done = super().execute(*args, **kwargs)
            sent.append(self._query.query if self._query else b"")
            return done

    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.cursor_factory = Spy
        tx = database.using(connection)
        attempts: list[Callable[[], object]] = [
            lambda: tx.patients.add(Patient(patient_id="PT-1", name=text)),
            lambda: tx.patients.add_many([Patient(patient_id="PT-1", name=text)]),
            lambda: tx.patients.find_by_name(text),
            lambda: tx.patients.get("PT-1"),
        ]
        for attempt in attempts:
            with pytest.raises(VoiceAssistDBError) as caught:
                attempt()
            assert_clean(caught.value, text)
            connection.rollback()
        driver.cursor_factory = psycopg.Cursor
    assert not [each for each in sent if text.encode() in each or b"pgp_sym" in each]


def test_a_session_of_the_callers_own_has_our_errors_too(database_url: URL, provider: VaultKeyProvider) -> None:
    """Where the caller's session opens its connection, a failure is translated as well."""
    engine = create_engine(database_url.set(port=1))
    with Session(engine) as session, pytest.raises(DatabaseUnavailableError) as caught:
        Database(engine, provider).using(session).patients.get("PT-001")
    assert_clean(caught.value, str(database_url.password))
    engine.dispose()


@pytest.mark.parametrize("broken", ["\ud800SECRET", "SECRET\x00"])
def test_text_that_is_none_is_refused_before_it_is_sent(database: Database, broken: str) -> None:
    """Half a character and NUL are our own error, in keys and in searches, and the library's, which quotes them, is gone."""
    with database.transaction() as tx:
        attempts: list[Callable[[], object]] = [
            lambda: tx.patients.get(broken),
            lambda: tx.patients.get_many([broken]),
            lambda: tx.patients.delete(broken),
            lambda: tx.patients.update(broken, name="X"),
            lambda: tx.patients.add(Patient(patient_id=broken)),
            lambda: tx.patients.add(Patient(patient_id="PT-001", name=broken)),
        ]
        for attempt in attempts:
            with pytest.raises(ValueError, match="NUL|surrogate") as caught:
                attempt()
            assert "SECRET" not in f"{caught.value!r} {caught.value.__context__!r} {caught.value.__cause__!r}"
        assert tx.patients.page() == []


def test_an_error_at_commit_is_ours(database: Database) -> None:
    """A constraint that is only checked at commit goes through the same translation."""
    with database.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE clinical_notes ALTER CONSTRAINT fk_clinical_notes_patient DEFERRABLE INITIALLY DEFERRED")
        )
    with pytest.raises(ConstraintError, match="fk_clinical_notes_patient") as caught, database.transaction() as tx:
        tx.clinical_notes.add(ClinicalNote(patient=uuid4(), note=SECRET))
    assert_clean(caught.value)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_taken_for_what_it_led_to(database: Database, interrupt: type[BaseException]) -> None:
    """Who presses ^C, and loses the connection by it, has pressed ^C."""
    with pytest.raises(interrupt), database.transaction() as tx:
        cut(tx)
        raise interrupt


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_was_handled_hides_no_failure(database: Database, interrupt: type[BaseException]) -> None:
    """Whether it came before the block, or within it and became another error, or was passed over: what fails is told."""

    def handle(tx: Repositories, become: Exception | None) -> None:
        try:
            raise interrupt
        except interrupt:
            cut(tx)
            if become is not None:
                raise become from None

    for become in (None, ValueError("no such option")):
        with pytest.raises(DatabaseUnavailableError), database.transaction() as tx:
            handle(tx, become)
    with ExitStack() as stack:
        tx = stack.enter_context(database.transaction())
        try:
            raise interrupt
        except interrupt:
            cut(tx)
            with pytest.raises(DatabaseUnavailableError):
                stack.close()


def cut(tx: Repositories) -> None:
    """Close a transaction's connection under it."""
    session = tx.session
    assert isinstance(session, Session)
    driver = session.connection().connection.driver_connection
    assert driver is not None
    driver.close()


def test_errors_of_the_callers_own_pass_unchanged(database: Database) -> None:
    """What application code raises in a transaction rolls it back and comes out as it is."""
    for error in (ZeroDivisionError("theirs"), NoResultFound("theirs")):
        with pytest.raises(type(error), match="theirs"), database.transaction() as tx:
            tx.patients.add(PATIENT)
            raise error
    with database.transaction() as tx:
        assert tx.patients.page() == []


def test_a_session_of_another_engine_is_refused(database: Database, database_url: URL) -> None:
    """Keys are proven against one database: a session on another could receive the wrong ones."""
    stranger: Engine = create_engine(database_url)
    with Session(stranger) as session, pytest.raises(ValueError, match="another engine"):
        database.using(session)
    stranger.dispose()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedOpenBao]:
    """A server that may be sealed without disturbing other tests."""
    with EmbeddedOpenBao() as server:
        yield server


@pytest.fixture
def client(server: EmbeddedOpenBao) -> hvac.Client:
    """An administrator's client, which leaves a key at the usual path."""
    client = hvac.Client(server.address, server.root_token)
    client.secrets.kv.v2.create_or_update_secret(
        "voiceassist/encryption", {"key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    )
    return client


def assert_vault_fails(
    engine: Engine, server: EmbeddedOpenBao | VaultServer, error: type[VoiceAssistDBError], token: str = ""
) -> str:
    provider = VaultKeyProvider(server.address, TokenLogin(token or server.root_token), timeout_s=2)
    with pytest.raises(error) as caught, Database(engine, provider).transaction() as tx:
        tx.patients.add(PATIENT)
    assert_clean(caught.value, server.root_token, token or server.root_token)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM patient_data")).scalar_one() == 0
    return str(caught.value)


def test_vault_down(engine: Engine) -> None:
    """A server that does not run."""
    down = VaultServer("http://127.0.0.1:1", "root-token")
    assert "127.0.0.1:1" in assert_vault_fails(engine, down, KeyStoreUnavailableError)


def test_vault_sealed(engine: Engine, server: EmbeddedOpenBao, client: hvac.Client) -> None:
    """A sealed server says that it must be unsealed."""
    client.sys.seal()
    try:
        assert "unseal" in assert_vault_fails(engine, server, KeyStoreSealedError)
    finally:
        client.sys.submit_unseal_key(server.unseal_key)


def test_vault_forbidden(engine: Engine, server: EmbeddedOpenBao, client: hvac.Client) -> None:
    """A token whose policy lacks the path names the path."""
    client.sys.create_or_update_policy("nothing", 'path "secret/data/other" { capabilities = ["read"] }')
    token = client.auth.token.create(policies=["nothing"])["auth"]["client_token"]
    assert "voiceassist/encryption" in assert_vault_fails(engine, server, KeyStoreForbiddenError, token)


def test_vault_deleted(engine: Engine, server: EmbeddedOpenBao, client: hvac.Client) -> None:
    """A deleted secret says how to bring it back, and is not mistaken for one that never was."""
    client.secrets.kv.v2.delete_latest_version_of_secret("voiceassist/encryption")
    assert "undelete" in assert_vault_fails(engine, server, KeysDeletedError)


def test_vault_missing(engine: Engine, server: EmbeddedOpenBao, client: hvac.Client) -> None:
    """A path at which nothing was ever stored says which command stores it."""
    client.secrets.kv.v2.delete_metadata_and_all_versions("voiceassist/encryption")
    assert "init-keys" in assert_vault_fails(engine, server, KeysNotFoundError)
