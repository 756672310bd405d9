"""What a connection of psycopg must be like for our statements: how it binds parameters, gives rows, and converts values.

An application may change all of that for its engine, or for the whole process. Owns the rules; ``engine`` applies them to each
connection.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncClientCursor, AsyncRawCursor, ClientCursor, RawCursor
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.postgres import register_default_adapters
from psycopg.postgres import types as postgres_types
from psycopg.pq import Format
from psycopg.rows import tuple_row
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from voiceassist_db.errors import ConfigurationError

_WRITTEN: Final = (str, bytes, int, UUID)
"""Python types of keys of rows, encrypted values, tokens and key versions. Those of plain columns are the application's own affair."""

_READ: Final = ("text", "varchar", "bpchar", "bytea", "uuid", "int2", "int4", "int8", "bool")
"""PostgreSQL's types of the same."""

_OWN_PACKAGES: Final = frozenset({"psycopg", "psycopg_binary", "psycopg_c"})


def _psycopgs_own() -> AdaptersMap:
    own = AdaptersMap(types=postgres_types)
    register_default_adapters(SimpleNamespace(adapters=own, connection=None))
    return own


_LOADERS: Final = [
    (name, postgres_types[name].oid, format_, _psycopgs_own().get_loader(postgres_types[name].oid, format_))
    for name in _READ
    for format_ in Format
]


def require_psycopg(engine: Any, *, is_async: bool = False) -> Engine:
    """Return the engine that our statements can use, before one of its connections is opened.

    Args:
        engine: What an application gives as its engine.
        is_async: Whether it must be an async one.

    Raises:
        ConfigurationError: It is for another database, for another driver, or of the other kind.
    """
    if isinstance(engine, AsyncEngine) is not is_async or not isinstance(engine, Engine | AsyncEngine):
        raise ConfigurationError(_ASYNC if is_async else _SYNC)
    made = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if (made.dialect.name, made.dialect.driver) != ("postgresql", "psycopg"):
        function = "create_async_engine" if is_async else "create_engine"
        raise ConfigurationError(
            f"this engine is for {made.dialect.name} through {made.dialect.driver}. Keys are sent to PostgreSQL through psycopg 3 only: make "
            f'another engine beside it, {function}("postgresql+psycopg://…"), and give that one'
        )
    return made


_SYNC: Final = (
    "Database() takes an engine of sqlalchemy.create_engine. For an engine of create_async_engine, use AsyncDatabase()"
)
_ASYNC: Final = "AsyncDatabase() takes an engine of sqlalchemy.ext.asyncio.create_async_engine. For an engine of create_engine, use Database()"


def require_fitting(driver: Any) -> None:
    """Refuse a connection through which our statements would show keys, or give other rows and values than the stored ones.

    Raises:
        ConfigurationError: It is one; the message names what makes it so.
    """
    factory = driver.cursor_factory
    if issubclass(factory, ClientCursor | AsyncClientCursor):
        raise ConfigurationError(
            "this engine binds parameters in the client, which would put keys into the text of statements: leave out "
            "cursor_factory=ClientCursor"
        )
    if issubclass(factory, RawCursor | AsyncRawCursor):
        raise ConfigurationError("this engine's cursors take no named parameters: leave out cursor_factory=RawCursor")
    if driver.row_factory is not tuple_row:
        raise ConfigurationError(
            f"this engine's row_factory ({driver.row_factory!r}) gives rows of its own: leave it out, and set it on cursors of "
            "your own"
        )
    if driver.info.encoding != "utf-8":
        raise ConfigurationError(
            f"this connection's client_encoding is {driver.info.encoding}, which cannot carry every text: set it to utf8"
        )
    if driver.info.parameter_status("standard_conforming_strings") == "off":
        raise ConfigurationError(
            "this connection has standard_conforming_strings off, under which the server reads backslashes in our statements otherwise: "
            "leave it out of the engine's options, or give the role ALTER ROLE … SET standard_conforming_strings = on"
        )
    if not (style := driver.info.parameter_status("DateStyle") or "ISO").startswith("ISO"):
        raise ConfigurationError(
            f"this connection's DateStyle is {style}, in which psycopg reads no timestamps: leave it out of the engine's options, or give "
            "the role ALTER ROLE … SET DateStyle = ISO"
        )
    _require_own_adapters(driver.adapters)


def _require_own_adapters(adapters: AdaptersMap) -> None:
    for kind in _WRITTEN:
        dumper = adapters.get_dumper(kind, PyFormat.AUTO)
        if dumper.__module__.partition(".")[0] not in _OWN_PACKAGES:
            raise _foreign_adapter(f"write {kind.__name__}", dumper)
    for name, oid, format_, own in _LOADERS:
        if (loader := adapters.get_loader(oid, format_)) is not own:
            raise _foreign_adapter(f"read {name}", loader)


def _foreign_adapter(what: str, adapter: Any) -> ConfigurationError:
    return ConfigurationError(
        f"this engine's connections {what} by {getattr(adapter, '__qualname__', adapter)}, so keys of rows and patients' values could differ "
        "from what is stored: register it on connections of your own instead of psycopg.adapters, and give Database() an engine of its own"
    )
