"""What applications do with engines and sessions: each feature works with repositories, or is refused by name before a statement."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import psycopg
import psycopg.adapt
import pytest
import sqlalchemy
from psycopg.rows import class_row, dict_row, namedtuple_row
from psycopg.types.string import StrDumper, TextLoader
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemy_create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool
from sqlalchemy.util import immutabledict

from tests.conftest import VaultServer, throwaway_server
from voiceassist_db import AsyncDatabase, Database, Patient, Repositories, create_engine
from voiceassist_db.errors import ConfigurationError, DatabaseError, DuplicateError, TransactionFailedError
from voiceassist_db.initialisation import initialise_keys
from voiceassist_db.keyring import register
from voiceassist_db.models import Base, ClinicalNoteRow, EncryptionKeyRow, PatientRow, table_of
from voiceassist_db.providers.vault import TokenLogin, VaultKeyProvider
from voiceassist_db.repositories import PatientRepository
from voiceassist_db.schema import migrate
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify

pytestmark = pytest.mark.wide

SSN = "123-45-6789"
TENANT = {None: "tenant"}


def use(tx: Repositories) -> None:
    """Write, change, find, page and read patients: each way of execution there is."""
    tx.patients.add(Patient(patient_id="PT-001", ssn=SSN, mrn="M-1"))
    tx.patients.add_many(Patient(patient_id=f"PT-1{n:03}", ssn=SSN, name="Zoë") for n in range(250))
    tx.patients.update("PT-001", name="Zoë")
    assert tx.patients.get("PT-001").ssn == SSN
    assert isinstance(tx.patients.get("PT-001").id, UUID)
    found = tx.patients.find_by_mrn("M-1")
    assert found is not None
    assert found.name == "Zoë"
    assert [each.ssn for each in tx.patients.page(limit=300)] == [SSN] * 251
    assert len(tx.patients.get_many(["PT-001", "PT-1001"])) == 2


def use_and_leave(tx: Repositories) -> None:
    """Do so, and delete it all, for what cannot be rolled back."""
    use(tx)
    for each in tx.patients.page(limit=300):
        tx.patients.delete(each.patient_id)


# --- options of engines, connections and sessions that change nothing for ours -------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "isolation_level SERIALIZABLE": {"isolation_level": "SERIALIZABLE"},
    "isolation_level REPEATABLE READ": {"isolation_level": "REPEATABLE READ"},
    "isolation_level AUTOCOMMIT": {"isolation_level": "AUTOCOMMIT"},
    "logging_token": {"logging_token": "request 7"},
    "stream_results": {"stream_results": True},
    "yield_per": {"yield_per": 10},
    "max_row_buffer": {"stream_results": True, "max_row_buffer": 3},
    "no_parameters": {"no_parameters": True},
    "insertmanyvalues_page_size": {"insertmanyvalues_page_size": 1},
    "preserve_rowcount": {"preserve_rowcount": True},
    "compiled_cache None": {"compiled_cache": None},
    "a schema_translate_map of other schemas": {"schema_translate_map": {"per_tenant": "tenant"}},
    "a schema_translate_map that changes nothing": {"schema_translate_map": {None: None}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("level", ["engine", "connection", "session", "session's connection"])
def test_an_execution_option_that_works(database: Database, level: str, options: dict[str, Any]) -> None:
    """At whichever level the application sets it; with the keys fetched through it too."""
    database.keys.forget()
    with ExitStack() as stack:
        if level == "engine":
            session = stack.enter_context(Session(database.engine.execution_options(**options)))
        elif level == "connection":
            connection = stack.enter_context(database.engine.connect()).execution_options(**options)
            use_and_leave(database.using(connection))
            return
        elif level == "session":
            session = stack.enter_context(Session(database.engine, execution_options=options))
        else:
            session = stack.enter_context(Session(database.engine))
            session.connection(execution_options=options)
        use_and_leave(database.using(session))


ENGINES: dict[str, dict[str, Any]] = {
    "isolation_level": {"isolation_level": "REPEATABLE READ"},
    "AUTOCOMMIT": {"isolation_level": "AUTOCOMMIT"},
    "skip_autocommit_rollback": {"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True},
    "pool_reset_on_return None": {"pool_reset_on_return": None},
    "pool_reset_on_return commit": {"pool_reset_on_return": "commit"},
    "pool_recycle": {"pool_recycle": 0},
    "query_cache_size 0": {"query_cache_size": 0},
    "echo": {"echo": "debug"},
    "logging_name": {"logging_name": "ours", "pool_logging_name": "pool"},
    "insertmanyvalues": {"use_insertmanyvalues": False},
    "native_inet_types": {"native_inet_types": False},
    "json_serializer": {"json_serializer": str, "json_deserializer": str},
    "prepare_threshold None": {"connect_args": {"prepare_threshold": None}},
    "prepare_threshold 0": {"connect_args": {"prepare_threshold": 0}},
    "cursor_factory": {"connect_args": {"cursor_factory": type("OwnCursor", (psycopg.Cursor,), {})}},
    "options": {
        "connect_args": {
            "options": "-c statement_timeout=60000 -c TimeZone=Asia/Kolkata -c DateStyle=ISO,DMY -c IntervalStyle=iso_8601 -c bytea_output=escape"
        }
    },
    "read only off": {"execution_options": {"postgresql_readonly": False}},
}


@pytest.mark.parametrize("options", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["own", "callers"])
def test_an_option_of_an_engine_that_works(
    database_url: URL, provider: VaultKeyProvider, make: Callable[..., Engine], options: dict[str, Any]
) -> None:
    """Whoever makes the engine; twice, so that a pooled connection is used again."""
    with Database(make(database_url, **options), provider) as database:
        for _ in range(2):
            with database.transaction() as tx:
                use_and_leave(tx)


REFUSED_ENGINES: dict[str, tuple[dict[str, Any], str]] = {
    "row_factory dict_row": ({"connect_args": {"row_factory": dict_row}}, "row_factory"),
    "row_factory namedtuple_row": ({"connect_args": {"row_factory": namedtuple_row}}, "row_factory"),
    "row_factory class_row": ({"connect_args": {"row_factory": class_row(dict)}}, "row_factory"),
    "ClientCursor": ({"connect_args": {"cursor_factory": psycopg.ClientCursor}}, "ClientCursor"),
    "RawCursor": ({"connect_args": {"cursor_factory": psycopg.RawCursor}}, "RawCursor"),
    "DateStyle": ({"connect_args": {"options": "-c DateStyle=German"}}, "DateStyle"),
    "client_encoding": ({"connect_args": {"client_encoding": "latin1"}}, "client_encoding"),
    "standard_conforming_strings": (
        {"connect_args": {"options": "-c standard_conforming_strings=off"}},
        "standard_conforming_strings",
    ),
}


@pytest.mark.parametrize(("options", "name"), REFUSED_ENGINES.values(), ids=REFUSED_ENGINES)
@pytest.mark.parametrize("make", [create_engine, sqlalchemy.create_engine], ids=["own", "callers"])
def test_an_option_of_an_engine_that_is_refused(
    database_url: URL, provider: VaultKeyProvider, make: Callable[..., Engine], options: dict[str, Any], name: str
) -> None:
    """By its name, at the first connection."""
    with (
        Database(make(database_url, **options), provider) as database,
        pytest.raises(ConfigurationError, match=name),
        database.transaction() as tx,
    ):
        use(tx)


def test_a_listener_cannot_get_around_the_refusal(database_url: URL, provider: VaultKeyProvider) -> None:
    """What it does to a new connection is seen, though it is called after ours."""
    with Database(create_engine(database_url), provider) as database:
        event.listen(database.engine, "connect", lambda connection, _: setattr(connection, "row_factory", dict_row))
        with pytest.raises(ConfigurationError, match="row_factory"), database.transaction() as tx:
            use(tx)


def test_executemany_mode_is_another_drivers(database_url: URL) -> None:
    """SQLAlchemy refuses it by name."""
    with pytest.raises(TypeError, match="executemany_mode"):
        create_engine(database_url, executemany_mode="values_plus_batch")


# --- adapters ----------------------------------------------------------------------------------------------------------


class Shouting(TextLoader):
    """Changes every text that it reads."""

    def load(self, data: Any) -> str:
        return bytes(data).decode().upper()


class Whispering(StrDumper):
    """Changes every text that it writes."""

    def dump(self, obj: str) -> bytes:
        return obj.lower().encode()


class FloatLoader(psycopg.adapt.Loader):
    def load(self, data: Any) -> float:
        return float(bytes(data))


def adapt(adapters: psycopg.adapt.AdaptersMap, name: str) -> None:
    if name == "str":
        adapters.register_dumper(str, Whispering)
    elif name == "uuid":
        adapters.register_loader("uuid", TextLoader)
    elif name == "text":
        adapters.register_loader("text", Shouting)
    else:
        adapters.register_loader(name, FloatLoader)


@pytest.mark.parametrize("name", ["str", "text", "uuid", "int4"])
@pytest.mark.parametrize("level", ["global", "listener"])
def test_adapters_that_change_our_values_are_refused(
    database_url: URL, provider: VaultKeyProvider, monkeypatch: pytest.MonkeyPatch, name: str, level: str
) -> None:
    """Registered for the whole process, or for the engine's connections."""
    if level == "global":
        own = psycopg.adapt.AdaptersMap(psycopg.adapters)
        adapt(own, name)
        monkeypatch.setattr(psycopg, "adapters", own)
    with Database(sqlalchemy.create_engine(database_url), provider) as database:
        if level == "listener":
            event.listen(database.engine, "connect", lambda connection, _: adapt(connection.adapters, name))
        with pytest.raises(ConfigurationError, match=name), database.transaction() as tx:
            use(tx)


def test_adapters_of_plain_columns_are_the_applications_own(database_url: URL, provider: VaultKeyProvider) -> None:
    """Such as those that read numeric as float, or dates that Python cannot hold."""
    with Database(sqlalchemy.create_engine(database_url), provider) as database:

        def register_adapters(connection: Any, _: object) -> None:
            connection.adapters.register_loader("numeric", FloatLoader)
            connection.adapters.register_loader("date", TextLoader)
            connection.adapters.register_loader("timestamptz", TextLoader)

        event.listen(database.engine, "connect", register_adapters)
        with database.transaction() as tx:
            use(tx)


# --- sessions ----------------------------------------------------------------------------------------------------------


class Routing(Session):
    """Chooses the engine by the model, as Flask-SQLAlchemy's session does."""

    def get_bind(self, mapper: Any = None, **arguments: Any) -> Engine | Connection:
        if mapper is not None and issubclass(sqlalchemy.inspect(mapper).class_, Base):
            return ENGINES_OF_ROUTING["ours"]
        return ENGINES_OF_ROUTING["others"]


ENGINES_OF_ROUTING: dict[str, Engine] = {}


@pytest.fixture
def other_engine(empty_url: URL) -> Iterator[Engine]:
    """An engine of another database."""
    made = create_engine(empty_url)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    "kind",
    [
        *("Session", "sessionmaker", "scoped_session", "binds of models", "binds of tables", "binds of the base"),
        *("get_bind", "autoflush", "expire_on_commit", "subclass"),
    ],
)
def test_a_kind_of_session_that_works(database: Database, other_engine: Engine, kind: str) -> None:
    """However it finds its engine."""
    engine = database.engine
    ENGINES_OF_ROUTING.update(ours=engine, others=other_engine)
    kinds: dict[str, Callable[[], Any]] = {
        "Session": lambda: Session(engine),
        "sessionmaker": sessionmaker(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
        "binds of models": lambda: Session(binds={PatientRow: engine, ClinicalNoteRow: engine}),
        "binds of tables": lambda: Session(other_engine, binds={table_of(PatientRow): engine}),
        "binds of the base": lambda: Session(other_engine, binds={Base: engine}),
        "get_bind": Routing,
        "autoflush": lambda: Session(engine, autoflush=False),
        "expire_on_commit": lambda: Session(engine, expire_on_commit=False),
        "subclass": lambda: type("SQLModelSession", (Session,), {})(engine),
    }
    session = kinds[kind]()
    tx = database.using(session)
    use(tx)
    session.commit()
    assert tx.patients.get("PT-001").ssn == SSN
    session.close()


def test_a_scoped_session_is_each_threads_own(database: Database) -> None:
    """Repositories that are kept for the whole process use the session of the thread that calls them."""
    scoped = scoped_session(sessionmaker(database.engine))
    tx = database.using(scoped)
    tx.patients.add(Patient(patient_id="PT-001", ssn=SSN))
    seen: list[int] = []

    def count() -> None:
        seen.append(len(tx.patients.page()))
        scoped.remove()

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert seen == [0]  # of another transaction
    scoped.commit()
    assert len(tx.patients.page()) == 1
    scoped.remove()


def test_a_table_that_is_bound_to_another_engine_is_refused(database: Database, other_engine: Engine) -> None:
    """Though the session's own engine is the right one; and a table of an application's own is asked for when it is used."""
    with (
        Session(database.engine, binds={PatientRow: other_engine}) as session,
        pytest.raises(ValueError, match="another engine for patient_data"),
    ):
        database.using(session)
    with Session(database.engine, binds={ClinicalNoteRow: other_engine}) as session:
        tx = database.using(session)
        assert tx.patients.page() == []
        with pytest.raises(ValueError, match="another engine for clinical_notes"):
            _ = tx.clinical_notes
    with Session() as session, pytest.raises(ValueError, match="no engine for patient_data"):
        database.using(session)
    with Session(binds={ClinicalNoteRow: database.engine}) as session:
        tx = database.using(session)
        assert tx.clinical_notes.page() == []
        with pytest.raises(ValueError, match="no engine for patient_data"):
            _ = tx.patients


@pytest.mark.parametrize("mode", ["create_savepoint", "conditional_savepoint", "control_fully", "rollback_only"])
def test_a_session_on_a_connection(database: Database, mode: Any) -> None:
    """As test suites use it: whatever the session does, the connection's transaction decides."""
    with database.engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:
            use(database.using(session))
            session.commit()
        if mode != "control_fully":
            assert outer.is_active
            outer.rollback()
    with database.transaction() as tx:
        assert len(tx.patients.page()) == (251 if mode == "control_fully" else 0)


def test_savepoints(database: Database) -> None:
    """An error inside of one ends the savepoint alone, and one that is caught without it the transaction."""
    patient = Patient(patient_id="PT-001", ssn=SSN)
    with Session(database.engine) as session:
        tx = database.using(session)
        with session.begin_nested():
            tx.patients.add(patient)
        with pytest.raises(DuplicateError), session.begin_nested():
            tx.patients.update("PT-001", name="gone")
            tx.patients.add(patient)
        assert tx.patients.get("PT-001").name is None
        with pytest.raises(DuplicateError):
            tx.patients.add(patient)
        with pytest.raises(TransactionFailedError):
            tx.patients.get("PT-001")
        with pytest.raises(TransactionFailedError):
            session.commit()


def test_a_pipeline_is_refused(database: Database) -> None:
    """In it no statement says whether it wrote a row, and errors are the driver's own, with a row's values in them."""
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn=SSN))
    calls: list[Callable[[Repositories], object]] = [
        lambda tx: tx.patients.add(Patient(patient_id="PT-001", ssn=SSN)),
        lambda tx: tx.patients.add_many([Patient(patient_id="PT-002", ssn=SSN)]),
        lambda tx: tx.patients.update("PT-009", name="Zoë"),
        lambda tx: tx.patients.delete("PT-009"),
        lambda tx: tx.patients.get("PT-001"),
        lambda tx: tx.patients.page(limit=300),
    ]
    with database.engine.connect() as connection, connection.begin():
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        tx = database.using(connection)
        for call in calls:
            with driver.pipeline(), pytest.raises(ConfigurationError, match="in a pipeline the driver does not wait"):
                call(tx)
        assert [each.patient_id for each in tx.patients.page()] == ["PT-001"]


def test_autoflush_is_the_sessions_own(database: Database) -> None:
    """Pending objects are written before a call of ours, unless the session was told not to."""
    key = {"version": 9, "scheme": "bound", "state": "previous", "check_value": b"x" * 32}
    with Session(database.engine) as session:
        tx = database.using(session)
        session.add(EncryptionKeyRow(**key))
        with session.no_autoflush:
            tx.patients.page()
            assert len(session.new) == 1
        tx.patients.page()
        assert not session.new


def test_a_read_only_session(database: Database) -> None:
    """It reads, and its writes fail by PostgreSQL's own refusal."""
    with Session(database.engine.execution_options(postgresql_readonly=True)) as session:
        tx = database.using(session)
        assert tx.patients.page() == []
        with pytest.raises(DatabaseError, match="25006"):
            tx.patients.add(Patient(patient_id="PT-001"))


@pytest.mark.parametrize("is_scoped", [False, True])
async def test_sessions_of_an_event_loop(database: Database, database_url: URL, is_scoped: bool) -> None:
    """A session, and an async_scoped_session, which is each task's own."""
    async with AsyncDatabase(sqlalchemy_create_async_engine(database_url), database.keys.provider) as made:
        sessions = async_sessionmaker(made.engine)
        session: Any = async_scoped_session(sessions, asyncio.current_task) if is_scoped else sessions()
        tx = made.using(session)
        await tx.run(use)
        if is_scoped:

            async def of_another_task() -> int:
                found = len(await tx.run(lambda tx: tx.patients.page()))
                await session.remove()
                return found

            assert await asyncio.create_task(of_another_task()) == 0
        await session.commit()
        assert (await tx.run(lambda tx: tx.patients.get("PT-001"))).ssn == SSN
        await session.close()


# --- schema_translate_map ------------------------------------------------------------------------------------------------


@pytest.fixture
def tenant(database: Database) -> Database:
    """A second schema with the same tables, and the same patient under another number in each."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
        for table in ("encryption_keys", "index_keys", "patient_data", "clinical_notes"):
            connection.execute(text(f"CREATE TABLE tenant.{table} (LIKE public.{table} INCLUDING ALL)"))
    with database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn=SSN, mrn="M-1"))
    return database


def names(engine: Engine) -> list[bytes | None]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT name_encrypted FROM patient_data")).scalars())


def refused_at_hand_over(database: Database, session: Session | Connection) -> None:
    with pytest.raises(ValueError, match="schema_translate_map.*database of its own"):
        database.using(session)


def test_a_map_is_refused_when_a_session_is_handed_over(tenant: Database) -> None:
    """By the engine's options, the connection's, or the session's own."""
    translated = tenant.engine.execution_options(schema_translate_map=TENANT)
    with Session(translated) as session:
        refused_at_hand_over(tenant, session)
    with translated.connect() as connection:
        refused_at_hand_over(tenant, connection)
    with tenant.engine.connect() as connection, Session(connection) as session:
        connection.execution_options(schema_translate_map=TENANT)
        refused_at_hand_over(tenant, session)
    with Session(tenant.engine, execution_options={"schema_translate_map": TENANT}) as session:
        refused_at_hand_over(tenant, session)


CALLS: dict[str, Callable[[Repositories], object]] = {
    "get": lambda tx: tx.patients.get("PT-001"),
    "get_many": lambda tx: tx.patients.get_many(["PT-001"]),
    "page": lambda tx: tx.patients.page(),
    "long page": lambda tx: tx.patients.page(limit=1000),
    "find": lambda tx: tx.patients.find_by_mrn("M-1"),
    "update": lambda tx: tx.patients.update("PT-001", name="Zoë"),
    "add": lambda tx: tx.patients.add(Patient(patient_id="PT-002")),
    "add_many": lambda tx: tx.patients.add_many([Patient(patient_id="PT-002")]),
    "delete": lambda tx: tx.patients.delete("PT-001"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("level", ["engine", "connection", "session", "session's connection"])
@pytest.mark.parametrize("fetches", [False, True], ids=["known keys", "keys fetched"])
def test_a_map_is_refused_at_execution(
    tenant: Database, call: Callable[[Repositories], object], level: str, fetches: bool
) -> None:
    """Wherever it was set after the session was handed over: no row is read or written, and no key is fetched through it."""
    if fetches:
        tenant.keys.forget()
    else:
        with tenant.transaction() as tx:
            assert len(tx.patients.page()) == 1
    with Session(tenant.engine) as session:
        tx = tenant.using(session)
        if level == "engine":
            session.bind = tenant.engine.execution_options(schema_translate_map=TENANT)
        elif level == "connection":
            session.connection().execution_options(schema_translate_map=TENANT)
        elif level == "session":
            session.execution_options = immutabledict({"schema_translate_map": TENANT})
        else:
            session.connection(execution_options={"schema_translate_map": TENANT})
        with pytest.raises(ConfigurationError, match="schema_translate_map"):
            call(tx)
        session.commit()
    assert names(tenant.engine) == [None]
    with tenant.transaction() as tx:
        assert [each.patient_id for each in tx.patients.page()] == ["PT-001"]


def test_a_map_of_the_engine_is_refused_in_a_transaction_of_ours(tenant: Database) -> None:
    """Database() on such an engine reads and writes nothing."""
    translated = Database(tenant.engine.execution_options(schema_translate_map=TENANT), tenant.keys.provider)
    with pytest.raises(ConfigurationError, match="schema_translate_map"), translated.transaction() as tx:
        tx.patients.update("PT-001", name="Zoë")
    with Session(tenant.engine.execution_options(schema_translate_map=TENANT)) as session:
        repository = PatientRepository(session, tenant.keys)
        with pytest.raises(ConfigurationError, match="schema_translate_map"):
            repository.get("PT-001")
    assert names(tenant.engine) == [None]


def test_tools_refuse_a_map_as_well(database: Database) -> None:
    """Status, verify and the registry would look at other tables than those that the map means."""
    provider = database.keys.provider
    with database.engine.connect().execution_options(schema_translate_map=TENANT) as connection:
        for tool in (
            lambda: read_status(connection),
            lambda: initialise_keys(provider, connection),
            lambda: register(connection, provider.fetch()),
        ):
            with pytest.raises(ConfigurationError, match="schema_translate_map"):
                tool()
            connection.rollback()
    with pytest.raises(ConfigurationError, match="schema_translate_map"):
        verify(database.engine.execution_options(schema_translate_map=TENANT), database.keys)


def test_what_needs_a_transaction_refuses_autocommit(database: Database) -> None:
    """SET LOCAL and locks of a transaction would be over before the next statement: RLS would hide rows from verify, say."""
    provider = database.keys.provider
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for tool in (
            lambda: read_status(connection),
            lambda: verify(database.engine.execution_options(isolation_level="AUTOCOMMIT"), database.keys),
            lambda: register(connection, provider.fetch()),
        ):
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                tool()


# --- two-phase transactions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_phase(vault: VaultServer) -> Iterator[Database]:
    """A database on a server that keeps prepared transactions."""
    with throwaway_server({"max_prepared_transactions": "5"}) as server:
        engine = create_engine(server.url(), poolclass=NullPool)
        migrate(engine)
        provider = VaultKeyProvider(vault.address, TokenLogin(vault.root_token), mount="secret", path="test/two-phase")
        with engine.begin() as connection:
            initialise_keys(provider, connection)
        yield Database(engine, provider)


def test_two_phase_transactions(two_phase: Database) -> None:
    """Both phases keep what was written, a rollback after the first keeps nothing, and a failed one is never taken for kept."""
    with Session(two_phase.engine, twophase=True) as session:
        use(two_phase.using(session))
        session.prepare()
        with two_phase.transaction() as tx:
            assert tx.patients.page() == []
        session.commit()
    with Session(two_phase.engine, twophase=True) as session:
        two_phase.using(session).patients.update("PT-001", name="lost")
        session.prepare()
        session.rollback()
    with Session(two_phase.engine, twophase=True) as session:
        tx = two_phase.using(session)
        tx.patients.update("PT-001", name="lost")
        with pytest.raises(DuplicateError):
            tx.patients.add(Patient(patient_id="PT-001"))
        with pytest.raises(DBAPIError):
            session.commit()
    with two_phase.transaction() as tx:
        assert tx.patients.get("PT-001").name == "Zoë"


def test_a_two_phase_transaction_of_a_connection(two_phase: Database) -> None:
    """As a transaction manager uses it."""
    with two_phase.engine.connect() as connection:
        transaction = connection.begin_twophase()
        two_phase.using(connection).patients.add(Patient(patient_id="PT-2", ssn=SSN))
        transaction.prepare()
        transaction.commit()
        connection.rollback()
    with two_phase.transaction() as tx:
        assert tx.patients.get("PT-2").ssn == SSN
