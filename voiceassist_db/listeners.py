"""SQLAlchemy's events around the statements that go past SQLAlchemy: an application's audit, tracing and tenancy see those too.

Owns what a listener gets to see: the statement's text, a mask for each parameter, and a cursor that never held a value. Nobody can
change such a statement, whose parameters belong to its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.engine import ExceptionContext

from voiceassist_db.errors import ConfigurationError

MASK: Final = "•••"

_OURS: Final = 1
"""Listeners to after_cursor_execute that a prepared engine has of itself."""

_COMMENTS: Final = re.compile(r"(?:\s|/\*(?:[^*]|\*(?!/))*\*/|;)*")
"""What tracing adds to a statement: comments (sqlcommenter)."""

CHANGED: Final = (
    "a listener to before_cursor_execute changed the statement or its parameters, which a repository cannot follow: let it execute a "
    "statement of its own by the cursor that it gets, or leave statements on encrypted tables alone"
)


def is_heard(connection: Connection) -> bool:
    """Say whether an application listens to the statements of a connection, at whichever level."""
    # Attributes, because a call of each collection's __len__ or __bool__ costs a hundredth of a read by id.
    engine: Any = connection.engine.dispatch
    before, after, failed = (
        engine.before_cursor_execute,
        engine.after_cursor_execute,
        connection.dialect.dispatch.handle_error,
    )
    if len(after.listeners) > _OURS or before.listeners or failed.listeners:
        return True
    if before.parent_listeners or after.parent_listeners or failed.parent_listeners:  # those of all engines
        return True
    own: Any = connection.dispatch
    before, after = own.before_cursor_execute.local, own.after_cursor_execute.local
    return bool(before.listeners or after.listeners or before.parent_listeners or after.parent_listeners)


@contextmanager
def heard(connection: Connection, sql: str, names: Iterable[str], *, is_many: bool) -> Iterator[None]:
    """Tell the listeners of a connection of the statement that is executed in the block.

    Args:
        connection: The connection, in a transaction.
        sql: The statement's text.
        names: Names of its parameters.
        is_many: Whether it is executed many times in a row.

    Raises:
        ConfigurationError: A listener changed the statement.
    """
    cursor: Any = connection.connection.cursor()
    masks: Any = dict.fromkeys(names, MASK)
    given = [masks] if is_many else masks
    masked = [dict(masks)] if is_many else dict(masks)
    context = _context(connection, sql, is_many=is_many)
    for listener in connection.dispatch.before_cursor_execute:
        changed = listener(connection, cursor, sql, given, context, is_many)
        # What it returns, or changed in place.
        if given != masked or (changed is not None and not _is_same(changed, sql, masked)):
            raise ConfigurationError(CHANGED)
    try:
        yield
    except BaseException as error:  # of an interrupt as well, as SQLAlchemy does: a span would stay open
        told = _Failure(context, cursor, given, error)
        for listener in connection.dialect.dispatch.handle_error:
            listener(told)  # what it returns changes nothing: the error stays what it is, and holds no value
        raise
    for listener in connection.dispatch.after_cursor_execute:
        listener(connection, cursor, sql, given, context, is_many)


def _context(connection: Connection, sql: str, *, is_many: bool) -> Any:
    """Return what stands for SQLAlchemy's execution context, on which listeners keep what they need at the end."""
    return SimpleNamespace(
        root_connection=connection,
        connection=connection,
        engine=connection.engine,
        dialect=connection.dialect,
        statement=sql,
        compiled=None,
        executemany=is_many,
        execution_options=connection.get_execution_options(),
    )


def _is_same(changed: Any, sql: str, parameters: Any) -> bool:
    text, given = changed
    before, found, after = str(text).partition(sql)
    are_comments = _COMMENTS.fullmatch(before) is not None and _COMMENTS.fullmatch(after) is not None
    return bool(found) and are_comments and given == parameters


class _Failure(ExceptionContext):
    """What a listener to handle_error gets."""

    def __init__(self, context: Any, cursor: Any, parameters: Any, failure: BaseException) -> None:
        connection: Connection = context.connection
        self.connection = connection
        self.engine = connection.engine
        self.dialect = connection.dialect
        self.cursor = cursor
        self.statement = context.statement
        self.parameters = parameters
        self.execution_context = context
        self.original_exception = failure
        self.sqlalchemy_exception = None
        self.chained_exception = None
        self.is_disconnect = connection.invalidated
        self.invalidate_pool_on_disconnect = False
        self.is_pre_ping = False
