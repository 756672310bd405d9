"""Where the driver's errors become ours, and where a statement that is executed now and then is executed.

A driver's exception can carry parameters, a DETAIL line with the whole row, or a CONTEXT with the statement. So it is
translated by its SQLSTATE (``sqlstates`` has the words), and ours is raised where no cause and no context hangs on it any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, CursorResult, Executable, Table, TextClause, UniqueConstraint, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from voiceassist_db.errors import (
    ConfigurationError,
    ConstraintError,
    DatabaseError,
    DatabaseUnavailableError,
    DecryptionError,
    DuplicateError,
    MissingKeyError,
    TransactionConflictError,
    TransactionFailedError,
    UnsafeConnectionError,
    VoiceAssistDBError,
)
from voiceassist_db.models import Base
from voiceassist_db.models.declaration import FLOOR_SUFFIX
from voiceassist_db.qualified import names_tables_of, rendered
from voiceassist_db.safety import UNPROVEN, is_unproven
from voiceassist_db.sqlstates import described, raised_by, read_only, unopened
from voiceassist_db.tracebacks import forget_locals

_CONSTRAINT: Final = {"23502", "23503", "23514", "23P01"}
_DECRYPTION: Final = {"39000", "22021"}

FAILED: Final = (
    "an earlier statement of this transaction failed, so that nothing of it can be kept: let its error leave the transaction, "
    "or put what may fail into a savepoint (session.begin_nested())"
)

DRIVER_ERRORS: Final = (StatementError, PendingRollbackError, PoolTimeoutError, psycopg.Error)
"""What can carry parameters or speaks of the connection. Others of SQLAlchemy's, such as NoResultFound, are the caller's."""


def _without_texts(record: logging.LogRecord) -> bool:
    """Let psycopg log an error's class and not its text, which can hold a DETAIL line.

    It logs the error by which a pipeline ends where the block was left by another one, such as a KeyboardInterrupt.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(type(each).__name__ if isinstance(each, BaseException) else each for each in record.args)
    return True


logging.getLogger("psycopg").addFilter(_without_texts)

Parameters = Mapping[str, Any]

_PLAINLY: Final = {"stream_results": False, "yield_per": None, "no_parameters": False}
"""Options that an application may have set for its own statements: a cursor on the server cannot do what ours do."""


def execute(
    connection: Connection, statement: Executable, parameters: Parameters | None = None, *, table: str
) -> CursorResult[Any]:
    """Execute a statement.

    Args:
        connection: A connection that may receive keys.
        statement: The statement; its text holds no secret. One that SQLAlchemy builds is qualified (``qualified``); one that is
            text must be so already.
        parameters: Its parameters, which may be secret.
        table: Name of the table that it is about, for the error.

    Raises:
        VoiceAssistDBError: It failed; the class says how. The connection's transaction is then as PostgreSQL left it.
    """
    try:
        if isinstance(statement, TextClause):
            return connection.execute(statement, parameters, execution_options=_PLAINLY)
        require_untranslated(connection, partial(names_tables_of, statement), table)
        return connection.exec_driver_sql(*rendered(statement, parameters or {}), execution_options=_PLAINLY)
    except DRIVER_ERRORS as error:
        failure = translate(error, table=table)
    except BaseException as error:
        forget_locals(error)
        del parameters
        raise
    del parameters  # a traceback that shows locals would show them
    raise failure


def require_untranslated(connection: Connection, names: Callable[[str | None], bool], table: str) -> None:
    """Refuse to execute a statement that a ``schema_translate_map`` of the connection would send to other tables.

    Args:
        connection: The connection.
        names: Says whether the statement names a table that is declared with a schema.
        table: Name of the table that it is about.

    Raises:
        ConfigurationError: The map is about a table of the statement.
    """
    options = connection.get_execution_options()
    if TRANSLATION in options and any(map(names, translated_schemas(options))):
        raise ConfigurationError(f"{table}: {TRANSLATED}")


def translated_schemas(options: Mapping[str, Any]) -> list[str | None]:
    """Return the schemas that a ``schema_translate_map`` in execution options replaces; None for tables without one."""
    given = options.get(TRANSLATION) or {}
    return [schema for schema, other in given.items() if schema != other]


TRANSLATION: Final = "schema_translate_map"
"""The execution option by which SQLAlchemy puts one schema in the place of another."""

TRANSLATED: Final = (
    "schema_translate_map would move this table to another schema. Values are bound to their table and not to its schema, so one "
    "tenant's could pass for another's: give each tenant a database of its own, with a Database() for it; or map a schema name that "
    "only your own tables are declared with"
)


def see_all_rows(connection: Connection) -> None:
    """Let this transaction fail rather than pass over rows that row-level security hides from the role.

    Raises:
        ConfigurationError: The connection has no transactions.
    """
    require_transactions(connection)
    execute(connection, text("SET LOCAL row_security = off"), table="row_security")


def require_transactions(connection: Connection) -> None:
    """Refuse a connection with autocommit: what is set for a transaction there is over before the next statement.

    Raises:
        ConfigurationError: It is one.
    """
    driver: Any = connection.connection.driver_connection
    if driver.autocommit:
        raise ConfigurationError(
            "this needs a transaction, and the connection has isolation_level AUTOCOMMIT: use an engine or a connection without it"
        )


_WRITABLE: Final = text(
    "SELECT pg_catalog.pg_is_in_recovery() AS is_standby, "
    "pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on' AS is_read_only"
)


def require_writable(connection: Connection) -> None:
    """Refuse a standby, or a transaction that may only read, before anything is written: to the key store above all.

    Raises:
        DatabaseError: It is one.
    """
    row = execute(connection, _WRITABLE, table="transaction_read_only").one()
    if row.is_standby or row.is_read_only:
        raise read_only(is_standby=row.is_standby)


def regclass(connection: Connection, table: Table) -> str:
    """Return a table's name as the text of a PostgreSQL ``regclass``, to be sent as a parameter."""
    # For the text of a statement SQLAlchemy doubles percent signs; a parameter takes them as they are.
    return connection.dialect.identifier_preparer.format_table(table).replace("%%", "%")


@contextmanager
def translated(table: str = "") -> Iterator[None]:
    """Translate the driver's errors of a block that begins, commits or rolls back."""
    try:
        yield
    except DRIVER_ERRORS as error:
        failure = translate(error, table=table)
    else:
        return
    try:
        raise failure
    finally:
        failure.__context__ = None  # the with statement attached the driver's error, which can hold parameters


def translate(error: Exception, *, table: str) -> VoiceAssistDBError:
    """Return our error for one of SQLAlchemy's or psycopg's, with nothing of it but the SQLSTATE and names of constraints."""
    original = error.orig if isinstance(error, DBAPIError) else error
    sqlstate = getattr(original, "sqlstate", None)
    if sqlstate is None:
        return _without_sqlstate(error, original, table)
    if sqlstate in _DECRYPTION:
        return _decryption(original, sqlstate, table)
    if sqlstate == "23505":
        return _duplicate(original, table)
    if sqlstate in _CONSTRAINT:
        return _constraint(original, sqlstate, table)
    if sqlstate == "25P02":
        return TransactionFailedError(FAILED, sqlstate=sqlstate)
    return described(original, sqlstate, table)


def is_stale_plan(error: object) -> bool:
    """Say whether a prepared statement was refused because a column's type was changed; the driver forgets it at a rollback."""
    diagnostics = getattr(error, "diag", None)
    is_refused = getattr(error, "sqlstate", None) == "0A000"
    return is_refused and getattr(diagnostics, "source_function", None) == "RevalidateCachedQuery"


def _without_sqlstate(error: Exception, original: object, table: str) -> VoiceAssistDBError:
    if isinstance(error, PendingRollbackError):
        return TransactionFailedError(FAILED)
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError("no connection became free in time: the pool is too small for the load")
    if isinstance(original, psycopg.OperationalError) and is_unproven(original):
        return UnsafeConnectionError(UNPROVEN)
    if isinstance(original, psycopg.OperationalError | psycopg.InterfaceError):
        return unopened(str(original), table)
    if isinstance(original, psycopg.ProgrammingError) and "Key" in str(original).partition(" using ")[0]:
        return MissingKeyError(
            "this connection was not made by an engine that may send keys: use voiceassist_db.create_engine, or give your "
            "engine to Database()"
        )
    return DatabaseError(f"the statement failed before it reached the server ({type(original).__name__})")


def _decryption(original: object, sqlstate: str, table: str) -> VoiceAssistDBError:
    message = getattr(getattr(original, "diag", None), "message_primary", "") or ""
    if sqlstate == "39000" and message.startswith("Illegal argument"):
        return MissingKeyError(f"a statement on {table} was executed without a key: nothing was read or written")
    return DecryptionError(
        f"a value in {table} does not open: it was damaged, or written under another key. Find it with "
        "`voiceassist-db verify`, and restore its row from a backup.",
        table=table,
        sqlstate=sqlstate,
    )


def _constraint_name(original: object) -> str | None:
    diagnostics = getattr(original, "diag", None)
    return getattr(diagnostics, "constraint_name", None) or getattr(diagnostics, "column_name", None)


def _duplicate(original: object, table: str) -> DuplicateError:
    name = _constraint_name(original)
    field = None
    if (known := Base.metadata.tables.get(table)) is not None:
        for constraint in known.constraints:
            if isinstance(constraint, UniqueConstraint) and constraint.name == name:
                field = "_".join(column.name for column in constraint.columns).removesuffix("_index")
        if name == known.primary_key.name:
            field = "/".join(column.name for column in known.primary_key.columns)
    what = f"this {field}" if field else f"the same value ({name})"
    return DuplicateError(f"another row of {table} already has {what}: nothing was written", table=table, field=field)


def _constraint(original: object, sqlstate: str, table: str) -> DatabaseError:
    name = _constraint_name(original)
    if name is not None and name.endswith(FLOOR_SUFFIX):
        return TransactionConflictError(
            "the transaction began before a key was retired, and wrote under that key: try it again", sqlstate=sqlstate
        )
    if name is None and (function := raised_by(original)):
        return ConstraintError(
            f"the function {function} refused a row{f' of {table}' if table else ''} (SQLSTATE {sqlstate}): nothing was written. Change or "
            "drop the trigger that calls it",
            constraint=None,
            sqlstate=sqlstate,
        )
    return ConstraintError(
        f"the constraint {name}{f' of {table}' if table else ''} refused the row (SQLSTATE {sqlstate}): nothing was written. "
        "Change what the row holds, or the constraint",
        constraint=name,
        sqlstate=sqlstate,
    )
