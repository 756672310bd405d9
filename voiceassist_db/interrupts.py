"""Interrupts that cut a statement short: KeyboardInterrupt, a task's CancelledError, a signal handler's timeout.

Owns what becomes of the connection, so that the rollback which follows does not fail and take the interrupt's place. Translates no
error.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.exc import SQLAlchemyError

from voiceassist_db.errors import VoiceAssistDBError

_CONSEQUENCES: Final = (SQLAlchemyError, psycopg.Error, VoiceAssistDBError)
"""Errors that may be due to an interrupt before them, as an AssertionError of SQLAlchemy's or psycopg's own may be.

Any other one was raised by the application, in the interrupt's place.
"""

_LIBRARIES: Final = frozenset({"sqlalchemy", "psycopg"})


def interrupt_behind(error: BaseException | None, *, ambient: BaseException | None = None) -> BaseException | None:
    """Return the interrupt that an error is, or that errors of the database took the place of; None where there is none.

    Args:
        error: The error.
        ambient: What was handled before; an interrupt there is the caller's own affair.
    """
    seen: set[int] = set()
    while error is not None and error is not ambient and id(error) not in seen:
        if not isinstance(error, Exception):
            return error
        if not (isinstance(error, _CONSEQUENCES) or _is_of_libraries(error)):
            return None
        seen.add(id(error))
        error = error.__context__
    return None


def _is_of_libraries(error: BaseException) -> bool:
    """Say whether an AssertionError was raised by a library, which an interrupt left in a state that it takes for impossible."""
    innermost = error.__traceback__
    if not isinstance(error, AssertionError) or innermost is None:
        return False
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    module: str = innermost.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _LIBRARIES


class Interrupt:
    """An interrupt that leaves the block of a transaction: it goes on, though what follows it fails."""

    def __init__(self) -> None:
        self._ambient = sys.exception()
        self._error: BaseException | None = None

    @contextlib.contextmanager
    def seen(self) -> Iterator[None]:
        """Remember the interrupt that leaves the block, or that an error of the database took the place of; within the transaction."""
        try:
            yield
        except BaseException as error:
            self._error = interrupt_behind(error, ambient=self._ambient)
            raise

    @contextlib.contextmanager
    def outlasts(self) -> Iterator[None]:
        """Raise the interrupt that was seen, or that met the commit, instead of the error that came after it; around the transaction."""
        try:
            yield
        except (*_CONSEQUENCES, AssertionError) as error:
            interrupt, self._error = self._error or interrupt_behind(error, ambient=self._ambient), None
            if interrupt is None:
                raise
        else:
            return
        raise interrupt


def settle(connection: Connection) -> None:
    """Discard a connection that a statement left unusable, as SQLAlchemy does where it executed the statement itself."""
    if not (connection.closed or connection.invalidated) and not _is_usable(connection):
        connection.invalidate()


def let_interrupts_pass(engine: Engine) -> None:
    """Let no rollback on an engine's connections fail while an interrupt leaves the transaction."""
    engine.dialect.do_ping = _pinging(engine.dialect.do_ping)  # type: ignore[method-assign,assignment]
    event.listen(engine, "rollback", _on_rollback)
    event.listen(engine, "rollback_savepoint", _on_rollback_savepoint)
    event.listen(engine, "rollback_twophase", _on_rollback_twophase)


def _pinging(ping: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return SQLAlchemy's ping without its fault: once it is interrupted, it fails to restore the connection, and raises that."""

    @functools.wraps(ping)
    def pinged(connection: Any) -> bool:
        ambient = sys.exception()
        try:
            return ping(connection)
        except psycopg.Error as error:
            first: BaseException | None = error
            while isinstance(first, psycopg.Error):
                first = first.__context__
            if first is None or first is ambient:
                raise
        raise first

    return pinged


def _is_usable(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return driver is not None and not driver.closed and not _is_executing(driver)


def _is_executing(driver: Any) -> bool:
    """Say whether a statement of the connection has no answer yet; its caller is gone, or is in a pipeline."""
    pgconn = driver.pgconn
    return pgconn.transaction_status == TransactionStatus.ACTIVE or bool(pgconn.pipeline_status)


def _on_rollback(connection: Connection) -> None:
    _ahead(connection, lambda: connection.dialect.do_rollback(connection.connection))


def _on_rollback_savepoint(connection: Connection, name: str, _context: object) -> None:
    _ahead(connection, lambda: connection.dialect.do_rollback_to_savepoint(connection, name))


def _on_rollback_twophase(connection: Connection, _xid: object, is_prepared: bool) -> None:
    if not is_prepared:  # a prepared transaction outlives its connection
        _ahead(connection, lambda: None)


def _ahead(connection: Connection, roll_back: Callable[[], None]) -> None:
    """Roll back ahead of SQLAlchemy where an interrupt leaves the transaction; discard the connection where that fails.

    A transaction whose connection is lost is rolled back. Once more is harmless: the driver sends no second ROLLBACK.
    """
    if connection.closed or connection.invalidated:
        return
    driver: Any = connection.connection.driver_connection
    if driver is None or not (_is_executing(driver) or _is_interrupted(connection)):
        return
    if not _is_usable(connection):
        connection.invalidate()
        return
    try:
        roll_back()
    except (SQLAlchemyError, psycopg.Error):
        with contextlib.suppress(SQLAlchemyError):
            connection.invalidate()
    except BaseException:
        settle(connection)
        raise


def _is_interrupted(connection: Connection) -> bool:
    """Say whether an interrupt is what ends the transaction.

    Each call of SQLAlchemy's from asyncio has a stack of its own, where Python does not know what its caller handles: what
    leaves an ``async with`` is an argument there. Nothing is known of what a bare ``await session.rollback()`` follows, and
    to fail would serve nobody.
    """
    error = sys.exception() or _leaving()
    if error is None:
        return connection.dialect.is_async
    return interrupt_behind(error) is not None


def _leaving() -> BaseException | None:
    """Return what leaves the innermost ``with`` block of a transaction of SQLAlchemy's that is ending."""
    code = TransactionalContext.__exit__.__code__
    frame = sys._getframe()  # noqa: SLF001  # inspect.currentframe() is the same, and may be None
    while frame is not None:
        if frame.f_code is code:
            value: BaseException | None = frame.f_locals.get("value")
            return value
        frame = frame.f_back  # type: ignore[assignment]
    return None
