"""The monthly schedule of the runbook works in every month: of three years, begun on any day, on time or late."""

from __future__ import annotations

import calendar
import itertools
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from freezegun import freeze_time
from sqlalchemy import Engine, text

from tests.cli.conftest import ROOT, Run
from voiceassist_db import Database, Patient
from voiceassist_db.errors import RotationError
from voiceassist_db.providers.vault import VaultKeyProvider
from voiceassist_db.rotation import retire, rotate
from voiceassist_db.rotation.retirement import DEFAULT_GRACE_DAYS, kept_until
from voiceassist_db.status import DEFAULT_MAX_AGE_DAYS, read_status

MONTHS: Final = 36
RUNBOOK: Final = ROOT / "docs" / "rotation.md"


def schedule(first: datetime) -> Iterator[datetime]:
    """Give the moments at which cron begins the job: the same day of 36 months, at the same hour."""
    for month in range(first.month - 1, first.month - 1 + MONTHS):
        yield first.replace(year=first.year + month // 12, month=month % 12 + 1)


def oldest(first: datetime, *, late: tuple[float, ...]) -> float:
    """Simulate the job of the runbook; return the greatest age in days that a current key reaches.

    A key is current from the beginning of its rotation, to the beginning of the next one.

    Args:
        first: When the first job begins.
        late: By how many days jobs begin late, in turns.
    """
    begins = [due + timedelta(days=late[number % len(late)]) for number, due in enumerate(schedule(first))]
    return max((after - before) / timedelta(days=1) for before, after in itertools.pairwise(begins))


def refused(first: datetime, grace_days: float, *, late: tuple[float, ...], takes_days: float) -> list[datetime]:
    """Simulate the job of the runbook; return when its retirement, and so its rotation, was refused.

    Args:
        first: When the first job begins.
        grace_days: The grace period.
        late: By how many days jobs begin late, in turns.
        takes_days: How long a rotation takes.
    """
    refusals, ended = [], None
    for number, due in enumerate(schedule(first)):
        begins = due + timedelta(days=late[number % len(late)])
        if ended is not None and kept_until(ended, grace_days) > begins:
            refusals.append(due)
        else:
            ended = begins + timedelta(days=takes_days)
    return refusals


STARTS: Final = [
    datetime(year, month, day, 2, tzinfo=UTC) for year in (2026, 2027) for month in range(1, 13) for day in (1, 15, 28)
]


@pytest.mark.parametrize("late", [(0.0,), (0.0, 0.05), (3.0, 0.0), (0.0, 0.0, 3.0)], ids=str)
@pytest.mark.parametrize("takes_days", [0.0001, 0.1, 3.9])
def test_no_month_of_three_years_is_refused(late: tuple[float, ...], takes_days: float) -> None:
    """From any month on, with a leap year or without; jobs that are three days late and take four are no exception."""
    for first in STARTS:
        assert refused(first, DEFAULT_GRACE_DAYS, late=late, takes_days=takes_days) == []


@pytest.mark.parametrize("late", [(0.0,), (0.0, 0.05), (0.0, 3.0)], ids=str)
def test_status_never_reports_a_key_that_is_rotated_on_time(late: tuple[float, ...]) -> None:
    """Nor one whose rotation begins three days late; a month without a rotation is reported, whichever it is."""
    for first in STARTS:
        assert oldest(first, late=late) < DEFAULT_MAX_AGE_DAYS
    shortest = min((later - due).days for due, later in itertools.pairwise(schedule(STARTS[0])))
    assert DEFAULT_MAX_AGE_DAYS < 2 * shortest
    assert 30 < oldest(STARTS[0], late=(0.0,))  # the limit that there was


def test_thirty_days_would_be_refused() -> None:
    """The simulation finds the fault that there was: after February and after each month of 30 days."""
    first = datetime(2026, 1, 1, 2, tzinfo=UTC)
    refusals = refused(first, 30, late=(0.0,), takes_days=0.01)
    lengths = {calendar.monthrange(due.year, due.month - 1)[1] for due in refusals}
    assert len(refusals) >= 2 * MONTHS // 12
    assert lengths <= {28, 29, 30}


def documented() -> list[list[str]]:
    """Return the arguments of each command of the runbook's monthly rotation."""
    section = RUNBOOK.read_text().partition("## The monthly rotation")[2]
    block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [arguments for name, *arguments in lines if name == "voiceassist-db" and arguments != ["status"]]


def pass_a_month(engine: Engine, days: int) -> None:
    """Let everything that the database knows have happened so many days earlier."""
    with engine.begin() as connection:
        for table, columns in {
            "encryption_keys": ("created_at", "replaced_at", "retired_at"),
            "key_rotations": ("started_at", "heartbeat_at", "finished_at"),
        }.items():
            changes = ", ".join(f"{each} = {each} - :days * interval '1 day'" for each in columns)
            connection.execute(text(f"UPDATE {table} SET {changes}"), {"days": days})


@pytest.mark.parametrize(
    "months",
    [
        pytest.param([(2027, 2), (2027, 3)], id="February", marks=pytest.mark.wide),
        pytest.param(
            [(2026 + month // 12, month % 12 + 1) for month in range(MONTHS)], id="three years", marks=pytest.mark.long
        ),
    ],
)
def test_the_documented_commands_run_month_after_month(
    months: list[tuple[int, int]], run: Run, environment: dict[str, str], database: Database, provider: VaultKeyProvider
) -> None:
    """On real servers: each command ends with 0, and at most two versions are live."""
    assert documented() == [["retire"], ["rotate", "--dry-run"], ["rotate"]]
    with database.transaction() as tx:
        tx.patients.add_many([Patient(patient_id=f"PT-{number}", name="Zoë") for number in range(20)])
    for rotations, (year, month) in enumerate(months):
        for arguments in documented():
            done = run(*arguments, env=environment)
            assert (done.code, done.stderr) == (0, ""), (year, month, arguments)
        assert provider.fetch().version == rotations + 2
        pass_a_month(database.engine, calendar.monthrange(year, month)[1])
        with database.engine.connect() as connection:
            status = read_status(connection)
        assert status.tables["patient_data"] == {rotations + 2: 20}
        assert not status.overdue, (year, month, status.key_age_days)
        assert [key.state for key in status.keys] == ["retired"] * rotations + ["previous", "current"]


def test_the_servers_clock_counts(database: Database) -> None:
    """A client whose clock is years ahead retires nothing too early; one that is behind keeps nothing too long."""
    assert rotate(database.engine, database.keys).done
    with freeze_time(datetime.now(UTC) + timedelta(days=3650), tick=True):
        with pytest.raises(RotationError, match="stays until"):
            retire(database.engine, database.keys)
        with database.engine.connect() as connection:
            assert not read_status(connection).overdue
    pass_a_month(database.engine, 22)
    with freeze_time(datetime.now(UTC) - timedelta(days=3650), tick=True):
        assert retire(database.engine, database.keys).version == 1


def test_a_grace_period_that_is_no_number_of_days_is_refused(database: Database) -> None:
    """Before anything is asked of a server."""
    for grace_days in (-1, float("nan"), float("inf"), 36_501):
        with pytest.raises(ValueError, match="grace_days"):
            retire(database.engine, database.keys, grace_days=grace_days)
