"""Sessions of an application's own: which connection they use for a table, and whether it may be used.

Knows every kind of session that SQLAlchemy has but those for asyncio, which hand over a session of these.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session

from voiceassist_db.execution import DRIVER_ERRORS, TRANSLATED, translate, translated_schemas
from voiceassist_db.models import table_of

AnySession = Session | scoped_session[Session] | Connection
"""What application code may hand over."""


def require_bound(session: AnySession, engine: Engine, model: type[DeclarativeBase]) -> Engine:
    """Refuse a session that does not use an engine's database for a model's table.

    Args:
        session: The session.
        engine: The engine.
        model: The model.

    Returns:
        The engine that the session uses, whose connections come from the same pool.

    Raises:
        ValueError: The session has no engine for this table, or another one; or its schema_translate_map moves the table.
    """
    table = table_of(model)
    try:
        bind: Engine | Connection = session if isinstance(session, Connection) else session.get_bind(mapper=model)
    except UnboundExecutionError:
        bind = None  # type: ignore[assignment]  # raised below, where SQLAlchemy's error is not its context
    if bind is None:
        raise ValueError(f"this session has no engine for {table.name}: give it one, as bind= or in binds=")
    if bind.engine.pool is not engine.pool:
        raise ValueError(f"this session uses another engine for {table.name}: give that engine to Database()")
    options: dict[str, Any] = dict(bind.get_execution_options())
    if not isinstance(session, Connection):
        options |= getattr(session, "execution_options", {})  # which SQLAlchemy 2.0 has not
    if {table.schema, None} & set(translated_schemas(options)):
        raise ValueError(f"{table.name}: {TRANSLATED}")
    return bind.engine


def connection_of(session: AnySession, model: type[Any]) -> Connection:
    """Return a session's connection for a model's table.

    What the session holds back is written first, unless it was made without autoflush; an error of that is the caller's own.

    Raises:
        VoiceAssistDBError: There is no connection, or the session's transaction has failed.
    """
    if type(session) is not Session:
        if isinstance(session, Connection):
            return session
        if isinstance(session, scoped_session):
            session = session()  # this thread's, whichever thread made the repository
    if session.autoflush:
        session.flush()
    try:
        return session.connection(bind_arguments={"mapper": model})
    except DRIVER_ERRORS as error:
        failure = translate(error, table="")
    raise failure
