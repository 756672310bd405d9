"""Statements that are compiled once and then handed to the driver's own cursor, past SQLAlchemy's execution layer.

Owns the ways in which one is executed: for its rows, for its rows while the server makes them, for counts, many times in a
row. Its errors are translated as everywhere (``execution``).
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import ARRAY, Connection, Executable, Numeric
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import await_only

from voiceassist_db import forks, qualified
from voiceassist_db.errors import ConfigurationError, DatabaseUnavailableError, VoiceAssistDBError
from voiceassist_db.execution import DRIVER_ERRORS, TRANSLATION, is_stale_plan, require_untranslated, translate
from voiceassist_db.interrupts import interrupt_behind, settle
from voiceassist_db.listeners import heard, is_heard
from voiceassist_db.loading import FAILURES, loaded, result_of, unloadable
from voiceassist_db.qualified import DIALECT
from voiceassist_db.tracebacks import forget_locals

Result = TypeVar("Result")
Processors = list[Callable[[Any], Any] | None]

PIPELINED: Final = (
    "in a pipeline the driver does not wait for the server, so that nobody would learn whether a row was written: leave the block "
    "connection.pipeline() first"
)

RECODED: Final = (
    "client_encoding of this session is not UTF8, so that text would be stored or read as other text: nothing was sent. Leave it as the "
    "engine sets it"
)

RESTYLED: Final = (
    "{setting} of this session is {style}, in which psycopg reads no {what}. Nothing is lost: leave it as the engine sets it, or SET LOCAL "
    "{setting} = {fit} before the read"
)

_FAILURES: Final = (*FAILURES, NotImplementedError)

CHUNK_ROWS: Final = 50
"""Rows that the driver hands over at once of a statement that is read while it runs. A page of 1,000 took 1.30 of the time of
psycopg's ``fetchall`` when it was decoded afterwards; so it takes 0.91, with 20 to 100 rows."""

_IDLE: Final = TransactionStatus.IDLE
"""Taking it from the enumeration costs as much as asking the connection."""

INHERITED: Final = "another process opened this session's connection, and this process was forked from it: begin a new session in this process"


class Prepared:
    """A statement that is compiled once and then handed to the driver's own cursor.

    A repository executes the same few statements all the time. Past SQLAlchemy's execution layer, each costs a third less
    (55 to 110 of 250 µs for a read by id), and no echo, event hook or result object there ever holds a key or a value. Listeners to
    SQLAlchemy's events are called nevertheless, with masks (``listeners``).

    Args:
        statement: The statement; its text holds no secret.
        table: Name of the table that it is about, for errors.
    """

    def __init__(self, statement: Executable, *, table: str) -> None:
        compiled = qualified.compiled(statement)
        self.sql = str(compiled)
        self._query = self.sql.encode()  # the driver would encode it each time
        self.names: Final = frozenset(compiled.binds)
        self._with_lists = compiled if compiled.post_compile_params else None
        self._table = table
        lists = {each.key for each in compiled.post_compile_params}
        self._bind = {name: bind for name, bind in qualified.binders(compiled).items() if name not in lists}
        columns: Any = getattr(statement, "selected_columns", None)
        if columns is None:  # of a statement that writes: what it returns
            columns = getattr(statement, "exported_columns", ())
        self._columns = [each.type.dialect_impl(DIALECT) for each in columns]
        self._key = [at for at, each in enumerate(columns) if getattr(each, "primary_key", False)]
        self._statement = statement
        self._schemas: dict[str | None, bool] = {}
        self._results: Processors | None = None
        # SQLAlchemy converts numbers by the type that the server gives them, which ALTER TABLE can change.
        self._varies = any(isinstance(each, Numeric | ARRAY | TypeDecorator) for each in self._columns)
        self._results_of: dict[tuple[int, ...], Processors] = {}

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
        results = self._results
        if results is None:
            rows, types = self._run(connection, *self._ready(parameters), partial(_all_rows_and_types, prepare=prepare))
            results = self._processors(types)
            if not self._varies:
                self._results = results
        else:
            way = _all_rows if prepare is None else partial(_all_rows, prepare=prepare)
            rows = self._run(connection, *self._ready(parameters), way)
        return list(_processed(rows, results)) if results else rows

    def _processors(self, types: tuple[int, ...]) -> Processors:
        """Return what converts the columns of a result; empty where nothing is converted."""
        results = self._results_of.get(types)
        if results is None:
            pairs = zip(self._columns, types, strict=True)
            found = [column.result_processor(DIALECT, type_) for column, type_ in pairs]
            results = self._results_of[types] = found if any(found) else []
        return results

    def tolerant_rows(self, connection: Connection, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute it and return its rows, with an :class:`~voiceassist_db.loading.Unloadable` for what Python cannot hold.

        SQLAlchemy converts nothing: for columns of types that the driver loads by itself.
        """

        def read(cursor: Any, sql: bytes, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
            try:
                return cast("list[tuple[Any, ...]]", _all_rows(cursor, sql, parameters))
            except FAILURES as error:
                if (result := result_of(cursor, error)) is None:
                    raise
                return list(loaded(cursor, result))

        rows: list[tuple[Any, ...]] = self._run(connection, *self._ready(parameters), read)
        return rows

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
        results = self._results
        if results is None:
            return consume(self.rows(connection, parameters))

        def streamed(cursor: Any, sql: bytes, parameters: dict[str, Any]) -> Result:
            if not (isinstance(cursor, psycopg.Cursor) and psycopg.capabilities.has_stream_chunked()):
                found = _all_rows(cursor, sql, parameters)
                return consume(_processed(found, results) if results else found)
            rows = cursor.stream(sql, parameters, size=CHUNK_ROWS)
            # To its end, or the driver would cancel the statement, and that would fail the caller's transaction.
            try:
                result = consume(_processed(rows, results) if results else rows)
            except BaseException:
                with contextlib.suppress(psycopg.Error):  # what came first is what happened
                    deque(rows, maxlen=0)
                raise
            deque(rows, maxlen=0)
            return result

        read: Result = self._run(connection, *self._ready(parameters), streamed)
        return read

    def count(self, connection: Connection, parameters: dict[str, Any]) -> int:
        """Execute it and return how many rows it wrote."""
        count: int = self._run(connection, *self._ready(parameters), _row_count)
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

        def executed(_: object, sql: bytes, __: object) -> list[int]:
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

        found: list[int] = self._run(connection, self._query, {}, executed)
        return found

    def _bound(self, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, process in self._bind.items():
            parameters[name] = process(parameters[name])
        return parameters

    def _ready(self, parameters: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Return the statement's text and its parameters, as the driver takes them."""
        for name, process in self._bind.items():
            parameters[name] = process(parameters[name])
        if self._with_lists is None:
            return self._query, parameters
        # A list behind IN gets a parameter for each of its elements.
        given = {name: parameters[name] for name in self.names}
        state = self._with_lists.construct_expanded_state(given, escape_names=False)
        values = dict(state.parameters)
        for name, process in state.processors.items():
            values[name] = process(values[name])
        return state.statement.encode(), values

    def _names_tables_of(self, schema: str | None) -> bool:
        found = self._schemas.get(schema)
        if found is None:
            found = self._schemas[schema] = qualified.names_tables_of(self._statement, schema)
        return found

    def _run(
        self,
        connection: Connection,
        query: bytes,
        parameters: dict[str, Any],
        way: Callable[[Any, bytes, dict[str, Any]], Any],
    ) -> Any:
        """Execute it in one of the ways above, and let the application's listeners know."""
        if not is_heard(connection):
            return self._execute(connection, query, parameters, way)
        if not connection.in_transaction():
            connection.begin()
        with heard(connection, query.decode(), parameters or self.names, is_many=not parameters and bool(self.names)):
            return self._execute(connection, query, parameters, way)

    def _execute(
        self,
        connection: Connection,
        query: bytes,
        parameters: dict[str, Any],
        way: Callable[[Any, bytes, dict[str, Any]], Any],
    ) -> Any:
        """Execute it in the connection's transaction, on a cursor of the driver's own."""
        cursor: Any = None
        failure: BaseException | None
        ambient = sys.exception()
        try:
            if TRANSLATION in connection.get_execution_options():
                require_untranslated(connection, self._names_tables_of, self._table)
            if not connection.in_transaction():
                connection.begin()
            made: Any = connection.connection.dbapi_connection
            driver = made if isinstance(made, psycopg.Connection) else made.driver_connection
            pgconn = driver.pgconn
            if pgconn.pipeline_status:
                raise ConfigurationError(f"{self._table}: {PIPELINED}")
            # A pooler repeats the client's own spelling, which the driver knows.
            if pgconn.parameter_status(b"client_encoding") != b"UTF8" and driver.info.encoding != "utf-8":
                raise ConfigurationError(f"{self._table}: {RECODED}")
            cursor = made.cursor()
            is_first = pgconn.transaction_status == _IDLE
            try:
                return way(cursor, query, parameters)
            except psycopg.errors.FeatureNotSupported as error:
                _forget_plans(made, driver, error, is_first=is_first)
                return way(cursor, query, parameters)
            except _FAILURES as error:
                failure = self._unloadable(cursor, error)
                if failure is None:
                    raise
        except DRIVER_ERRORS as error:
            failure = self._failure(connection, error, ambient)
        except BaseException as error:
            # Where an interrupt meets the beginning of a pipeline, the driver raises an AssertionError in its place.
            failure = interrupt_behind(error, ambient=ambient) if isinstance(error, AssertionError) else None
            forget_locals(error)
            if not isinstance(error, VoiceAssistDBError):
                settle(connection)
            if failure is None:
                del parameters, way, cursor  # which have parameters and rows in them
                raise
        del parameters, way, cursor
        if isinstance(failure, DatabaseUnavailableError) and not connection.invalidated:
            connection.invalidate()
        raise failure

    def _failure(self, connection: Connection, error: Exception, ambient: BaseException | None) -> BaseException:
        """Return what to raise for an error of the driver: ours, or an interrupt that the error took the place of.

        Where an interrupt meets the end of a pipeline, the driver fails to end it.
        """
        interrupt = interrupt_behind(error, ambient=ambient)
        if interrupt is not None:
            forget_locals(interrupt)
            settle(connection)
            return interrupt
        if _is_inherited(connection):
            return DatabaseUnavailableError(INHERITED)
        return translate(error, table=self._table)

    def _unloadable(self, cursor: Any, error: BaseException) -> VoiceAssistDBError | None:
        """Return the error that names a value which Python cannot hold; None where the driver failed at something else."""
        if isinstance(error, NotImplementedError):  # psycopg's own, which quotes the value
            return ConfigurationError(f"{self._table}: {_restyled(getattr(cursor, '_cursor', cursor).connection)}")
        result = result_of(cursor, error)
        if result is None:
            return None
        names = [(result.fname(at) or b"").decode() for at in range(result.nfields)]
        return unloadable(loaded(cursor, result), names, self._key, self._table)


def _processed(rows: Iterable[tuple[Any, ...]], results: Processors) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        yield tuple(process(value) if process else value for process, value in zip(results, row, strict=True))


def _forget_plans(made: Any, driver: Any, error: psycopg.Error, *, is_first: bool) -> None:
    """Let the driver forget what it prepared, where a changed type is why a statement failed, and its transaction holds nothing else."""
    if not (is_first and is_stale_plan(error)):
        raise error
    if driver.autocommit:
        made.cursor().execute("DEALLOCATE ALL")
    else:
        made.rollback()


def _restyled(driver: Any) -> str:
    """Return what a message says of the setting under which the driver reads no moments, or no intervals."""
    setting, fit, what = "DateStyle", "ISO", "timestamps"
    if (driver.info.parameter_status(setting) or "").startswith(fit):
        setting, fit, what = "IntervalStyle", "postgres", "intervals"
    return RESTYLED.format(setting=setting, style=driver.info.parameter_status(setting), fit=fit, what=what)


def _is_inherited(connection: Connection) -> bool:
    is_open = not (connection.closed or connection.invalidated)
    return is_open and forks.is_severed(connection.connection.driver_connection)


def _all_rows(cursor: Any, sql: bytes, parameters: dict[str, Any], *, prepare: bool | None = None) -> Any:
    if prepare is None:
        cursor.execute(sql, parameters)
    else:
        _executed(cursor, sql, parameters, prepare)
    return cursor.fetchall()


def _executed(cursor: Any, sql: bytes, parameters: dict[str, Any], prepare: bool | None) -> None:
    # SQLAlchemy's cursor for asyncio knows no such argument.
    if prepare is None or not isinstance(cursor, psycopg.Cursor):
        cursor.execute(sql, parameters)
    else:
        cursor.execute(sql, parameters, prepare=prepare)


def _all_rows_and_types(cursor: Any, sql: bytes, parameters: dict[str, Any], *, prepare: bool | None = None) -> Any:
    _executed(cursor, sql, parameters, prepare)
    return cursor.fetchall(), tuple([column[1] for column in cursor.description])


def _row_count(cursor: Any, sql: bytes, parameters: dict[str, Any]) -> Any:
    cursor.execute(sql, parameters)
    return cursor.rowcount
