"""An application's listeners to SQLAlchemy's events see a repository's statements, and neither a value nor a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg
import pytest
from sqlalchemy import Engine, NullPool, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from voiceassist_db import AsyncDatabase, Database, Patient, create_async_engine, create_engine
from voiceassist_db.errors import ConfigurationError, DuplicateError, NotFoundError
from voiceassist_db.providers.vault import VaultKeyProvider

SSN = "900-11-2233"
PATIENT = Patient(patient_id="PT-001", ssn=SSN, mrn="MRN-77", name="Zoë Overheard")


@dataclass
class Listener:
    """What a tracing library does: it keeps what it is told, and sets things on the context."""

    told: list[tuple[str, str, Any]] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def listen(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self.before)
        event.listen(engine, "after_cursor_execute", self.after)
        event.listen(engine, "handle_error", self.failed)

    def before(self, _: Any, cursor: Any, sql: str, given: Any, context: Any, is_many: bool) -> None:
        context.span = len(self.told)
        self._keep("before", cursor, sql, given, context, is_many)

    def after(self, _: Any, cursor: Any, sql: str, given: Any, context: Any, is_many: bool) -> None:
        if "patient_data" in sql:
            assert self.told[context.span][:2] == ("before", sql)
        self._keep("after", cursor, sql, given, context, is_many)

    def failed(self, told: ExceptionContext) -> None:
        self._keep("failed", told.cursor, str(told.statement), told.parameters, vars(told), False)

    def _keep(self, what: str, cursor: Any, sql: str, given: Any, *rest: Any) -> None:
        if "patient_data" not in sql:
            return  # SQLAlchemy's own, and those that look at the connection
        self.told.append((what, sql, given))
        held = {name: getattr(cursor, name, None) for name in dir(cursor) if not name.startswith("__")}
        self.seen += [given, rest, held, getattr(held.get("_query"), "params", None)]

    def verbs(self) -> list[str]:
        return [f"{what} {sql.split()[0]}" for what, sql, _ in self.told]


def use(database: Database) -> None:
    """Write, read, search, change and delete by repositories, in one transaction each."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-1{n}", ssn=SSN, name="Zoë Overheard") for n in range(3))
    with database.transaction() as tx:
        assert tx.patients.get("PT-001").ssn == SSN
        assert len(tx.patients.find_by_ssn(SSN)) == 4
        tx.patients.update("PT-001", name="Zoë Overheard II")
        tx.patients.delete("PT-10")


def test_every_statement_is_told_with_masks(database: Database) -> None:
    """A span that begins also ends; the statement is there, and what it carries is not."""
    listener = Listener()
    listener.listen(database.engine)
    use(database)
    verbs = listener.verbs()
    assert {"before INSERT", "before SELECT", "before UPDATE", "before DELETE"} <= set(verbs)
    assert [each.replace("before", "after") for each in verbs[::2]] == verbs[1::2]
    ours = [given for _, sql, given in listener.told if "pgp_sym" in sql or "_index" in sql]
    assert ours
    assert all(value == "•••" for given in ours for value in (given[0] if isinstance(given, list) else given).values())
    keys = database.keys.provider.fetch()
    everything = repr(listener.seen)
    for secret in (SSN, "Overheard", "MRN-77", keys.key.expose().decode()):
        assert secret not in everything


@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute", "handle_error"])
@pytest.mark.parametrize("level", ["all engines", "engine", "connection"])
def test_a_listener_to_one_event_alone_is_told(database: Database, name: str, level: str) -> None:
    """Whichever it is, and wherever it listens: nobody has to listen to another one for that."""
    if (name, level) == ("handle_error", "connection"):
        return  # SQLAlchemy has it for engines only
    told: list[Any] = []

    def listener(*given: Any) -> None:
        told.append(given)

    with database.engine.connect() as connection:
        patients = database.using(connection).patients
        patients.add(PATIENT)  # before anybody listens
        connection.commit()
        target: Any = {"all engines": Engine, "engine": database.engine, "connection": connection}[level]
        event.listen(target, name, listener)
        try:
            with pytest.raises(DuplicateError):
                patients.add(Patient(patient_id="PT-001", ssn=SSN))
            connection.rollback()
            with pytest.raises(NotFoundError):
                patients.get("PT-404")
        finally:
            event.remove(target, name, listener)
    assert told
    assert SSN not in repr(told)


def test_a_failure_is_told_with_our_error(database: Database) -> None:
    """So that a span ends there, too. Our error carries no value, and what a listener returns does not replace it."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)
    listener = Listener()
    listener.listen(database.engine)
    event.listen(database.engine, "handle_error", lambda _: RuntimeError("another"), retval=True)
    with pytest.raises(DuplicateError), database.transaction() as tx:
        tx.patients.add(Patient(patient_id="PT-001", ssn=SSN))
    assert listener.verbs() == ["before INSERT", "failed INSERT"]
    assert SSN not in repr(listener.seen)


def test_an_interrupt_is_told(database: Database) -> None:
    """A request that is cancelled ends its span: SQLAlchemy tells its listeners, too."""
    interrupts: list[BaseException] = []

    class Interrupted(psycopg.Cursor[Any]):
        def execute(self, *given: Any, **options: Any) -> Self:
            if interrupts and "patient_data" in str(given[0]):
                raise interrupts.pop()
            return super().execute(*given, **options)

    listener = Listener()
    engine = create_engine(database.engine.url, poolclass=NullPool, connect_args={"cursor_factory": Interrupted})
    with engine.connect() as connection:
        patients = Database(connection.engine, database.keys.provider).using(connection).patients
        patients.add(PATIENT)
        listener.listen(connection.engine)
        interrupts.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            patients.get("PT-001")
    assert listener.verbs() == ["before SELECT", "failed SELECT"]
    assert SSN not in repr(listener.seen)


def test_a_listener_can_execute_a_statement_before_ours(database: Database) -> None:
    """As those do that set a tenant for row-level security."""

    def set_tenant(_: Any, cursor: Any, *__: Any) -> None:
        cursor.execute("SELECT set_config('app.tenant', 'north', true)")

    event.listen(database.engine, "before_cursor_execute", set_tenant)
    with database.engine.begin() as connection:
        database.using(connection).patients.add(PATIENT)
        assert connection.exec_driver_sql("SHOW app.tenant").scalar() == "north"


@pytest.mark.parametrize(
    ("change", "is_followed"),
    [
        (lambda sql, given: (sql + " /*route='%%2Fvisits',traceparent='00-1'*/", given), True),
        (lambda sql, given: ("/* app */ " + sql, given), True),
        (lambda sql, given: (sql + " -- end", given), False),
        (lambda sql, given: ("SET LOCAL app.tenant = 'north'; " + sql, given), False),
        (lambda sql, given: (sql.replace("patient_data", "patients_of_north"), given), False),
        (lambda sql, given: (sql, {**given, "tenant": 1}), False),
        (lambda sql, given: (sql, given.update(tenant=1) or given), False),
        (lambda sql, given: (sql, given.update(dict.fromkeys(given, "PT-002")) or given), False),
    ],
    ids=[
        *("a comment", "a comment before", "another comment", "a statement more", "another table", "a parameter more"),
        *("a parameter more in place", "parameters in place"),
    ],
)
def test_a_changed_statement_is_refused(
    database: Database, change: Callable[[str, Any], tuple[str, Any]], is_followed: bool
) -> None:
    """Comments change nothing. Whoever changes more relies on it, as tenancy does: then nothing may be read past it."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)

    def changed(_: Any, __: Any, sql: str, given: Any, *___: Any) -> tuple[str, Any]:
        return change(sql, given) if "patient_data" in sql else (sql, given)

    event.listen(database.engine, "before_cursor_execute", changed, retval=True)
    if is_followed:
        with database.transaction() as tx:
            assert tx.patients.get("PT-001").ssn == SSN
        return
    with (
        pytest.raises(ConfigurationError, match="a listener to before_cursor_execute changed"),
        database.transaction() as tx,
    ):
        tx.patients.get("PT-001")


async def test_statements_on_an_event_loop_are_told(database: Database, provider: VaultKeyProvider) -> None:
    """Listeners are those of the ``sync_engine``, as everywhere in SQLAlchemy."""
    engine: AsyncEngine = create_async_engine(database.engine.url)
    listener = Listener()
    listener.listen(engine.sync_engine)
    async with AsyncDatabase(engine, provider) as asynchronous:
        async with asynchronous.transaction() as work:
            await work.run(lambda tx: tx.patients.add(PATIENT))
        async with asynchronous.transaction() as work:
            assert (await work.run(lambda tx: tx.patients.get("PT-001"))).ssn == SSN
    assert listener.verbs() == ["before INSERT", "after INSERT", "before SELECT", "after SELECT"]
    assert SSN not in repr(listener.seen)


def test_listeners_to_one_connection_or_to_the_end_alone_are_told(database: Database) -> None:
    """Whichever of SQLAlchemy's ways an application takes to listen."""
    listener = Listener()
    with database.engine.begin() as connection:
        event.listen(connection, "before_cursor_execute", listener.before)
        database.using(connection).patients.add(PATIENT)
    assert listener.verbs() == ["before INSERT"]
    told: list[str] = []
    event.listen(database.engine, "after_cursor_execute", lambda _, __, sql, *___: told.append(sql.split()[0]))
    with database.transaction() as tx:
        tx.patients.delete("PT-001")
    assert "DELETE" in told


def test_a_listener_that_fails_lets_nothing_through(database: Database) -> None:
    """Audit that cannot be written stops the read; the error is the listener's own."""
    with database.transaction() as tx:
        tx.patients.add(PATIENT)

    def refuse(_: Any, __: Any, sql: str, *___: Any) -> None:
        if "patient_data" in sql:
            raise PermissionError("no audit")

    event.listen(database.engine, "before_cursor_execute", refuse)
    with pytest.raises(PermissionError, match="no audit"), database.transaction() as tx:
        tx.patients.get("PT-001")
    event.remove(database.engine, "before_cursor_execute", refuse)
    with database.transaction() as tx:
        assert tx.session.execute(text("SELECT 1")).scalar() == 1
        assert tx.patients.get("PT-001").ssn == SSN
