"""What the benchmarks share: a filled database."""

from __future__ import annotations

import psycopg
import pytest

from benchmarking.deployment import plain
from benchmarking.peers.peer import patients
from voiceassist_db import Database


@pytest.fixture
def filled(database: Database) -> Database:
    """A database of 2,000 patients, analysed as autovacuum would soon have it."""
    with database.transaction() as tx:
        tx.patients.add_many(patients(2000))
    with psycopg.connect(plain(database.engine.url), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE patient_data")
    return database
