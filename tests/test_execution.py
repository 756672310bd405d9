"""A statement that is compiled once reaches the driver's own cursor, and the caller may work while the server does."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from voiceassist_db import create_async_engine
from voiceassist_db.errors import DatabaseError
from voiceassist_db.execution import Prepared

SERVER_S = 0.5
SLEEP = Prepared(select(func.pg_sleep(bindparam("seconds"))), table="none")
ROOT = Prepared(select(func.sqrt(bindparam("number"))), table="none")


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection of an engine that may send keys."""
    with engine.connect() as made:
        yield made


def slept(connection: Connection) -> float:
    """Execute a statement, and work as long as the server does; return how long both took."""
    started = time.perf_counter()
    assert SLEEP.count(connection, {"seconds": SERVER_S}, meanwhile=lambda: time.sleep(SERVER_S)) == 1
    return time.perf_counter() - started


def test_work_is_done_while_the_server_works(connection: Connection) -> None:
    """What is done meanwhile takes no time of its own."""
    assert slept(connection) < 1.8 * SERVER_S


async def test_work_is_done_while_the_server_works_in_asyncio(engine: Engine) -> None:
    """The same on a connection of an event loop."""
    asynchronous = create_async_engine(engine.url)
    connection: AsyncConnection
    async with asynchronous.connect() as connection:
        assert await connection.run_sync(slept) < 1.8 * SERVER_S
        assert await connection.run_sync(lambda each: SLEEP.rows(each, {"seconds": 0})) != []
    await asynchronous.dispose()


def test_a_failure_is_known_when_it_returns(connection: Connection) -> None:
    """The statement's error is raised by its own call, and nothing of the driver's hangs on it; the connection goes on."""
    done = []
    with pytest.raises(DatabaseError, match="2201F") as caught:
        ROOT.count(connection, {"number": -1}, meanwhile=lambda: done.append(1))
    assert (done, caught.value.__cause__, caught.value.__context__) == ([1], None, None)
    connection.rollback()
    assert ROOT.rows(connection, {"number": 4}) == [(2.0,)]


def test_a_connection_that_ends_meanwhile_is_told(connection: Connection, engine: Engine) -> None:
    """So is its loss."""
    pid = connection.scalar(select(func.pg_backend_pid()))

    def end() -> None:
        with engine.connect() as other:
            other.scalar(select(func.pg_terminate_backend(pid)))

    with pytest.raises(DatabaseError):
        SLEEP.count(connection, {"seconds": 30}, meanwhile=end)
    with pytest.raises(SQLAlchemyError):
        connection.scalar(select(1))
