"""One rotation from its beginning, or from where the last run was interrupted, to its end.

Owns the order of steps: the lease, the new key into the key store, then into the registry, then the rows, the sweep, the proof,
the result. Each step finds out by itself whether it has been done, so a run that died anywhere is simply run again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, or_, select

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.constraints import Gap, gaps
from voiceassist_db.decision import NO_ROTATION, Action, Command, Refusal, Run, State, Step, decide, nothing_to_resume
from voiceassist_db.errors import (
    NothingToDoError,
    RotationActiveError,
    RotationError,
)
from voiceassist_db.execution import execute, require_writable, see_all_rows, translated
from voiceassist_db.keyring import (
    Keyring,
    KeyringSource,
    assemble,
    fetched,
    observe,
    refused,
    register,
    take_back,
)
from voiceassist_db.keyring.listing import store
from voiceassist_db.keyring.members import Here, needing
from voiceassist_db.keys import Key, KeyProvider, KeySet
from voiceassist_db.models import EncryptedTable, KeyRotationFailureRow, table_of
from voiceassist_db.rotation.batches import Tally
from voiceassist_db.rotation.lease import Journal, Lease, active_run, close_superseded, commit_durably
from voiceassist_db.rotation.relations import (
    Relation,
    relations_of,
    require_all_rows,
    require_local_tables,
    require_safe_connection,
)
from voiceassist_db.rotation.report import OnProgress, Pace, Plan, RotationReport
from voiceassist_db.rotation.throttle import require_visible_replicas
from voiceassist_db.rotation.transactions import persistently
from voiceassist_db.rotation.work import Work

_FAILURES = table_of(KeyRotationFailureRow)


def plan(
    engine: Engine,
    keys: KeyringSource,
    *,
    tables: Iterable[str] | None = None,
    pace: Pace | None = None,
    resume_only: bool = False,
) -> Plan:
    """Look what a rotation would do, and whether it would be refused; changes nothing.

    Args:
        engine: An engine whose connections may receive keys.
        keys: The keys.
        tables: Names of the tables to rotate; None for all.
        pace: How hard it would work.
        resume_only: Begin no new rotation.

    Raises:
        NothingToDoError: ``resume_only`` would find nothing to continue.
        RotationError: It would be refused, and why.
    """
    with translated(), engine.connect() as connection:
        require_writable(connection)
        require_local_tables(connection)
        require_safe_connection(connection)
        preflight = _Preflight.make(connection, keys.provider, tables, resume_only=resume_only)
        if preflight.action.step is Step.NOTHING:
            raise NothingToDoError(nothing_to_resume(preflight.action, NO_ROTATION))
        if active := active_run(connection):
            raise RotationActiveError(f"a rotation is being run by {active.holder_name}: see `voiceassist-db status`")
        require_visible_replicas(connection, pace or Pace())
        old = preflight.action.from_version
        return Plan(
            old,
            preflight.action.to_version,
            preflight.is_unfinished,
            {each.name: _count(connection, each, version=old) for each in preflight.chosen},
            {
                each.name: sum(sum(part.sizes(connection)) for part in relations_of(connection, each))
                for each in preflight.chosen
            },
            preflight.gaps,
        )


def next_action(engine: Engine, keys: KeyringSource) -> Action | Refusal:
    """Return what a rotation would do first, or that it would be refused; counts nothing more, and changes nothing.

    Args:
        engine: An engine whose connections may receive keys.
        keys: The keys.
    """
    with translated(), engine.connect() as connection:
        require_local_tables(connection)
        tables = encrypted_tables(connection)
        require_all_rows(connection, tables)
        return decide(observe(connection, keys.provider, fetched(keys.provider), tables), Command.ROTATE)


def rotate(
    engine: Engine,
    keys: KeyringSource,
    *,
    pace: Pace | None = None,
    tables: Iterable[str] | None = None,
    resume_only: bool = False,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> RotationReport:
    """Rotate the encryption key, or finish the rotation that is unfinished. Readers and writers go on meanwhile.

    Args:
        engine: An engine whose connections may receive keys; its pool must have room for the workers and three more.
        keys: The keys; their provider is written to.
        pace: How hard to work.
        tables: Names of the tables to rotate now; None for all.
        resume_only: Begin no new rotation.
        stop: When it is set, the run ends after the batches that are under way, and can be continued.
        on_progress: Called with where it stands.

    Returns:
        What was done.

    Raises:
        NothingToDoError: ``resume_only`` found nothing to continue.
        RotationActiveError: Another process is at it.
        RotationError: It is refused: the rotation before must be retired first, or what is asked for cannot be done.
    """
    pace = pace or Pace()
    with translated(), engine.connect() as connection:
        require_writable(connection)
        require_local_tables(connection)
        require_safe_connection(connection)
        preflight = _Preflight.make(connection, keys.provider, tables, resume_only=resume_only)
        action = preflight.action
        require_visible_replicas(connection, pace)
        relations = [part for each in preflight.chosen for part in relations_of(connection, each)]
    if action.step is Step.NOTHING:
        close_superseded(engine, action.supersedes)
        raise NothingToDoError(nothing_to_resume(preflight.action, NO_ROTATION))
    run_of = Run("encryption", action.from_version, action.to_version)
    with Lease.take(engine, run_of, action.supersedes) as lease:
        tally = Tally()
        run = _Run(engine, keys, preflight=preflight, relations=relations, lease=lease, tally=tally)
        finished = False
        try:
            lease.keep(run.journal())
            keyring = run.begin()
            work = Work(
                engine,
                lease,
                keyring,
                preflight.chosen,
                relations,
                pace=pace,
                tally=tally,
                is_resumed=preflight.is_unfinished,
                stop=stop or threading.Event(),
                on_progress=on_progress,
            )
            report = run.through(work)
            finished = report.done
        finally:
            lease.release(finished=finished)
        return report


@dataclass(frozen=True, slots=True)
class _Preflight:
    """What is known before anything is changed."""

    action: Action
    state: State
    tables: list[EncryptedTable]
    chosen: list[EncryptedTable]
    gaps: list[Gap]

    @classmethod
    def make(
        cls, connection: Connection, provider: KeyProvider, names: Iterable[str] | None, *, resume_only: bool = False
    ) -> _Preflight:
        tables = encrypted_tables(connection)
        require_all_rows(connection, tables)
        stored = fetched(provider)
        state = observe(connection, provider, stored, tables)
        action = decide(state, Command.RESUME if resume_only else Command.ROTATE)
        if isinstance(action, Refusal):
            raise refused(action, provider, stored, connection)
        assert stored is not None  # which is refused
        assemble(connection, stored)  # proves the blind-index keys, too
        chosen = _chosen(tables, names)
        missing = [gap for each in chosen for gap in gaps(connection, each)]
        return cls(action, state, tables, chosen, missing)

    @property
    def is_unfinished(self) -> bool:
        """Whether an earlier run began this rotation."""
        began = Run("encryption", self.action.from_version, self.action.to_version)
        return self.action.step is Step.CONTINUE or began in self.state.open_runs


def _chosen(tables: list[EncryptedTable], names: Iterable[str] | None) -> list[EncryptedTable]:
    if names is None:
        return tables
    by_name = {each.name: each for each in tables}
    wanted = list(names)
    if unknown := [name for name in wanted if name not in by_name]:
        raise RotationError(f"there is no encrypted table {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(wanted)]


class _Run:
    """One run that has the lease."""

    def __init__(
        self,
        engine: Engine,
        keys: KeyringSource,
        *,
        preflight: _Preflight,
        relations: list[Relation],
        lease: Lease,
        tally: Tally,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._preflight = preflight
        self._relations = relations
        self._lease = lease
        self._tally = tally

    def begin(self) -> Keyring:
        """Bring the new key into the store and then into the registry, unless that was done; return both keys."""
        wanted = self._preflight.action
        # The store first: a key that rows are under must never exist in this process alone.
        stored = self._stored(Here.known(self._engine))

        def register_it(connection: Connection) -> Keyring:
            self._lease.fence(connection)
            commit_durably(connection)  # before any row is under the new version
            register(connection, stored)
            if wanted.from_version in self._preflight.state.rows:
                take_back(connection, wanted.from_version)
            # They are tried again, for they may have been repaired; those that still fail are put down again.
            forget = delete(_FAILURES).where(_FAILURES.c.rotation == self._lease.run)
            execute(connection, forget, table=_FAILURES.name)
            return assemble(connection, stored)

        return persistently(self._engine, register_it, what="the new key's registration")

    def _stored(self, here: Here) -> KeySet:
        """Bring the new key, and that this database needs the one before it, into the store; return what the store holds then."""
        wanted = self._preflight.action
        written: list[KeySet] = []

        def with_new_key(held: KeySet) -> KeySet:
            new = held
            if wanted.step is Step.BEGIN and (held.version, held.previous_version) == (wanted.from_version, None):
                new = replace(
                    held,
                    version=wanted.to_version,
                    key=Key.generate(),
                    previous_version=held.version,
                    previous_key=held.key,
                )
            if (new.previous_version, new.version) != (wanted.from_version, wanted.to_version):
                raise RotationError("somebody else changed the key store just now: nothing was rotated; run this again")
            written[:] = [needing(new, here, wanted.from_version)]
            return written[0]

        stored = store(self._keys.provider, with_new_key)
        if stored.versions() != written[0].versions():
            raise RotationError("the key store did not return the key that was written to it: nothing was rotated")
        return stored

    def through(self, work: Work) -> RotationReport:
        """Rotate, sweep and prove; return what came of it."""
        before = self._sizes()
        started = time.perf_counter()
        work.rotate()
        open_writers = work.sweep()
        seconds = time.perf_counter() - started
        after = self._sizes()
        verified = work.prove()
        wanted, tally = self._preflight.action, self._tally
        self._keys.forget()
        remaining = persistently(
            self._engine,
            lambda connection: _remaining(connection, self._preflight.tables, wanted.to_version),
            what="the count of what remains",
            is_stopping=work.is_stopping,
        )
        return RotationReport(
            from_version=wanted.from_version,
            to_version=wanted.to_version,
            rows=tally.rows,
            seconds=seconds,
            quarantined=len(tally.quarantined),
            remaining=remaining,
            open_writers=open_writers,
            verified=verified,
            interrupted=work.is_stopping(),
            table_growth=after[0] / before[0] if before[0] else 1.0,
            index_growth=after[1] / before[1] if before[1] else 1.0,
            hot_ratio=tally.hot_rows / tally.counted_rows if tally.counted_rows else None,
            gaps=self._preflight.gaps,
            reasons=tally.reasons(),
            waits_for=work.waits_for,
        )

    def journal(self) -> Journal:
        """Return what each heartbeat writes down: rows, how many there are, and their rate since the last heartbeat."""
        last = [time.monotonic(), 0.0]

        def entry() -> dict[str, Any]:
            now, rows = time.monotonic(), self._tally.rows
            rate = (rows - last[1]) / max(now - last[0], 1e-3)
            last[:] = [now, rows]
            done = self._lease.rows_before + rows
            return {"rows": done, "rows_total": self._lease.rows_before + self._tally.total, "rows_per_second": rate}

        return entry

    def _sizes(self) -> tuple[int, int]:
        sizes = persistently(
            self._engine,
            lambda connection: [each.sizes(connection) for each in self._relations],
            what="a look at the tables",
        )
        return sum(each[0] for each in sizes), sum(each[1] for each in sizes)


def _remaining(connection: Connection, tables: list[EncryptedTable], version: int) -> int:
    """Count the rows under another version than this one."""
    return sum(_count(connection, each, other_than=version) for each in tables)


def _count(
    connection: Connection, table: EncryptedTable, *, version: int | None = None, other_than: int | None = None
) -> int:
    see_all_rows(connection)
    if version is None:
        condition: ColumnElement[bool] = or_(table.version != other_than, table.has_no_version())
    else:
        condition = table.version == version
    count = select(func.count()).select_from(table.table).where(condition)
    return int(execute(connection, count, table=table.name).scalar_one())
