"""SQLAlchemy engines whose connections may receive keys.

Owns how an engine is made, and the check of each of its connections before a key can pass through it.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemy_create_async_engine

from voiceassist_db import forks, safety
from voiceassist_db.config import ALLOW_UNSAFE, parse_database_url
from voiceassist_db.drivers import require_fitting
from voiceassist_db.errors import ConfigurationError, TransactionFailedError
from voiceassist_db.execution import FAILED
from voiceassist_db.interrupts import let_interrupts_pass
from voiceassist_db.pgcrypto.binding import allow_keys, refuse_keys
from voiceassist_db.pools import WholePool
from voiceassist_db.safety import Session

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10
_OPENED_BY: Final = "voiceassist_db.opened_by"
_CHECKED_BY: Final = "voiceassist_db.checked_by"
_POOLED: Final = "voiceassist_db.is_pooled"

_REFUSED: Final = f"""no key is sent over this connection, because it could be seen:
{{findings}}
Each line says how to fix it. `voiceassist-db provision` fixes settings and rights, and `voiceassist-db check` shows what is left. \
{ALLOW_UNSAFE}=1 sends keys all the same, for development without real patients."""

_ALLOWED: Final = """keys and patients' values are sent over a connection where they can be seen. For development only, never for real patients:
%s"""

_NOT_LOOKED_AT: Final = "no key is sent behind a pooler outside of a transaction that began on a prepared engine: use Database(), or prepare()"

_ENDED: Final = (
    "no key is sent behind a pooler once a statement, such as COMMIT, has ended the transaction, for the next one may be in another "
    "server's session: use commit() or rollback() of the connection or session, and begin again"
)

_HANDED_ON: Final = (
    "this engine's creator gave a connection that another process opened, and this process was forked from it: let the creator open its "
    "connections, or its pool, in this process"
)

_GATES: Final[WeakKeyDictionary[Engine, _Gate]] = WeakKeyDictionary()


def create_engine(url: str | URL, *, allow_unsafe: bool = False, trust_local: bool = False, **options: Any) -> Engine:
    """Create an engine for ``postgresql://…`` that never shows a parameter in a log or an error.

    Args:
        url: The database's address.
        allow_unsafe: Send keys over unsafe connections too, with a warning that says what that risks. For development.
        trust_local: Send keys to any server on this machine, whichever user runs it. For a proxy beside the application that
            does not ask for a password by SCRAM.
        options: Further options of :func:`sqlalchemy.create_engine`.
    """
    engine = sqlalchemy.create_engine(_address(url), **_defaults({"poolclass": WholePool, **options}))
    return prepare(engine, allow_unsafe=allow_unsafe, trust_local=trust_local)


def create_async_engine(
    url: str | URL, *, allow_unsafe: bool = False, trust_local: bool = False, **options: Any
) -> AsyncEngine:
    """Create the same engine for asyncio.

    Args:
        url: As for :func:`create_engine`.
        allow_unsafe: As for :func:`create_engine`.
        trust_local: As for :func:`create_engine`.
        options: Further options of ``sqlalchemy.ext.asyncio.create_async_engine``.
    """
    engine = sqlalchemy_create_async_engine(_address(url), **_defaults(options))
    prepare(engine.sync_engine, allow_unsafe=allow_unsafe, trust_local=trust_local)
    return engine


def prepare(engine: Engine, *, allow_unsafe: bool = False, trust_local: bool = False) -> Engine:
    """Let an engine's connections send keys, each once it is found safe; an engine that was made elsewhere needs it once.

    Through an unsafe one, statements without keys run; one with a key raises ``UnsafeConnectionError``, which says what to mend.

    Args:
        engine: An engine for PostgreSQL through psycopg.
        allow_unsafe: Send keys over unsafe connections too, with a warning that says what that risks. For development.
        trust_local: Send keys to any server on this machine, whichever user runs it. For a proxy beside the application that
            does not ask for a password by SCRAM.
    """
    forks.follow()
    if engine not in _GATES:
        # One gate for all engines of a pool, as execution_options() makes them.
        gate = next((gate for each, gate in _GATES.items() if each.pool is engine.pool), None)
        if gate is None:
            gate = _Gate(allow_unsafe=allow_unsafe, trust_local=trust_local)
            if not trust_local:
                # Not by the event do_connect: listeners that come later, and may give the password, would not be called.
                engine.dialect.connect = safety.proving(engine.dialect.connect)  # type: ignore[method-assign]
        _GATES[engine] = gate
        event.listen(engine, "do_connect", _before_connect, insert=True)
        event.listen(engine, "connect", _on_connect, insert=True)  # before SQLAlchemy's own first questions
        event.listen(engine, "checkout", gate.on_checkout)
        event.listen(engine, "begin", gate.on_begin)
        event.listen(engine, "after_cursor_execute", _on_executed)
        event.listen(engine, "commit", _on_commit)
        let_interrupts_pass(engine)
        forks.guard(engine)
    return engine


def _address(url: str | URL) -> URL:
    return parse_database_url(url if isinstance(url, str) else url.render_as_string(hide_password=False))


def _defaults(options: dict[str, Any]) -> dict[str, Any]:
    connect_args = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "voiceassist-db",
        "client_encoding": "utf8",
    }
    return {
        "hide_parameters": True,
        "use_native_hstore": False,  # to find that type SQLAlchemy asks by unqualified names, before anybody has looked whose they are
        "pool_pre_ping": True,
        **options,
        "connect_args": connect_args | options.get("connect_args", {}),
    }


class _Gate:
    """Decides of each connection of an engine whether it may send keys."""

    def __init__(self, *, allow_unsafe: bool, trust_local: bool) -> None:
        self._allow_unsafe = allow_unsafe
        self._trust_local = trust_local
        self._has_warned = False

    def on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        # At checkout and not at connect, so that connections which were in the pool before prepare() are reached as well.
        driver = record.driver_connection
        if record.info.get(_CHECKED_BY) == os.getpid():
            if _POOLED in record.info:
                refuse_keys(driver, _NOT_LOOKED_AT)
            return
        _require_own(driver, record)
        require_fitting(driver)  # once more: listeners to the event connect come after ours
        session = _ask(connection)
        findings = _ask_about_schemas(connection, session)
        if not driver.autocommit:
            connection.rollback()
        if safety.is_pooled(driver, session):
            driver.prepare_threshold = None  # a statement that one server prepared, the next one would not know
            record.info[_POOLED] = session, findings
            refuse_keys(driver, _NOT_LOOKED_AT)
        else:
            self._admit(driver, session, findings)
        record.info[_CHECKED_BY] = os.getpid()

    def on_begin(self, connection: Connection) -> None:
        """Look again behind a pooler, where each transaction may be another server's session; this is its first statement.

        A transaction that begins in another way, as one in two phases does, gets no key.
        """
        forks.follow()
        info = getattr(connection.connection, "info", None) or {}
        if _POOLED not in info:
            return
        driver: Any = connection.connection.driver_connection
        session = _ask(connection.connection)
        before, findings = info[_POOLED]
        findings = findings + safety.unsafe_hop(driver, session)
        if session.path != before.path:
            where = ", ".join(session.path)
            findings.append(
                safety.Finding("search_path", f"was changed to {where} in this session", "RESET search_path;")
            )
        self._admit(driver, session, findings)

    def _admit(self, driver: Any, session: Session, findings: list[safety.Finding]) -> None:
        transport = safety.unsafe_transport(driver, trust_local=self._trust_local)
        findings = safety.unsafe_settings(session) + transport + safety.unsafe_names(session) + findings
        if findings and not self._allow_unsafe:
            refuse_keys(driver, _REFUSED.format(findings=safety.described(findings)))
            return
        if findings and not self._has_warned:
            self._has_warned = True
            logger.warning(_ALLOWED, safety.described(findings))
        allow_keys(driver)


def _before_connect(*_: object) -> None:
    forks.follow()  # what is open by now may be the parent's, and the connection that comes is not


_PINNED: Final = {"DateStyle": "ISO", "standard_conforming_strings": "on"}
"""What the driver needs to read values and to send statements. A pooler that shares sessions tracks both for each client."""


def _pin(connection: Any, driver: Any) -> None:
    """Set for this session what a database, a role or the server sets otherwise. What the engine itself asks for stays, and is refused."""
    wrong = [
        name for name, value in _PINNED.items() if not (driver.info.parameter_status(name) or value).startswith(value)
    ]
    for name in wrong:
        ((source,),) = _ask_all(connection, f"SELECT source FROM pg_catalog.pg_settings WHERE name = '{name}'")  # noqa: S608  # of constants
        if source != "client":
            _ask_all(connection, f"SELECT pg_catalog.set_config('{name}', '{_PINNED[name]}', false)")
    if wrong and not driver.autocommit:
        connection.commit()


def _on_connect(connection: Any, record: Any) -> None:
    forks.follow()  # an engine with a creator comes here first
    _pin(connection, record.driver_connection)
    require_fitting(record.driver_connection)
    if forks.is_inherited(record.driver_connection):
        forks.sever(record.driver_connection)
        raise ConfigurationError(_HANDED_ON)
    record.info[_OPENED_BY] = os.getpid()
    forks.own(record.driver_connection)


def _require_own(driver: Any, record: Any) -> None:
    """Have the pool replace a connection that another process opened, or that was opened before prepare()."""
    forks.follow()
    opened_by = record.info.get(_OPENED_BY)
    if opened_by == os.getpid():
        return
    if opened_by is not None or forks.may_be_inherited(record.last_connect_time):
        forks.sever(driver)  # or the pool would end the session of the process that has it
    raise DisconnectionError("another process opened this connection, or it is older than its engine's preparation")


def _ask_all(connection: Any, question: str) -> list[tuple[Any, ...]]:
    cursor = connection.cursor()
    try:
        cursor.execute(question)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    finally:
        cursor.close()
    return rows


def _ask(connection: Any) -> Session:
    return Session.of(_ask_all(connection, safety.SESSION)[0])


def _ask_about_schemas(connection: Any, session: Session) -> list[safety.Finding]:
    rows = []
    ((is_suspect,),) = _ask_all(connection, safety.SUSPECT)
    if is_suspect:
        rows += _ask_all(connection, safety.SCHEMAS)
    if session.has_citus:
        rows += _ask_all(connection, safety.DISTRIBUTED)
    return safety.unsafe_schemas(rows)


def _on_executed(connection: Connection, *_: object) -> None:
    # The driver would begin another transaction by itself, in a session of the pooler's that nobody has looked at.
    if _POOLED in connection.connection.info:
        driver: Any = connection.connection.driver_connection
        if not driver.autocommit and driver.info.transaction_status is TransactionStatus.IDLE:
            refuse_keys(driver, _ENDED)


def _on_commit(connection: Connection) -> None:
    # PostgreSQL answers COMMIT in a failed transaction with ROLLBACK, and no driver says so: the caller, who caught the
    # statement's error, would believe that the rest was kept.
    driver: Any = connection.connection.driver_connection
    if driver.info.transaction_status is TransactionStatus.INERROR:
        raise TransactionFailedError(FAILED)
