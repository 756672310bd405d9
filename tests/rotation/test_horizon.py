"""A pass begins when the server can remove what the pass before left dead, or when the run has waited for that long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import pytest
from sqlalchemy import URL, Engine, text

from tests.conftest import plain
from voiceassist_db import Database, Patient
from voiceassist_db.rotation import Pace, rotate
from voiceassist_db.rotation.horizon import Horizon

PATIENTS = 200


@contextmanager
def writing(url: URL) -> Iterator[psycopg.Connection]:
    """A transaction that has a number, as one has that wrote something."""
    with psycopg.connect(plain(url)) as connection:
        connection.execute("SELECT pg_current_xact_id()")
        yield connection
        connection.rollback()


@contextmanager
def reading(url: URL) -> Iterator[psycopg.Connection]:
    """A transaction that goes on seeing what it saw first."""
    with psycopg.connect(plain(url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        yield connection
        connection.rollback()


def write(engine: Engine) -> int:
    """Commit a transaction, and return its number."""
    with engine.begin() as connection:
        return int(connection.execute(text("SELECT pg_current_xact_id()::text::bigint")).scalar_one())


def horizon(engine: Engine, *, patience_s: float = 0.0, stops: bool = False) -> Horizon:
    """Return a horizon that tells nobody whom it waits for."""
    return Horizon(engine, patience_s=patience_s, is_stopping=lambda: stops, on_hold=lambda _: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at the server found that the pass may begin."""
    looks: list[bool] = []
    ask = Horizon._ask

    def look(self: Horizon, xid: int) -> int:
        reached = ask(self, xid)
        looks.append(reached > xid)
        return reached

    monkeypatch.setattr(Horizon, "_ask", look)
    return looks


def test_a_transaction_that_nobody_can_see_is_not_waited_for(engine: Engine, asked: list[bool]) -> None:
    """The last look is enough for all transactions that were committed before it."""
    found = horizon(engine, patience_s=60.0)
    first, second = write(engine), write(engine)
    assert not found.wait_for(second)
    looks = list(asked)
    assert looks[-1]
    assert not found.wait_for(first)
    assert looks == asked


@pytest.mark.parametrize("holding", [writing, reading])
def test_patience_ends_once_for_one_and_the_same(
    engine: Engine, holding: Callable[[URL], AbstractContextManager[psycopg.Connection]], asked: list[bool]
) -> None:
    """Whom the run waited for in vain, it does not wait for again; when that transaction ends, it goes on as before."""
    hasty = horizon(engine)
    with holding(engine.url) as holder:
        xid = write(engine)
        assert hasty.wait_for(xid)
        hasty._patience_s = 60.0
        assert hasty.wait_for(write(engine))
        assert asked == [False, False]
        assert horizon(engine, patience_s=60.0, stops=True).wait_for(xid)
        holder.rollback()
        assert not hasty.wait_for(xid)


def test_waits_end_however_many_follow_one_another(engine: Engine, asked: list[bool]) -> None:
    """A run that has waited for longer than it worked does not wait for the next transaction either."""
    found = horizon(engine, patience_s=60.0)
    found._waited_s += 60.0
    with writing(engine.url):
        assert found.wait_for(write(engine))
    assert asked == [False]


@pytest.mark.wide
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("holding", [writing, reading])
def test_a_small_table_does_not_grow_beside_short_transactions(
    database: Database,
    empty_url: URL,
    holding: Callable[[URL], AbstractContextManager[psycopg.Connection]],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The passes over it follow one another sooner than others' transactions end, in whichever database those write."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", ssn=f"9{n:08d}", name=f"Zoë {n}") for n in range(PATIENTS))
    ask = Horizon._ask
    with holding(empty_url if holding is writing else database.engine.url) as holder:

        def end(self: Horizon, xid: int) -> int:
            reached = ask(self, xid)
            if reached <= xid:
                holder.rollback()
            return reached

        monkeypatch.setattr(Horizon, "_ask", end)
        report = rotate(database.engine, database.keys, pace=Pace(workers=workers))
    assert (report.rows, report.done, report.hot_ratio) == (PATIENTS, True, 1.0)
    assert (report.table_growth, report.index_growth) == (1.0, 1.0)


@pytest.mark.wide
def test_who_writes_in_another_database_is_named(
    database: Database, empty_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its open transaction keeps pages from being cleaned here as well."""
    monkeypatch.setattr("voiceassist_db.rotation.horizon.HOLDER_PATIENCE_S", 3.0)
    notes: set[str] = set()
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n}", name=f"Zoë {n}") for n in range(PATIENTS))
    with writing(empty_url) as holder:
        report = rotate(database.engine, database.keys, on_progress=lambda now: notes.add(now.note))
        pid = holder.info.backend_pid
    assert report.done
    assert any(f"pid {pid} (" in note and "tables grow" in note for note in notes), notes
