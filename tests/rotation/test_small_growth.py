"""Small tables that were just loaded stay as large as they are, whichever way their rows take through a rotation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.rotation.shapes import Shape
from voiceassist_db import Database, Patient, uuid7
from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.models.declaration import FILLFACTOR
from voiceassist_db.rotation import Pace, Progress, RotationReport, rotate
from voiceassist_db.rotation.batches import Batches
from voiceassist_db.rotation.work import SWEEP_ROWS

pytestmark = pytest.mark.wide

OFF: Final = "autovacuum_enabled = off"
"""Nobody but the rotation cleans pages."""

VISITS: Final = Shape(
    key={"id": "uuid"},
    rows=[{"note": f"a note of some length, {n}", "scan": bytes(n)} for n in range(60)],
    options=f"WITH (fillfactor = {FILLFACTOR}, {OFF})",
    then="CREATE INDEX ON visits (plain)",
)
LEFT_ROWS: Final = SWEEP_ROWS - 100
"""About how many rows an interrupted run leaves, so that the next one goes straight to the sweep."""

Load = Callable[[Database, Session, int], None]


def load_patients(database: Database, session: Session, rows: int) -> None:
    """Add patients as an application does."""
    session.execute(text(f"ALTER TABLE patient_data SET ({OFF})"))
    session.commit()
    database.using(session).patients.add_many(
        Patient(patient_id=f"PT-{n:05d}", ssn=f"9{n:08d}", mrn=f"M-{n}", name=f"Zoë {n}", address={"street": f"{n} Main Street"})
        for n in range(rows)
    )  # fmt: skip


def load_visits(database: Database, session: Session, rows: int) -> None:
    """Fill a team's table of two encrypted columns."""
    shape, connection = replace(VISITS, keys=[(uuid7(),) for _ in range(rows)]), session.connection()
    shape.create(connection)
    session.commit()
    connection = session.connection()
    table = next(each for each in encrypted_tables(connection) if each.name == shape.name)
    shape.fill(connection, database.keys.keyring(connection), table)


def pages(database: Database, table: str) -> tuple[int, int]:
    """Return how many pages a table has, and its indexes together."""
    query = text("SELECT pg_relation_size(:table) / 8192, pg_indexes_size(:table) / 8192")
    with database.engine.connect() as connection:
        rows, indexes = connection.execute(query, {"table": table}).one()
    return rows, indexes


def bound(before: int) -> float:
    """Return how many pages there may be afterwards: 3 % more, or one, since a table has whole pages."""
    return max(1.03 * before, before + 1)


def require_no_growth(database: Database, table: str, before: tuple[int, int], report: RotationReport) -> None:
    """Assert that a run ended well, that rows stayed on their pages, and that neither rows nor indexes took more pages."""
    assert report.done
    assert report.hot_ratio is not None
    assert report.hot_ratio >= 0.95
    after = pages(database, table)
    assert after[0] <= bound(before[0]), (before, after)
    assert after[1] <= bound(before[1]), (before, after)


TABLES = pytest.mark.parametrize(
    ("table", "load", "rows"),
    [
        *(pytest.param("patient_data", load_patients, rows, id=f"{rows} patients") for rows in (200, 1200)),
        *(pytest.param("visits", load_visits, rows, id=f"{rows} visits") for rows in (200, 1000, 3000)),
    ],
)


@TABLES
@pytest.mark.parametrize("workers", [1, 2])
def test_a_table_just_loaded_does_not_grow(database: Database, table: str, load: Load, rows: int, workers: int) -> None:
    """Neither with one worker nor with two, neither vacuumed nor analysed."""
    with Session(database.engine) as session:
        load(database, session, rows)
        session.commit()
    before = pages(database, table)
    report = rotate(database.engine, database.keys, pace=Pace(workers=workers))
    assert rows == report.rows
    require_no_growth(database, table, before, report)


@TABLES
def test_a_resumed_run_that_only_sweeps_does_not_grow(
    database: Database, table: str, load: Load, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted run left, whole pages of it, is swept in passes, too."""
    with Session(database.engine) as session:
        load(database, session, rows)
        session.commit()
    before = pages(database, table)
    stop = threading.Event()
    done: list[int] = []
    rotate_part = Batches.rotate

    def until_few_are_left(self: Batches, *args: Any, **options: Any) -> tuple[int, int | None, bool]:
        result = rotate_part(self, *args, **options)
        done.append(result[0])
        if sum(done) >= rows - LEFT_ROWS:
            stop.set()
        return result

    monkeypatch.setattr(Batches, "rotate", until_few_are_left)
    assert rotate(database.engine, database.keys, stop=stop).interrupted
    done.clear()
    report = rotate(database.engine, database.keys)
    assert done == [], "it went straight to the sweep"
    assert 0 < report.rows <= SWEEP_ROWS
    require_no_growth(database, table, before, report)


@TABLES
def test_rows_that_were_committed_after_the_count_do_not_grow(
    database: Database, table: str, load: Load, rows: int
) -> None:
    """A transaction that loads a table while a run begins leaves all its rows to the sweep."""
    with Session(database.engine) as session:
        load(database, session, rows)

        def commit(now: Progress) -> None:
            if now.phase == "sweeping":
                session.commit()

        before = pages(database, table)
        report = rotate(database.engine, database.keys, on_progress=commit)
    assert rows == report.rows
    require_no_growth(database, table, before, report)
