"""The one place where statements execute, and where the driver's errors become ours.

A driver's exception can carry parameters, a DETAIL line with the whole row, or a CONTEXT with the statement. So it is
translated by its SQLSTATE alone, and ours is raised where no cause and no context hangs on it any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

import psycopg
from sqlalchemy import ClauseElement, Connection, CursorResult, Executable, Table, UniqueConstraint, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError, PendingRollbackError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from voiceassist_db.errors import (
    ConstraintError,
    DatabaseError,
    DatabaseUnavailableError,
    DecryptionError,
    DuplicateError,
    MissingKeyError,
    PgcryptoMissingError,
    SchemaNotMigratedError,
    TransactionConflictError,
    TransactionFailedError,
    VoiceAssistDBError,
)
from voiceassist_db.models import Base
from voiceassist_db.models.declaration import FLOOR_SUFFIX
from voiceassist_db.tracebacks import forget_locals

_RETRY: Final = {"40001", "40P01", "55P03", "57014"}
_UNAVAILABLE: Final = {"25P03", "25P04", "57P01", "57P02", "57P03", "57P05", "53300", "3D000"}
_CONSTRAINT: Final = {"23502", "23503", "23514", "23P01"}
_DECRYPTION: Final = {"39000", "22021"}

FAILED: Final = (
    "an earlier statement of this transaction failed, so that nothing of it can be kept: let its error leave the transaction, "
    "or put what may fail into a savepoint (session.begin_nested())"
)

_DRIVER_ERRORS: Final = (StatementError, PendingRollbackError, PoolTimeoutError, psycopg.Error)
"""What can carry parameters or speaks of the connection. Others of SQLAlchemy's, such as NoResultFound, are the caller's."""


def _without_texts(record: logging.LogRecord) -> bool:
    """Let psycopg log an error's class and not its text, which can hold a DETAIL line.

    It logs the error by which a pipeline ends where the block was left by another one, such as a KeyboardInterrupt.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(type(each).__name__ if isinstance(each, BaseException) else each for each in record.args)
    return True


logging.getLogger("psycopg").addFilter(_without_texts)

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]
Result = TypeVar("Result")

CHUNK_ROWS: Final = 50
"""Rows that the driver hands over at once of a statement that is read while it runs. A page of 1,000 took 1.30 of the time of
psycopg's ``fetchall`` when it was decoded afterwards; so it takes 0.91, with 20 to 100 rows."""


def execute(
    connection: Connection, statement: Executable, parameters: Parameters | None = None, *, table: str
) -> CursorResult[Any]:
    """Execute a statement.

    Args:
        connection: A connection that may receive keys.
        statement: The statement; its text holds no secret.
        parameters: Its parameters, which may be secret.
        table: Name of the table that it is about, for the error.

    Raises:
        VoiceAssistDBError: It failed; the class says how. The connection's transaction is then as PostgreSQL left it.
    """
    try:
        return connection.execute(statement, parameters)
    except _DRIVER_ERRORS as error:
        failure = translate(error, table=table)
    except BaseException as error:
        forget_locals(error)
        del parameters
        raise
    del parameters  # a traceback that shows locals would show them
    raise failure


def connection_of(session: Session) -> Connection:
    """Return a session's connection, with what the session holds back written; an error of that is the caller's own.

    Raises:
        VoiceAssistDBError: There is none, or the session's transaction has failed.
    """
    session.flush()
    try:
        return session.connection()
    except _DRIVER_ERRORS as error:
        failure = translate(error, table="")
    raise failure


def see_all_rows(connection: Connection) -> None:
    """Let this transaction fail rather than pass over rows that row-level security hides from the role."""
    execute(connection, text("SET LOCAL row_security = off"), table="row_security")


def regclass(connection: Connection, table: Table) -> str:
    """Return a table's name as the text of a PostgreSQL ``regclass``, to be sent as a parameter."""
    # For the text of a statement SQLAlchemy doubles percent signs; a parameter takes them as they are.
    return connection.dialect.identifier_preparer.format_table(table).replace("%%", "%")


class Prepared:
    """A statement that is compiled once and then handed to the driver's own cursor.

    A repository executes the same few statements all the time. Past SQLAlchemy's execution layer, each costs a third less
    (55 to 110 of 250 µs for a read by id), and no echo, event hook or result object there ever holds a key or a value.

    Args:
        statement: The statement; its text holds no secret.
        table: Name of the table that it is about, for errors.
    """

    def __init__(self, statement: Executable, *, table: str) -> None:
        compiled = cast(ClauseElement, statement).compile(dialect=_DIALECT)
        self.sql: Final = str(compiled)
        self._table = table
        self._bind = {
            name: processor
            for name, bind in compiled.binds.items()  # type: ignore[attr-defined]  # SQLCompiler's, as documented
            if (processor := bind.type.dialect_impl(_DIALECT).bind_processor(_DIALECT))
        }
        columns = getattr(statement, "selected_columns", ())
        self._columns = [each.type.dialect_impl(_DIALECT) for each in columns]
        self._results: list[Callable[[Any], Any] | None] | None = None

    def rows(
        self, connection: Connection, parameters: dict[str, Any], *, prepare: bool | None = None
    ) -> list[tuple[Any, ...]]:
        """Execute it and return its rows.

        Args:
            connection: A connection that may receive keys.
            parameters: Its parameters, which may be secret.
            prepare: False has the server plan it anew, for as large as its tables are now: a plan that was made while they were empty
                is kept otherwise. By default the driver prepares what is executed often.
        """
        rows: list[tuple[Any, ...]]
        if self._results is None:
            rows, types = self._run(connection, self._bound(parameters), partial(_all_rows_and_types, prepare=prepare))
            found = [
                column.result_processor(_DIALECT, type_) for column, type_ in zip(self._columns, types, strict=True)
            ]
            self._results = found if any(found) else []
        else:
            way = _all_rows if prepare is None else partial(_all_rows, prepare=prepare)
            rows = self._run(connection, self._bound(parameters), way)
        return list(self._processed(rows)) if self._results else rows

    def read(
        self, connection: Connection, parameters: dict[str, Any], consume: Callable[[Iterable[tuple[Any, ...]]], Result]
    ) -> Result:
        """Execute it and hand over its rows while the server still makes the next ones, where the driver can.

        Args:
            connection: A connection that may receive keys.
            parameters: Its parameters, which may be secret.
            consume: Called once, with the rows. It need not take all of them, and may not use the connection.

        Returns:
            What ``consume`` returns.
        """
        if self._results is None or not _can_stream(connection):
            return consume(self.rows(connection, parameters))

        def streamed(cursor: Any, sql: str, parameters: dict[str, Any]) -> Result:
            rows = cursor.stream(sql, parameters, size=CHUNK_ROWS)
            try:
                return consume(self._processed(rows) if self._results else rows)
            finally:
                # To its end, or the driver would cancel the statement, and that would fail the caller's transaction.
                for _ in rows:
                    pass

        read: Result = self._run(connection, self._bound(parameters), streamed)
        return read

    def _processed(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        results = self._results or ()
        for row in rows:
            yield tuple(process(value) if process else value for process, value in zip(results, row, strict=True))

    def count(self, connection: Connection, parameters: dict[str, Any]) -> int:
        """Execute it and return how many rows it wrote."""
        count: int = self._run(connection, self._bound(parameters), _row_count)
        return count

    def counts(self, connection: Connection, parameters: Iterable[dict[str, Any]]) -> list[int]:
        """Execute it once for each of many parameters, one after the other.

        Args:
            connection: A connection that may receive keys.
            parameters: The parameters, which may be secret, of each execution. They are asked for while the server works, where
                the driver can; who makes them may neither raise nor use the connection.

        Returns:
            How many rows each execution wrote.
        """

        def executed(_: object, sql: str, __: object) -> list[int]:
            # SQLAlchemy's cursor for asyncio could not tell the counts apart.
            cursor = cast(Any, connection.connection.driver_connection).cursor()
            done = cursor.executemany(sql, (self._bound(each) for each in parameters), returning=True)
            if isinstance(cursor, psycopg.AsyncCursor):
                await_only(done)
            if cursor.pgresult is None:
                return []
            counts = [cursor.rowcount]
            while cursor.nextset():
                counts.append(cursor.rowcount)
            return counts

        found: list[int] = self._run(connection, {}, executed)
        return found

    def _bound(self, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, process in self._bind.items():
            parameters[name] = process(parameters[name])
        return parameters

    def _run(
        self, connection: Connection, parameters: dict[str, Any], way: Callable[[Any, str, dict[str, Any]], Any]
    ) -> Any:
        """Execute it in one of the ways above, in the connection's transaction, on a cursor of the driver's own."""
        try:
            if not connection.in_transaction():
                connection.begin()
            cursor = connection.connection.cursor()
            try:
                return way(cursor, self.sql, parameters)
            finally:
                cursor.close()
        except _DRIVER_ERRORS as error:
            failure = translate(error, table=self._table)
        except BaseException as error:
            forget_locals(error)
            del parameters, way  # which can have parameters in it
            raise
        del parameters, way
        if isinstance(failure, DatabaseUnavailableError) and not connection.invalidated:
            connection.invalidate()
        raise failure


def _can_stream(connection: Connection) -> bool:
    return psycopg.capabilities.has_stream_chunked() and isinstance(
        connection.connection.driver_connection, psycopg.Connection
    )


def _all_rows(cursor: Any, sql: str, parameters: dict[str, Any], *, prepare: bool | None = None) -> Any:
    _executed(cursor, sql, parameters, prepare)
    return cursor.fetchall()


def _executed(cursor: Any, sql: str, parameters: dict[str, Any], prepare: bool | None) -> None:
    # SQLAlchemy's cursor for asyncio knows no such argument.
    if prepare is None or not isinstance(cursor, psycopg.Cursor):
        cursor.execute(sql, parameters)
    else:
        cursor.execute(sql, parameters, prepare=prepare)


def _all_rows_and_types(cursor: Any, sql: str, parameters: dict[str, Any], *, prepare: bool | None = None) -> Any:
    _executed(cursor, sql, parameters, prepare)
    return cursor.fetchall(), [column[1] for column in cursor.description]


def _row_count(cursor: Any, sql: str, parameters: dict[str, Any]) -> Any:
    cursor.execute(sql, parameters)
    return cursor.rowcount


@contextmanager
def translated(table: str = "") -> Iterator[None]:
    """Translate the driver's errors of a block that begins, commits or rolls back."""
    try:
        yield
    except _DRIVER_ERRORS as error:
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
        return _without_sqlstate(error, original)
    if sqlstate in _DECRYPTION:
        return _decryption(original, sqlstate, table)
    if sqlstate == "23505":
        return _duplicate(original, table)
    if sqlstate in _CONSTRAINT:
        return _constraint(original, sqlstate)
    if sqlstate == "25P02":
        return TransactionFailedError(FAILED, sqlstate=sqlstate)
    if sqlstate in _RETRY:
        return TransactionConflictError(
            f"the transaction met another one, or ran out of time (SQLSTATE {sqlstate}): try it again",
            sqlstate=sqlstate,
        )
    if sqlstate in _UNAVAILABLE or sqlstate.startswith(("08", "28")):
        return DatabaseUnavailableError(
            f"the database refused or ended the connection (SQLSTATE {sqlstate}): check DATABASE_URL, the login and that "
            "the server accepts connections",
            sqlstate=sqlstate,
        )
    return _schema(original, sqlstate, table)


def _without_sqlstate(error: Exception, original: object) -> VoiceAssistDBError:
    if isinstance(error, PendingRollbackError):
        return TransactionFailedError(FAILED)
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError("no connection became free in time: the pool is too small for the load")
    if isinstance(original, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailableError(
            "the database cannot be reached, refused the connection, or lost it: check that it runs, and the host, login, "
            "database and TLS settings of DATABASE_URL"
        )
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


def _constraint(original: object, sqlstate: str) -> DatabaseError:
    name = _constraint_name(original)
    if name is not None and name.endswith(FLOOR_SUFFIX):
        return TransactionConflictError(
            "the transaction began before a key was retired, and wrote under that key: try it again", sqlstate=sqlstate
        )
    return ConstraintError(
        f"the constraint {name} refused the row (SQLSTATE {sqlstate}): nothing was written",
        constraint=name,
        sqlstate=sqlstate,
    )


def _schema(original: object, sqlstate: str, table: str) -> DatabaseError:
    message = str(getattr(getattr(original, "diag", None), "message_primary", "") or "")
    if sqlstate == "3F000" or (sqlstate in {"42883", "42501"} and "pgcrypto" in message):
        return PgcryptoMissingError(
            "pgcrypto is not installed in the schema pgcrypto, or this role may not use it: run `alembic upgrade head`, "
            "which says what to ask an administrator for",
            sqlstate=sqlstate,
        )
    if sqlstate in {"42P01", "42703"}:
        return SchemaNotMigratedError(
            f"{table or 'a table'} is not in the database, or is older than this version: run `alembic upgrade head`",
            sqlstate=sqlstate,
        )
    if sqlstate == "42501":
        return DatabaseError(
            f"this role may not do that to {table} (SQLSTATE 42501): ask for the grant, which "
            "`voiceassist-db provision` gives after a migration",
            sqlstate=sqlstate,
        )
    return DatabaseError(f"a statement on {table} failed (SQLSTATE {sqlstate})", sqlstate=sqlstate)
