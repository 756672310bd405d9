"""What the benchmarks share: a filled database, and ratios of two ways measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import psycopg
import pytest

from tests.conftest import plain
from voiceassist_db import Database, Patient

ROUNDS = 31


def patients(count: int) -> list[Patient]:
    """Return made-up patients of ordinary size, all different."""
    return [
        Patient(
            patient_id=f"PT-{n:06d}",
            ssn=f"9{n % 90 + 10:02d}-{n // 90 % 90 + 10}-{n % 10000:04d}",
            mrn=f"MRN-{n:08d}",
            name=f"Zoë Patient-{n}",
            date_of_birth=date(1930 + n % 90, 1 + n % 12, 1 + n % 28),
            address={"street": f"{n} Main Street", "city": "Española", "state": "NM", "zip": "87532"},
        )
        for n in range(count)
    ]


def ratio(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    rounds: int = ROUNDS,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Run two ways in turn, and return the median of their times' ratios with its quartiles.

    Each round measures both, in alternating order, so that whatever else the machine does meets both alike; ``before`` runs
    ahead of each measurement and is not measured.
    """
    for way in (ours, theirs):
        before()
        way()
    ratios = []
    for round_ in range(rounds):
        seconds = {}
        for way in (ours, theirs) if round_ % 2 else (theirs, ours):
            before()
            started = time.perf_counter()
            way()
            seconds[way] = time.perf_counter() - started
        ratios.append(seconds[ours] / seconds[theirs])
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(median, 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


@pytest.fixture
def filled(database: Database) -> Database:
    """A database of 2,000 patients, analysed as autovacuum would soon have it."""
    with database.transaction() as tx:
        tx.patients.add_many(patients(2000))
    with psycopg.connect(plain(database.engine.url), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE patient_data")
    return database
