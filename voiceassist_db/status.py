"""Where a database stands with its keys. Needs no key: an auditor may run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, false, func, select

from voiceassist_db.catalogue import foreign_tables, tables_and_copies
from voiceassist_db.constraints import Gap, gaps
from voiceassist_db.execution import execute
from voiceassist_db.keyring import OPEN, RegisteredKey, registered_keys
from voiceassist_db.models import KeyRotationFailureRow, KeyRotationRow, table_of
from voiceassist_db.moments import server_now

DEFAULT_MAX_AGE_DAYS: Final = 35
"""How old the current key may become. Rotation is monthly, so a key reaches 31 days. The rest is for a job that begins days late. A month
without a rotation is reported within its first week."""

SHOWN_ROTATIONS: Final = 10


@dataclass(frozen=True, slots=True)
class Rotation:
    """One rotation, of the past or in progress.

    Attributes:
        id: Its number in ``key_rotations``.
        kind: ``encryption``, ``index`` or ``retirement``.
        from_version: The older key version; of the index key, a count.
        to_version: The newer one.
        state: ``running``, ``interrupted``, ``finished`` or ``superseded``: by another rotation, so that it can never be continued.
        started_at: When its first run began.
        heartbeat_at: When a process was last seen at it.
        finished_at: When it was complete; None where it is not.
        rows: Rows done, by all its runs.
        rows_total: Rows that there were to do.
        rows_per_second: Rate at the last heartbeat.
        holder_name: ``host:process`` that was last at it.
        is_active: Whether that process is at it now, by its lease.
        quarantined: Rows that could not be read.
    """

    id: UUID
    kind: str
    from_version: int
    to_version: int
    state: str
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    rows: int
    rows_total: int
    rows_per_second: float
    holder_name: str | None
    is_active: bool
    quarantined: int


@dataclass(frozen=True, slots=True)
class Status:
    """Key versions, rows and rotations of one database.

    Attributes:
        keys: The registered versions, oldest first.
        tables: Rows per key version, by table.
        rotations: The last runs, newest first.
        key_age_days: Age of the current key; None where no key is registered.
        overdue: Whether the current key is older than the policy allows.
        gaps: What encrypted tables lack; ``schema.complete_tables`` adds it. Copies of them, and tables that are
            skipped because of their owners, have no statement to add.
        unencrypted: Rows without a key version, by table: those that have no encrypted value, of tables where others insert rows.
    """

    keys: tuple[RegisteredKey, ...]
    tables: dict[str, dict[int, int]]
    rotations: tuple[Rotation, ...]
    key_age_days: float | None
    overdue: bool
    gaps: tuple[Gap, ...] = ()
    unencrypted: dict[str, int] = field(default_factory=dict)

    @property
    def unfinished(self) -> tuple[Rotation, ...]:
        """The runs that have not finished."""
        return tuple(each for each in self.rotations if each.state in OPEN)


def read_status(connection: Connection, *, max_age_days: int = DEFAULT_MAX_AGE_DAYS) -> Status:
    """Read the registry, count rows per version in every encrypted table, and list the last rotations.

    Args:
        connection: A connection of a role that may read the registry, such as the auditor's.
        max_age_days: Age in days from which the current key is overdue.

    Returns:
        What was found.

    Raises:
        SchemaNotMigratedError: The registry is not there.
    """
    keys = tuple(registered_keys(connection).values())
    tables: dict[str, dict[int, int]] = {}
    unencrypted: dict[str, int] = {}
    missing: list[Gap] = []
    found, copies = tables_and_copies(connection)
    for table in found:
        missing += gaps(connection, table)
        counted = select(table.version, func.count()).group_by(table.version).order_by(table.version)
        rows = dict(map(tuple, execute(connection, counted, table=table.name)))
        if none := rows.pop(None, 0):
            unencrypted[table.name] = none
        tables[table.name] = rows
    missing += [Gap(each.table, each.problem, (), is_unsafe=True) for each in copies]
    missing += [Gap(each.table, each.problem, (), is_unsafe=False) for each in foreign_tables(connection)]
    current = next((key for key in keys if key.state == "current"), None)
    age = (server_now(connection) - current.created_at).total_seconds() / 86400 if current else None
    overdue = age is not None and age > max_age_days
    return Status(keys, tables, _rotations(connection), age, overdue, tuple(missing), unencrypted)


def _rotations(connection: Connection) -> tuple[Rotation, ...]:
    run, failure = table_of(KeyRotationRow).c, table_of(KeyRotationFailureRow).c
    failures = select(func.count()).where(failure.rotation == run.id).scalar_subquery()
    statement = (
        select(
            run.id,
            run.kind,
            run.from_version,
            run.to_version,
            run.state,
            run.started_at,
            run.heartbeat_at,
            run.finished_at,
            run.rows,
            run.rows_total,
            run.rows_per_second,
            run.holder_name,
            func.coalesce(run.lease_until > func.clock_timestamp(), false()),
            failures,
        )
        .order_by(run.started_at.desc())
        .limit(SHOWN_ROTATIONS)
    )
    return tuple(Rotation(*tuple(row)) for row in execute(connection, statement, table=KeyRotationRow.__tablename__))
