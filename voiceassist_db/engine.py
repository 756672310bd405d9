"""SQLAlchemy engines whose connections may receive keys.

Owns how an engine is made and what is done to each of its connections before a key can pass through it.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy
from psycopg import AsyncClientCursor, ClientCursor
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as sqlalchemy_create_async_engine

from voiceassist_db.config import parse_database_url
from voiceassist_db.errors import ConfigurationError, TransactionFailedError
from voiceassist_db.execution import FAILED
from voiceassist_db.pgcrypto.binding import allow_keys

CONNECT_TIMEOUT_S: Final = 10
_ALLOWED: Final = "voiceassist_db.may_receive_keys"


def create_engine(url: str | URL, **options: Any) -> Engine:
    """Create an engine for ``postgresql://…`` that never shows a parameter in a log or an error.

    Args:
        url: The database's address.
        options: Further options of :func:`sqlalchemy.create_engine`.
    """
    return prepare(sqlalchemy.create_engine(_address(url), **_defaults(options)))


def create_async_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """Create the same engine for asyncio."""
    engine = sqlalchemy_create_async_engine(_address(url), **_defaults(options))
    prepare(engine.sync_engine)
    return engine


def prepare(engine: Engine) -> Engine:
    """Let an engine's connections send keys; an engine that was made elsewhere needs it once."""
    if not event.contains(engine, "checkout", _on_checkout):
        event.listen(engine, "checkout", _on_checkout)
        event.listen(engine, "commit", _on_commit)
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
        "pool_pre_ping": True,
        **options,
        "connect_args": connect_args | options.get("connect_args", {}),
    }


def _on_checkout(_connection: Any, record: Any, _proxy: Any) -> None:
    # At checkout and not at connect, so that connections which were in the pool before prepare() are reached as well.
    if _ALLOWED not in record.info:
        connection = record.driver_connection
        if issubclass(connection.cursor_factory, ClientCursor | AsyncClientCursor):
            raise ConfigurationError(
                "this engine binds parameters in the client, which would put keys into the text of statements: leave out "
                "cursor_factory=ClientCursor"
            )
        if connection.info.encoding != "utf-8":
            raise ConfigurationError(
                f"this connection's client_encoding is {connection.info.encoding}, which cannot carry every text: set it to utf8"
            )
        allow_keys(connection)
        record.info[_ALLOWED] = True


def _on_commit(connection: Connection) -> None:
    # PostgreSQL answers COMMIT in a failed transaction with ROLLBACK, and no driver says so: the caller, who caught the
    # statement's error, would believe that the rest was kept.
    driver: Any = connection.connection.driver_connection
    if driver.info.transaction_status is TransactionStatus.INERROR:
        raise TransactionFailedError(FAILED)
