"""Rows and tables that others hold: a rotation waits for them, says so, and never makes the application pay for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from typing import Final

import pytest
from sqlalchemy import Connection, Engine, text

from voiceassist_db import Database, Patient
from voiceassist_db.cli.rotating import exit_code
from voiceassist_db.rotation import Pace, Progress, rotate
from voiceassist_db.status import read_status

ROWS: Final = 400
HASTY: Final = Pace(workers=2, patience_s=0.2)
"""Gives up soon, where it cannot go on."""

APPLICATIONS: Final = 4
HELD: Final = ROWS - 1
MAX_WAIT_S: Final = 1.0
"""A batch of these few rows takes a small part of that; a wait for the row that is held throughout would take longer."""

LEFT_OVER: Final = 3
"""The command's exit code where rows are left under the old key."""


@pytest.fixture
def filled(database: Database) -> Database:
    """A database of some pages of patients."""
    with database.transaction() as tx:
        tx.patients.add_many(Patient(patient_id=f"PT-{n:04d}", name=f"Zoë {n}", ssn=f"9{n:08d}") for n in range(ROWS))
    return database


def versions(engine: Engine) -> dict[int, int]:
    """Return how many patients there are under each version."""
    with engine.connect() as connection:
        return read_status(connection).tables["patient_data"]


@contextmanager
def holding(engine: Engine, *patient_ids: str) -> Iterator[Connection]:
    """Hold rows, as a transaction of an application does that has changed them."""
    with engine.connect() as connection:
        query = text("UPDATE patient_data SET updated_at = now() WHERE patient_id = ANY (:ids)")
        connection.execute(query, {"ids": list(patient_ids)})
        yield connection
        connection.rollback()


def test_a_row_that_is_held_throughout_is_never_called_done(filled: Database) -> None:
    """As long as one row is held, the run says that it is left over; once it is let go, the next run finishes."""
    with holding(filled.engine, "PT-0123"):
        for _ in range(2):
            report = rotate(filled.engine, filled.keys, pace=HASTY)
            assert (report.done, report.remaining, exit_code(report)) == (False, 1, LEFT_OVER)
            assert versions(filled.engine) == {1: 1, 2: ROWS - 1}
    report = rotate(filled.engine, filled.keys, pace=HASTY)
    assert (report.done, report.rows, exit_code(report)) == (True, 1, 0)
    assert versions(filled.engine) == {2: ROWS}


@pytest.mark.parametrize(
    "meanwhile",
    [
        "",
        *(
            pytest.param(each, marks=pytest.mark.wide)
            for each in ("a row is held throughout", "a row is held until the sweep")
        ),
    ],
)
def test_a_row_that_nobody_can_see_yet_is_waited_for(filled: Database, meanwhile: str) -> None:
    """A transaction that inserted under the old key and is still open keeps every run from being done, until it ends."""
    with filled.engine.connect() as writing:
        filled.using(writing).patients.add(Patient(patient_id="unseen", name="Zoë"))
        if meanwhile:
            with holding(filled.engine, "PT-0123") as held:

                def let_go(now: Progress) -> None:
                    if now.phase == "sweeping" and meanwhile == "a row is held until the sweep":
                        held.rollback()

                report = rotate(filled.engine, filled.keys, pace=HASTY, on_progress=let_go)
            assert (report.done, exit_code(report)) == (False, LEFT_OVER)
            assert versions(filled.engine)[2] == ROWS - (meanwhile == "a row is held throughout")
        report = rotate(filled.engine, filled.keys, pace=HASTY)
        assert (report.done, report.remaining, report.open_writers) == (False, 0, 1)
        assert exit_code(report) == LEFT_OVER
        writing.commit()
    report = rotate(filled.engine, filled.keys, pace=HASTY)
    assert (report.done, report.rows, exit_code(report)) == (True, 1, 0)
    assert versions(filled.engine) == {2: ROWS + 1}


def test_a_transaction_that_ends_in_time_is_part_of_the_run(filled: Database) -> None:
    """The run itself rotates what was committed while it waited, and is done."""
    with filled.engine.connect() as writing:
        filled.using(writing).patients.add(Patient(patient_id="unseen", name="Zoë"))
        ending = threading.Timer(1.0, writing.commit)
        ending.start()
        report = rotate(filled.engine, filled.keys, pace=Pace(patience_s=20.0))
        ending.join()
    assert (report.done, report.rows) == (True, ROWS + 1)


def blocker(engine: Engine, holders: Container[int]) -> int:
    """Wait until somebody waits for one of these processes of the server; return which one."""
    query = text("SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up:
        with engine.connect() as connection:
            found: list[int] = [pid for pid in connection.execute(query).scalars() if pid in holders]
        if found:
            return found[0]
        time.sleep(0.01)
    raise AssertionError("nobody waited for a row")


def test_the_sweep_waits_for_a_row_without_holding_another(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three held rows, two are let go in turn; who holds the third gets the first at once, and no deadlock with the sweep.

    A sweep that held the first while it waited would make the holder of the third wait, then wait for it in its turn; and the
    server would end the one who has waited longer.
    """
    monkeypatch.setattr("voiceassist_db.rotation.horizon.HOLDER_PATIENCE_S", 0.1)  # the passes do not wait for them
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        rows = ["PT-0010", "PT-0020", "PT-0030"]
        held = [stack.enter_context(holding(filled.engine, row)) for row in rows]
        pids = [each.execute(text("SELECT pg_backend_pid()")).scalar_one() for each in held]
        left = dict(zip(pids, zip(held, rows, strict=True), strict=True))
        sweeping = threading.Event()

        def tell(now: Progress) -> None:
            if now.phase == "sweeping":
                sweeping.set()

        running = pool.submit(rotate, filled.engine, filled.keys, pace=Pace(patience_s=20.0), on_progress=tell)
        assert sweeping.wait(300)
        first, first_row = left.pop(blocker(filled.engine, left))
        first.rollback()
        second, _ = left.pop(blocker(filled.engine, left))
        ((third, _),) = left.values()
        # While the sweep still waits for the second.
        third.execute(text("SELECT FROM patient_data WHERE patient_id = :id FOR UPDATE NOWAIT"), {"id": first_row})
        second.rollback()
        third.commit()
        assert running.result().done


class Application:
    """Transactions that change some of its own rows one by one, against the order in which a rotation comes by.

    Attributes:
        waits_s: How long each statement took.
    """

    def __init__(self, database: Database, number: int) -> None:
        self._database = database
        self._random = Random(number)  # noqa: S311  # to be repeated, not to be secret
        self._rows = range(number, HELD, APPLICATIONS)
        self.waits_s: list[float] = []

    def write_until(self, stop: threading.Event) -> None:
        """Write until it is told to stop; fails where a statement does."""
        while not stop.is_set():
            with self._database.transaction() as tx:
                for row in sorted(self._random.sample(self._rows, 6), reverse=True):
                    started = time.monotonic()
                    tx.patients.update(f"PT-{row:04d}", name=f"Zoë {started}")
                    self.waits_s.append(time.monotonic() - started)
                    time.sleep(self._random.uniform(0.0, 0.08))


def test_an_application_neither_waits_long_nor_is_ended_for_a_deadlock(filled: Database) -> None:
    """Beside rotations, with one row held throughout, each statement gets its row soon, in whatever order it asks for rows."""
    stop = threading.Event()
    applications = [Application(filled, number) for number in range(APPLICATIONS)]
    with ThreadPoolExecutor(APPLICATIONS) as pool, holding(filled.engine, f"PT-{HELD:04d}") as held:
        writing = [pool.submit(each.write_until, stop) for each in applications]
        try:
            report = rotate(filled.engine, filled.keys, pace=Pace(workers=2, patience_s=1.0))
            assert not report.done
            assert 1 <= report.remaining < ROWS / 4  # the one, and what the others hold at that moment
            held.rollback()
            assert rotate(filled.engine, filled.keys, pace=Pace(patience_s=10.0)).done
        finally:
            stop.set()
    for each in writing:
        each.result()
    waits_s = [wait_s for each in applications for wait_s in each.waits_s]
    assert len(waits_s) > 100
    assert max(waits_s) < MAX_WAIT_S
