"""The end of a key version: nothing needs it, nobody can write under it again, and the key store forgets it.

Owns the order: rows, floor, rows again, proof, registry, key store. What would make old data unreadable comes last, and each step
finds out by itself whether it has been done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, Integer, column, func, select
from sqlalchemy import table as table_named

from voiceassist_db.catalogue import encrypted_tables, foreign_tables
from voiceassist_db.constraints import set_floor, set_format, validate
from voiceassist_db.decision import NO_PREVIOUS, Action, Command, Refusal, Remedy, Run, Step, decide
from voiceassist_db.errors import NothingToDoError, RotationError, TransactionConflictError
from voiceassist_db.execution import execute, regclass, require_writable, see_all_rows, translated
from voiceassist_db.keyring import (
    KeyringSource,
    assemble,
    fetched,
    observe,
    refused,
    register,
    registered_keys,
    retire_version,
    without_version,
)
from voiceassist_db.keyring.listing import store
from voiceassist_db.keyring.members import Here, done_with, needed_by
from voiceassist_db.keys import KeyProvider, KeySet, Scheme
from voiceassist_db.models import EncryptedTable, KeyRotationRow, table_of
from voiceassist_db.models.declaration import VERSION_COLUMN
from voiceassist_db.moments import moment_as_text, server_now
from voiceassist_db.quantities import require_number
from voiceassist_db.rotation.lease import Lease, close_superseded, commit_durably
from voiceassist_db.rotation.relations import require_all_rows, require_local_tables
from voiceassist_db.waits import named

DEFAULT_GRACE_DAYS: Final = 21
"""Three weeks. A monthly rotation needs the key to be retired 28 days after the one before, in February. The week between is for
runs that begin late or take long: the days are counted from the end of a rotation."""

MAX_GRACE_DAYS: Final = 36_500

LOCK_TIMEOUT_MS: Final = 1000
"""How long to wait for a table's ACCESS EXCLUSIVE lock at a time; meanwhile others queue behind the wait."""

PAUSE_S: Final = 2.0
_RUNS: Final = table_of(KeyRotationRow)


@dataclass(frozen=True, slots=True)
class Retirement:
    """What was retired.

    Attributes:
        version: The key version that no row needs and no one can write under any more.
        floor: The oldest key version that the tables accept now.
        tables: The tables that have that floor.
        removed: Whether the key store no longer holds the key.
        needed_by: Names of the other databases of the key store that may need it, and for which it stays there.
    """

    version: int
    floor: int
    tables: tuple[str, ...]
    removed: bool = True
    needed_by: tuple[str, ...] = ()


def retire(
    engine: Engine, keys: KeyringSource, *, grace_days: float = DEFAULT_GRACE_DAYS, patience_s: float = 30.0
) -> Retirement:
    """Retire the previous key version: refuse while anything needs it, else make it unusable here and remove it from the key store.

    Where other databases use the same keys, the last one that retires the version removes it.

    Args:
        engine: An engine of the tables' owner.
        keys: The keys; their provider is written to.
        grace_days: Days, up to 36,500, that must have passed since the rotation away from it was finished, by the server's clock:
            backups of that time need it.
        patience_s: Seconds to wait for the lock of each table.

    Returns:
        What was retired, and which databases still need the key.

    Raises:
        NothingToDoError: There is no previous key.
        RotationActiveError: A rotation is being run.
        RotationError: It is still needed, or the grace period is not over.
        ValueError: A number is out of range.
    """
    require_number("grace_days", grace_days, most=MAX_GRACE_DAYS)
    require_number("patience_s", patience_s)
    with translated(), engine.connect() as connection:
        require_writable(connection)
        require_local_tables(connection)
        tables = encrypted_tables(connection)
        require_all_rows(connection, tables)
        action, stored = _decided(connection, keys.provider, tables, grace_days)
    if action.step is Step.NOTHING:
        close_superseded(engine, action.supersedes)
        raise NothingToDoError(NO_PREVIOUS)
    run = Run("retirement", action.from_version, action.to_version)
    with Lease.take(engine, run, action.supersedes) as lease:
        finished = False
        lease.keep(dict)
        try:
            if action.step is Step.RETIRE:
                _close_off(engine, lease, tables, stored=stored, patience_s=patience_s)
            left = _forget(keys.provider, Here.known(engine), stored)
            finished = True
        finally:
            lease.release(finished=finished)
    keys.forget()
    removed = left.previous_version is None
    waits = () if removed else needed_by(left, Here.known(engine))
    return Retirement(action.from_version, action.to_version, tuple(each.name for each in tables), removed, waits)


def _decided(
    connection: Connection, provider: KeyProvider, tables: list[EncryptedTable], grace_days: float
) -> tuple[Action, KeySet]:
    """Return what to do about the previous version, and the keys that this was decided for."""
    stored = fetched(provider)
    state = observe(connection, provider, stored, tables)
    now = server_now(connection)
    until = now if stored is None else kept_until(_replaced_at(connection, stored) or now, grace_days)
    action = decide(replace(state, is_grace_over=until <= now), Command.RETIRE)
    if isinstance(action, Refusal):
        if action.remedy is not Remedy.WAIT or stored is None:
            raise refused(action, provider, stored, connection)
        _require_unused_elsewhere(connection, stored.previous_version or 0)
        raise RotationError(
            f"key version {stored.previous_version} stays until {until:%Y-%m-%d %H:%M} UTC, {grace_days:g} days after it was replaced, "
            "for the backups of that time: run this again then, or now with `--grace-days 0` if no backup of that time is needed"
        )
    assert stored is not None  # which is refused
    if action.step is Step.RETIRE:
        _require_unused_elsewhere(connection, action.from_version)
    assemble(connection, stored)  # proves the blind-index keys, too
    return action, stored


def kept_until(replaced_at: datetime, grace_days: float) -> datetime:
    """Return until when a version that was replaced then is kept."""
    return replaced_at + timedelta(days=grace_days)


def _replaced_at(connection: Connection, stored: KeySet) -> datetime | None:
    """Return when the last row left the previous version: the end of its rotation, or else when the next version was registered."""
    finished = select(moment_as_text(func.max(_RUNS.c.finished_at))).where(
        _RUNS.c.kind == "encryption", _RUNS.c.from_version == stored.previous_version
    )
    at: str | None = execute(connection, finished, table=_RUNS.name).scalar()
    if at:
        return datetime.fromisoformat(at)
    known = registered_keys(connection)
    previous, current = known.get(stored.previous_version or 0), known.get(stored.version)
    if previous is not None and previous.replaced_at is not None:
        return previous.replaced_at
    return current.created_at if current is not None else None


def _require_unused(connection: Connection, tables: list[EncryptedTable], version: int) -> None:
    see_all_rows(connection)
    for table in tables:
        of_version = func.count().filter(table.version <= version)
        counts = select(of_version, func.count().filter(table.has_no_version())).select_from(table.table)
        rows, unversioned = tuple(execute(connection, counts, table=table.name).one())
        if rows:
            raise RotationError(
                f"{rows:,} rows of {table.name} still need key version {version}: run the rotation again, which finishes them. "
                "Rows that it cannot read must be repaired, restored or removed first: key_rotation_failures names them."
            )
        if unversioned:
            raise without_version(table, unversioned)


def _require_unused_elsewhere(connection: Connection, version: int) -> None:
    """Refuse where a table that rotations skip has rows of the version: nothing would open them any more.

    It may be data of a team whose role is not trusted, and nobody could give it back. An administrator ends it by one statement.
    """
    for each in foreign_tables(connection):
        if not each.has_versions:
            continue
        if each.is_hidden:
            raise RotationError(
                f"{each.table} has row-level security, so that its rows under key version {version} cannot be counted. The table "
                f"{each.obstacle}. Then run this again"
            )
        of = column(VERSION_COLUMN, Integer)
        count = select(func.count()).select_from(table_named(each.name, of, schema=each.schema)).where(of <= version)
        see_all_rows(connection)
        if rows := execute(connection, count, table=each.table).scalar_one():
            raise RotationError(
                f"{rows:,} rows of {each.table} are under key version {version} and were skipped: the table {each.obstacle}. Then run this again"
            )


def _close_off(
    engine: Engine,
    lease: Lease,
    tables: list[EncryptedTable],
    *,
    stored: KeySet,
    patience_s: float,
) -> None:
    """Let nobody write under the version again, prove that nothing is under it, and say so in the registry."""
    with translated(), engine.begin() as connection:
        lease.fence(connection)
        register(connection, stored)  # a secret that was restored may hold an older key than this database ever had
        previous = registered_keys(connection)[stored.previous_version or 0]
    for table in tables:

        def close(connection: Connection, table: EncryptedTable = table) -> None:
            set_floor(connection, table, stored.version)
            if previous.scheme is Scheme.DIRECT:
                set_format(connection, table, bound_only=True)

        _patiently(engine, lease, close, table, patience_s)
    # A writer that began before the floor may have been the last: now that none can follow, it is counted again.
    with translated(), engine.begin() as connection:
        _require_unused(connection, tables, previous.version)
    for table in tables:
        with translated(), engine.begin() as connection:
            validate(connection, table)
    with translated(), engine.begin() as connection:
        lease.fence(connection)
        commit_durably(connection)
        retire_version(connection, previous.version)


def _patiently(
    engine: Engine, lease: Lease, change: Callable[[Connection], None], table: EncryptedTable, patience_s: float
) -> None:
    give_up = time.monotonic() + patience_s
    while True:
        try:
            with translated(), engine.begin() as connection:
                lease.fence(connection, lock_timeout_ms=LOCK_TIMEOUT_MS)
                change(connection)
        except TransactionConflictError:
            if time.monotonic() > give_up:
                raise RotationError(
                    f"{table.name} is in use by a transaction that does not end, so that its constraint could not be set: run "
                    f"this again when it has ended.{_users_of(engine, table)}"
                ) from None
            time.sleep(PAUSE_S)
        else:
            return


def _users_of(engine: Engine, table: EncryptedTable) -> str:
    with translated(), engine.begin() as connection:
        return named(connection, regclass(connection, table.table), readers=True)


def _forget(provider: KeyProvider, here: Here, stored: KeySet) -> KeySet:
    """Remove the retired key from the store, or write down there that this database is done with it; return what is left."""
    pair = (stored.previous_version, stored.version)

    def without(held: KeySet) -> KeySet:
        if (held.previous_version, held.version) == pair:
            return done_with(held, here, stored.version)
        if held.previous_version is None and held.version == stored.version:
            return held  # the last of the other databases removed it just now
        raise RotationError("somebody else changed the key store just now: run this again")

    left = store(provider, without)
    if left.previous_version == stored.previous_version and not needed_by(left, here):
        raise RotationError("the key store still returns the retired key: run this again")
    return left
