"""An interrupt at any step of a pool's own code leaves the pool whole: each of its connections can be used again."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Final

import pytest
import sqlalchemy
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, QueuePool, base, impl
from sqlalchemy.util import queue

from voiceassist_db import create_engine, pools
from voiceassist_db.pools import WholePool

FILES: Final = {each.__file__ for each in (base, impl, queue, pools, threading, weakref)}
"""The code of a pool, and what it is made of."""

LONG_S: Final = 60
PID: Final = text("SELECT pg_catalog.pg_backend_pid()")


class Interrupt:
    """Raises KeyboardInterrupt at one step of a pool's code, as a signal handler may.

    Args:
        at: Number of the step.
        event: ``line`` or ``opcode``: what a step is.

    Attributes:
        came: Whether it was raised.
    """

    def __init__(self, at: int, event: str) -> None:
        self.came = False
        self._left = at
        self._event = event

    def _enter(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if event == self._event and not self.came:
            self._left -= 1
            if self._left < 0:
                self.came = True
                raise KeyboardInterrupt
        return self._step

    @contextmanager
    def during(self) -> Iterator[None]:
        """Raise it within the block, and let it leave the block, unless Python swallowed it in a finaliser."""
        before, hook = sys.gettrace(), sys.unraisablehook
        sys.unraisablehook = lambda _: None
        logging.disable()  # pytest keeps what is logged, and with it each traceback
        sys.settrace(self._enter)
        try:
            with suppress(KeyboardInterrupt, PoolTimeoutError):
                yield
        finally:
            sys.settrace(before)
            sys.unraisablehook = hook
            logging.disable(logging.NOTSET)


@pytest.fixture
def new_engine(database_url: URL) -> Iterator[Callable[..., Engine]]:
    """A function that makes an engine with a pool of a few connections, which never waits for one."""
    with ExitStack() as stack:

        def make(size: int, overflow: int, made_by: Callable[..., Engine] = create_engine, **options: Any) -> Engine:
            options = {"pool_size": size, "max_overflow": overflow, "pool_timeout": 0, **options}
            engine = made_by(database_url, **options)
            stack.callback(engine.dispose)
            return engine

        yield make


def plainly_made(url: URL, **options: Any) -> Engine:
    """Make an engine with the pool, and with nothing else of ours: it connects faster."""
    return sqlalchemy.create_engine(url, poolclass=WholePool, pool_pre_ping=True, **options)


def use(engine: Engine) -> None:
    """Check a connection out and return it."""
    with engine.connect():
        pass


def use_beside(engine: Engine) -> None:
    """Do so while another one is in use, which is beyond the size of the pool."""
    with engine.connect():
        use(engine)


def exhaust(engine: Engine) -> None:
    """Ask for one connection too many."""
    with engine.connect(), engine.connect():
        use(engine)


def reconnect(engine: Engine) -> None:
    """Use an entry whose connection was lost, and lose it again."""
    with engine.connect() as connection:
        connection.invalidate()
    use(engine)


WORK: Final[dict[str, Callable[[Engine], None]]] = {
    each.__name__: each for each in (use, use_beside, exhaust, reconnect)
}

DROPS: Final = pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
"""An interrupt drops a connection that nobody else knows of, and the driver warns as it closes it."""


def require_whole(engine: Engine, most: int) -> None:
    """Assert that so many connections can be used at once, each its own session, and not one more."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() == 0
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(most)]
        assert len({each.scalar(PID) for each in connections}) == most
        assert (pool.checkedout(), pool.overflow()) == (most, most - pool.size())
        with pytest.raises(PoolTimeoutError):
            engine.connect()
    assert pool.checkedout() == 0


def interrupt_everywhere(engine: Engine, work: Callable[[Engine], None], *, most: int, event: str) -> int:
    """Interrupt a work at each step in turn, and return how many there are."""
    pool: Any = engine.pool
    with ThreadPoolExecutor(1) as another_thread:
        for step in range(1_000_000):
            interrupt = Interrupt(step, event)
            with interrupt.during():
                work(engine)
            if pool.checkedout():
                gc.collect()  # of what SQLAlchemy's connection object still refers to
            # In another thread: one that the interrupted thread left locked would stop it.
            another_thread.submit(require_whole, engine, most).result(LONG_S)
            if not interrupt.came:
                return step
    raise AssertionError


@DROPS
def test_an_interrupt_at_any_line_leaves_the_pool_whole(new_engine: Callable[..., Engine]) -> None:
    """Of an engine of ours, while its only connection is checked out and returned."""
    assert interrupt_everywhere(new_engine(1, 0), use, most=1, event="line") > 50


@pytest.mark.wide
@DROPS
@pytest.mark.parametrize(
    ("work", "event"),
    [
        ("exhaust", "line"),
        ("reconnect", "line"),
        *(pytest.param(work, "opcode", marks=pytest.mark.long) for work in WORK),
    ],
)
def test_an_interrupt_at_any_step_leaves_the_pool_whole(
    new_engine: Callable[..., Engine], work: str, event: str
) -> None:
    """Also beyond the size of the pool, where it has no connection left, and where a lost one is replaced."""
    engine = new_engine(1, 1, plainly_made)
    assert interrupt_everywhere(engine, WORK[work], most=2, event=event) > 50


def test_threads_share_a_pool(new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets a connection for itself, there are never too many, and each that comes back wakes a thread that waits."""
    monkeypatch.setattr(pools, "LOOK_AGAIN_S", LONG_S)
    monkeypatch.setattr(pools, "COLLECT_AFTER_S", 2.0 * LONG_S)
    engine = new_engine(1, 1, plainly_made, pool_timeout=LONG_S)
    in_use: set[int] = set()
    most = 0

    def work(_: int) -> None:
        nonlocal most
        for _ in range(50):
            with engine.connect() as connection:
                pid = connection.scalar(PID)
                assert pid not in in_use
                in_use.add(pid)
                most = max(most, len(in_use))
                in_use.remove(pid)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert most <= 2
    assert (engine.pool.checkedout(), engine.pool.checkedin()) == (0, 1)  # type: ignore[attr-defined]  # of a QueuePool


def test_a_caller_that_waits_finds_what_is_garbage(new_engine: Callable[..., Engine]) -> None:
    """An interrupt may leave a connection to objects that refer to each other."""
    engine = new_engine(1, 0)
    lost: list[Any] = [engine.connect()]
    lost.append(lost)
    gc.disable()
    try:
        del lost
        use(engine)
    finally:
        gc.enable()
    require_whole(engine, 1)


def test_a_failure_to_connect_takes_no_place(database_url: URL) -> None:
    """Not even while it is handled, when its traceback still exists."""
    engine = create_engine(database_url.set(port=1), pool_size=1, max_overflow=0, pool_timeout=0)
    pool: Any = engine.pool
    for _ in range(3):
        try:
            engine.connect()
        except sqlalchemy.exc.OperationalError:
            assert pool.checkedout() == 0


def test_a_failure_to_connect_leaves_other_errors_alone(database_url: URL) -> None:
    """What an application handles meanwhile keeps the local variables that its own tools show."""
    engine = create_engine(database_url.set(port=1))

    def fail() -> None:
        cause = "mine"
        raise ValueError(cause)

    try:
        fail()
    except ValueError as error:
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            engine.connect()
        assert caught.value.__context__ is not None
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        assert frames[-1].f_locals == {"cause": "mine"}


def test_the_entries_are_taken_in_the_order_that_is_asked_for(new_engine: Callable[..., Engine]) -> None:
    """First in, first out; or with ``pool_use_lifo`` the last one first, so that the others can time out."""
    for is_lifo in (False, True):
        engine = new_engine(3, 0, plainly_made, pool_use_lifo=is_lifo)
        connections = [engine.connect() for _ in range(3)]
        pids = [each.scalar(PID) for each in connections]
        for each in connections:
            each.close()
        with engine.connect() as connection:
            assert connection.scalar(PID) == pids[-1 if is_lifo else 0]


def test_an_unlimited_pool_has_no_limit(new_engine: Callable[..., Engine]) -> None:
    """Neither one without a size, nor one whose overflow has none."""
    for size, overflow in ((0, 0), (1, -1)):
        engine = new_engine(size, overflow, plainly_made)
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(engine.connect())
            assert engine.pool.checkedout() == 4  # type: ignore[attr-defined]  # of a QueuePool
        assert engine.pool.checkedin() == (4 if size == 0 else 1)  # type: ignore[attr-defined]  # of a QueuePool


def test_a_disposed_pool_begins_anew(new_engine: Callable[..., Engine]) -> None:
    """With the same size and order, and the connections that are in use come back to the old one."""
    engine = new_engine(1, 1, pool_use_lifo=True)
    former = engine.pool
    with engine.connect() as connection:
        engine.dispose()
        require_whole(engine, 2)
        assert connection.scalar(PID)
    former.dispose()
    require_whole(engine, 2)


def test_an_application_may_choose_its_pool(database_url: URL) -> None:
    """By its class; else it is ours."""
    assert type(create_engine(database_url).pool) is WholePool
    assert type(create_engine(database_url, poolclass=NullPool).pool) is NullPool
