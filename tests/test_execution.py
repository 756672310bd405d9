"""A statement that is compiled once reaches the driver's own cursor, and the caller may work while the server does."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, Integer, bindparam, func, literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from voiceassist_db import create_async_engine
from voiceassist_db.errors import DatabaseError, DatabaseUnavailableError, VoiceAssistDBError
from voiceassist_db.prepared import Prepared

LOCK = Prepared(select(func.pg_advisory_xact_lock(bindparam("lock"))), table="none")
SLEEP = Prepared(select(func.pg_sleep(bindparam("seconds"))), table="none")
SERIES = Prepared(select(func.generate_series(literal_column("1"), bindparam("rows"))), table="none")
ROOTS = Prepared(
    select(
        func.sqrt(
            bindparam("top", type_=Integer)
            - func.generate_series(literal_column("1"), bindparam("rows", type_=Integer))
        )
    ),
    table="none",
)
"""Fails at the row after ``top``."""

ROOT = Prepared(select(func.sqrt(bindparam("number"))), table="none")


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection of an engine that may send keys."""
    with engine.connect() as made:
        yield made


def works_meanwhile(connection: Connection, engine: Engine) -> None:
    """Execute a statement twice; the first ends only when the parameters of the second are being made."""
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(7)"))

        def parameters() -> Iterator[dict[str, Any]]:
            yield {"lock": 7}
            holder.rollback()
            yield {"lock": 8}

        connection.execute(text("SET lock_timeout = '20s'"))
        assert LOCK.counts(connection, parameters()) == [1, 1]


def test_work_is_done_while_the_server_works(connection: Connection, engine: Engine) -> None:
    """The parameters of the next execution are made while the server is at the one before."""
    works_meanwhile(connection, engine)


async def test_work_is_done_while_the_server_works_in_asyncio(engine: Engine) -> None:
    """The same on a connection of an event loop."""
    asynchronous = create_async_engine(engine.url)
    connection: AsyncConnection
    async with asynchronous.connect() as connection:
        await connection.run_sync(works_meanwhile, engine)
        assert await connection.run_sync(lambda each: SLEEP.rows(each, {"seconds": 0})) != []
    await asynchronous.dispose()


def test_each_execution_is_counted(connection: Connection) -> None:
    """Whatever each wrote, none included; and no parameters are no executions."""
    assert SERIES.counts(connection, ({"rows": rows} for rows in (3, 0, 5))) == [3, 0, 5]
    assert SERIES.counts(connection, []) == []


@pytest.mark.parametrize("position", [0, 1, 30])
def test_a_failure_is_known_when_it_returns(
    connection: Connection, caplog: pytest.LogCaptureFixture, position: int
) -> None:
    """Whichever execution fails: its error is raised, nothing of the driver's hangs on it, and the connection goes on.

    The driver itself logs that it left the pipeline, and the class of the error of the later executions.
    """
    numbers = [4] * 40
    numbers[position] = -1
    with pytest.raises(DatabaseError, match="2201F") as caught:
        ROOT.counts(connection, ({"number": number} for number in numbers))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert all(each.endswith(": PipelineAborted") for each in caplog.messages)
    connection.rollback()
    assert ROOT.rows(connection, {"number": 4}) == [(2.0,)]


def test_an_interrupt_does_not_bring_the_servers_text_into_the_log(
    connection: Connection, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver logs an error of the server that an interrupt of the client went before: its class, never its DETAIL."""
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    has_failed = text("SELECT state = 'active' AND wait_event = 'ClientRead' FROM pg_stat_activity WHERE pid = :pid")

    def parameters() -> Iterator[dict[str, Any]]:
        yield {"number": -1}
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
            give_up = time.monotonic() + 300
            while not watching.scalar(has_failed, {"pid": pid}) and time.monotonic() < give_up:
                time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ROOT.counts(connection, parameters())
    assert "InvalidArgumentForPowerFunction" in caplog.text
    assert "cannot take square root" not in caplog.text


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, LookupError])
def test_what_ended_a_reading_is_what_is_told(connection: Connection, interrupt: type[BaseException]) -> None:
    """And not that the rest of the rows, which nobody wanted any more, could not be read either."""

    def consume(rows: Iterable[tuple[Any, ...]]) -> None:
        next(iter(rows))
        raise interrupt

    assert len(ROOTS.rows(connection, {"top": 9, "rows": 9})) == 9
    with pytest.raises(interrupt):
        ROOTS.read(connection, {"top": 900, "rows": 1000}, consume)
    connection.rollback()
    with pytest.raises(DatabaseError, match="2201F"):
        ROOTS.read(connection, {"top": 900, "rows": 1000}, list)


def test_a_connection_that_ends_meanwhile_is_told(connection: Connection, engine: Engine) -> None:
    """So is its loss."""
    pid = connection.scalar(select(func.pg_backend_pid()))

    def parameters() -> Iterator[dict[str, Any]]:
        yield {"seconds": 30}
        with engine.connect() as other:
            other.scalar(select(func.pg_terminate_backend(pid)))

    with pytest.raises(DatabaseUnavailableError):
        SLEEP.counts(connection, parameters())
    with pytest.raises(SQLAlchemyError):
        connection.scalar(select(1))


def test_no_frame_of_a_failed_statement_keeps_its_cursor(engine: Engine) -> None:
    """The driver's cursor holds the parameters, keys among them, and the rows."""
    statement = Prepared(select(literal_column("1 OPERATOR(pg_catalog./) 0")), table="numbers")
    with engine.connect() as connection, pytest.raises(VoiceAssistDBError) as caught:
        statement.rows(connection, {})
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert any(frame.f_code is Prepared._run.__code__ for frame in frames)
    kept = [value for frame in frames for value in frame.f_locals.values() if isinstance(value, psycopg.Cursor)]
    assert kept == []
