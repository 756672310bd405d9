"""Another team's table is encrypted, verified and rotated without being named anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import text

from examples import appointments
from voiceassist_db import Database
from voiceassist_db.rotation import rotate
from voiceassist_db.status import read_status
from voiceassist_db.verification import verify


@pytest.fixture
def with_appointments(database: Database) -> Database:
    """A database in which the team's migration has run."""
    with database.engine.begin() as connection:
        appointments.upgrade(Operations(MigrationContext.configure(connection)))
    return database


def test_the_migration_makes_what_the_model_declares(with_appointments: Database) -> None:
    """Autogenerate finds no difference, comments and with them the declaration included."""
    only_theirs: Callable[..., bool] = lambda _object, name, kind, *_: kind != "table" or name == "appointments"  # noqa: E731
    with with_appointments.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": only_theirs})
        assert compare_metadata(context, appointments.TeamBase.metadata) == []


def test_the_table_is_encrypted_verified_and_rotated_untold(with_appointments: Database) -> None:
    """Nothing but the table's own declaration leads status, verify and rotate to it."""
    moments = [datetime(2026, 1, day, 9, 30, tzinfo=UTC) for day in range(1, 29)]
    made = [appointments.Appointment(starts_at=each, reason=f"SECRET {each:%d}") for each in moments]
    with with_appointments.transaction() as tx:
        tx.repository(appointments.AppointmentRepository).add_many(made)
    with with_appointments.engine.connect() as connection:
        stored = connection.execute(text("SELECT reason_encrypted FROM appointments")).scalars().all()
        assert all(each[:6].hex() == "c30c04090108" and b"SECRET" not in each for each in stored)
        assert read_status(connection).tables["appointments"] == {1: 28}
    report = rotate(with_appointments.engine, with_appointments.keys)
    assert (report.rows, report.remaining, report.verified) == (28, 0, True)
    with with_appointments.engine.connect() as connection:
        assert read_status(connection).tables["appointments"] == {2: 28}
    verified = {each.table: each for each in verify(with_appointments.engine, with_appointments.keys)}
    assert (verified["appointments"].values, verified["appointments"].failed) == (28, 0)
    with with_appointments.transaction() as tx:
        assert made == sorted(tx.repository(appointments.AppointmentRepository).page(), key=lambda each: each.starts_at)
