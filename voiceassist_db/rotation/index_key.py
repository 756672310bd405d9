"""Rotation of the blind-index key: new tokens for every searchable value, while searches and writes go on.

A value without a token, because it was adopted or somebody removed it, gets one where it can: a value that has no form to be searched
by, or that another row has where each may stand only once, stays without.

Tokens are made in Python, so here, and only here, a rotation reads plaintext: neither the index key nor a value reaches SQL.
Owns the order: key store, registry, tokens until a whole pass finds none to change, registry, key store. Meanwhile searches look
for both tokens, and writers write the new one (``repositories``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine

from voiceassist_db.catalogue import encrypted_tables
from voiceassist_db.decision import (
    NO_INDEX_ROTATION,
    Action,
    Refusal,
    Remedy,
    Run,
    Step,
    decide_index,
    nothing_to_resume,
)
from voiceassist_db.errors import (
    DuplicateError,
    MissingKeyError,
    NothingToDoError,
    RotationError,
    RowError,
    TransactionConflictError,
    TriggerError,
)
from voiceassist_db.execution import require_writable, see_all_rows, translated
from voiceassist_db.keyring import KeyringSource, index_restoring, index_state, register, retire_index_keys
from voiceassist_db.keyring.listing import store
from voiceassist_db.keyring.members import Here, done_with_index, index_needed_by, joined
from voiceassist_db.keys import Key, KeyProvider, KeySet
from voiceassist_db.models import EncryptedTable, KeyRotationRow, table_of
from voiceassist_db.pgcrypto import codec
from voiceassist_db.pgcrypto.expressions import UNNAMED
from voiceassist_db.rotation.batches import LOCK_TIMEOUT_MS, Tally, put_down, reason_of
from voiceassist_db.rotation.lease import Lease, close_superseded, commit_durably
from voiceassist_db.rotation.relations import (
    relations_of,
    require_all_rows,
    require_local_tables,
    require_safe_connection,
)
from voiceassist_db.rotation.report import OnProgress, Pace, Progress
from voiceassist_db.rotation.throttle import Throttle, require_visible_replicas
from voiceassist_db.rotation.tokens import Page, PrimaryKey, TokenTable, indexed, require_normalisers
from voiceassist_db.rotation.work import writers
from voiceassist_db.waits import holders

MAX_PASSES: Final = 20
"""Whole passes before it is given up: somebody goes on writing tokens under the older key."""

NO_NAME: Final = "of {table} have a primary key that Python cannot hold (SQLSTATE 22008), which is to be corrected"

_RUNS: Final = table_of(KeyRotationRow)


@dataclass(frozen=True, slots=True)
class IndexRotationReport:
    """The result of one run.

    Attributes:
        rows: Rows whose tokens were renewed.
        seconds: How long that took.
        quarantined: Rows that could not be read, or whose value another row has where each may stand only once.
        remaining: Rows whose tokens were still changing in the last pass, the quarantined ones among them.
        interrupted: Whether the run was asked to stop before its end.
        reasons: Why rows were quarantined, and how many for each reason.
        waits_for: Who may still write under the older key, or has rows locked.
        needed_by: Names of the other databases for which the older key stays in the key store, where this one is done.
    """

    rows: int
    seconds: float
    quarantined: int
    remaining: int
    interrupted: bool
    reasons: Mapping[str, int] = field(default_factory=dict)
    waits_for: Sequence[str] = ()
    needed_by: Sequence[str] = ()

    @property
    def rows_per_second(self) -> float:
        """Rows renewed per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def done(self) -> bool:
        """Whether no token of the older key is left here, and the key is retired."""
        return self.remaining == 0 and not self.interrupted

    @property
    def done_but_quarantined(self) -> bool:
        """Whether all is done but the rows that could not be."""
        return not self.interrupted and 0 < self.quarantined == self.remaining


def rotate_index_key(
    engine: Engine,
    keys: KeyringSource,
    *,
    pace: Pace | None = None,
    resume_only: bool = False,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> IndexRotationReport:
    """Give every blind index a new key, or finish the rotation that is unfinished. Searches and writers go on meanwhile.

    The older key is retired at the end, without a grace period: tokens can always be made again from the values.

    Args:
        engine: An engine whose connections may receive keys.
        keys: The keys; their provider is written to.
        pace: How hard to work; one worker, whatever it says, for the tokens are made in this process.
        resume_only: Begin no new rotation.
        stop: When it is set, the run ends after the batch that is under way, and can be continued.
        on_progress: Called with where it stands.

    Raises:
        NothingToDoError: ``resume_only`` found nothing to continue, or no table has a blind index.
        RotationActiveError: Another process is rotating this database's keys.
        RotationError: Other databases need the key before this one, or something else is in the way.
        MissingKeyError: The key store holds no index key.
        ConfigurationError: This process lacks a normaliser of the application's.
    """
    pace = pace or Pace()
    with translated(), engine.connect() as connection:
        require_writable(connection)
        require_local_tables(connection)
        require_safe_connection(connection)
        tables = [each for each in encrypted_tables(connection) if indexed(each)]
        require_normalisers(tables)
        require_all_rows(connection, tables)
        stored = keys.provider.fetch()
        is_adopted = keys.keyring(connection).has_direct
        action = _decided(connection, keys.provider, stored, tables, resume_only=resume_only)
        require_visible_replicas(connection, pace)
    if action.step is Step.NOTHING:
        close_superseded(engine, action.supersedes)
        raise NothingToDoError(nothing_to_resume(action, NO_INDEX_ROTATION))
    with Lease.take(engine, Run("index", action.from_version, action.to_version), action.supersedes) as lease:
        finished = False
        work = _Work(engine, keys, lease, pace, stop or threading.Event(), on_progress)
        lease.keep(work.journal)
        try:
            here = Here.known(engine)
            _begin(engine, keys, lease, here, stored)
            report = work.through([TokenTable(each, is_adopted=is_adopted) for each in tables])
            if report.done:
                report = replace(report, needed_by=_end(engine, keys, lease, here))
            finished = report.done
        finally:
            lease.release(finished=finished)
        return report


def _decided(
    connection: Connection,
    provider: KeyProvider,
    stored: KeySet,
    tables: Sequence[EncryptedTable],
    *,
    resume_only: bool,
) -> Action:
    action = decide_index(index_state(connection, provider, stored), resume_only=resume_only)
    if isinstance(action, Refusal):
        if action.remedy is Remedy.RESTORE:
            raise RotationError(f"{action.happened} {index_restoring(provider, stored)}")
        raise MissingKeyError(action.happened) if action.remedy is Remedy.INIT_KEYS else RotationError(action.happened)
    if not tables and not stored.previous_index_key:  # else another database waits for this one
        raise NothingToDoError("no table has a blind index: nothing to do")
    return action


def _begin(engine: Engine, keys: KeyringSource, lease: Lease, here: Here, seen: KeySet) -> None:
    """Bring the new key into the store and then into the registry, unless that was done; ``seen`` is what it was decided for."""
    pair = (seen.previous_index_key or seen.index_key, seen.index_key)
    written: list[KeySet] = []

    def with_new_key(held: KeySet) -> KeySet:
        new = held
        if held.previous_index_key is None and seen.previous_index_key is None and held.index_key == seen.index_key:
            new = replace(held, index_key=Key.generate(), previous_index_key=held.index_key)
        begins = seen.previous_index_key is None  # then another database may have made the new key just now
        if new.previous_index_key != pair[0] or not (begins or new.index_key == pair[1]):
            raise RotationError("another process changed the key store just now: nothing was changed; run this again")
        written[:] = [joined(new, here)]
        return written[0]

    stored = store(keys.provider, with_new_key)
    if stored.index_key != written[0].index_key:
        raise RotationError("the key store did not return the index key that was written to it: nothing was changed")
    with translated(), engine.begin() as connection:
        lease.fence(connection)
        commit_durably(connection)  # before any token is of the new key
        register(connection, stored)
    keys.forget()


def _end(engine: Engine, keys: KeyringSource, lease: Lease, here: Here) -> tuple[str, ...]:
    """Let the registry, and then the store, forget the older key, which no token is of any more; return who else needs it."""
    stored = keys.provider.fetch()
    current = stored.index_key
    assert current is not None  # it was when the run began, and is written by check-and-set only
    with translated(), engine.begin() as connection:
        lease.fence(connection)
        commit_durably(connection)
        retire_index_keys(connection, but=current)

    def without(held: KeySet) -> KeySet:
        if held.index_key != current:
            raise RotationError("another process changed the key store just now: run this again")
        return done_with_index(held, here) if held.previous_index_key else held

    left = store(keys.provider, without)
    keys.forget()
    return index_needed_by(left, here)


class _Work:
    """Walks every table until a whole pass changes nothing."""

    def __init__(  # noqa: PLR0917  # private, and called once
        self,
        engine: Engine,
        keys: KeyringSource,
        lease: Lease,
        pace: Pace,
        stop: threading.Event,
        on_progress: OnProgress | None,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._lease = lease
        self._pace = pace
        self._stop = stop
        self._on_progress = on_progress
        self._tally = Tally()
        self._throttle = Throttle(engine, pace, is_stopping=stop.is_set, on_hold=self._held)
        self._total = 0

    def _held(self, note: str) -> None:
        self._tally.note = note

    def journal(self) -> dict[str, Any]:
        """Return what each heartbeat writes down."""
        done = self._lease.rows_before + self._tally.rows
        return {"rows": done, "rows_total": max(self._total, done)}

    def through(self, tables: Sequence[TokenTable]) -> IndexRotationReport:
        """Renew tokens until a whole pass finds none to renew, and nobody is left who may have written an older one."""
        self._throttle.begin()
        started = time.perf_counter()
        give_up = started + self._pace.patience_s
        left = 0
        for number in range(MAX_PASSES):
            if number:
                self._lease.settle(is_stopping=self._stop.is_set)
            before = [self._writers(each) for each in tables]
            changed = sum(self._pass(each, number) for each in tables)
            open_ = sum(len(one & self._writers(each)) for one, each in zip(before, tables, strict=True))
            left = changed + open_
            if self._stop.is_set() or (not left and number) or (open_ and time.perf_counter() > give_up):
                break
        remaining = left + len(self._tally.quarantined)
        seconds = time.perf_counter() - started
        interrupted = self._stop.is_set()
        return IndexRotationReport(
            self._tally.rows,
            seconds,
            len(self._tally.quarantined),
            remaining,
            interrupted,
            self._tally.reasons(),
            self._holders(tables) if left else (),
        )

    def _holders(self, tables: Sequence[TokenTable]) -> list[str]:
        with translated(), self._engine.begin() as connection:
            parts = [part.oid for each in tables for part in relations_of(connection, each.table)]
            return sorted({str(each) for oid in parts for each in holders(connection, oid)})

    def _writers(self, table: TokenTable) -> set[str]:
        with translated(), self._engine.begin() as connection:
            return {each for part in relations_of(connection, table.table) for each in writers(connection, part)}

    def _pass(self, table: TokenTable, number: int) -> int:
        changed = rows = 0
        for page in self._pages(table):
            if self._stop.is_set():
                break
            started = time.perf_counter()
            for key in page.unnamed:
                self._quarantine(table, key, UNNAMED, NO_NAME.format(table=table.name))
            # Where each value may stand only once, one that has a token keeps it, and is renewed before others get one.
            renewed = self._renew(table, page.named, fills_unique=number > 0)
            seconds = time.perf_counter() - started
            changed += renewed
            keys = len(page.named) + len(page.unnamed)
            rows += keys
            self._tally.add(renewed)
            if self._on_progress is not None:
                phase = "renewing tokens" if number == 0 else "looking again"
                self._on_progress(Progress(phase, rows, rows, self._tally.note))
            self._throttle.after(keys, seconds=seconds)
        return changed

    def _pages(self, table: TokenTable) -> Iterator[Page]:
        after: PrimaryKey | None = None
        while True:
            with translated(), self._engine.begin() as connection:
                see_all_rows(connection)
                page = table.page(connection, after)
            if page is None:
                return
            yield page
            after = page.last

    def _renew(self, table: TokenTable, keys: Sequence[PrimaryKey], *, fills_unique: bool) -> int:
        """Renew the tokens of these rows together; where one stands in the way, in halves, until it stands alone.

        Args:
            table: Their table.
            keys: Their primary keys.
            fills_unique: Whether values that have no token get one where no other row may have the same.
        """
        if not keys:
            return 0
        try:
            with translated(), self._engine.begin() as connection:
                self._lease.fence(connection, lock_timeout_ms=LOCK_TIMEOUT_MS)
                keyring = self._keys.keyring(connection)
                return table.renew(connection, keyring, keys, fills_unique=fills_unique)
        except TransactionConflictError:
            if len(keys) == 1:
                return 1  # somebody holds it: it counts as not done, and the next pass comes back to it
        except TriggerError:
            raise  # of the table, and not of a row
        except RowError as error:
            if len(keys) == 1 and fills_unique and isinstance(error, DuplicateError):
                return self._renew(table, keys, fills_unique=False)
            if len(keys) == 1:
                sqlstate = "23505" if isinstance(error, DuplicateError) else error.sqlstate
                self._quarantine(table, keys[0], sqlstate, reason_of(error, table.name))
                return 0
        middle = len(keys) // 2
        one = self._renew(table, keys[:middle], fills_unique=fills_unique)
        return one + self._renew(table, keys[middle:], fills_unique=fills_unique)

    def _quarantine(self, table: TokenTable, key: PrimaryKey, sqlstate: str | None, reason: str) -> None:
        row = codec.row_id(key)
        with translated(), self._engine.begin() as connection:
            self._lease.fence(connection)
            put_down(connection, self._lease.run, table.name, row, sqlstate)
        self._tally.quarantine(table.name, row, reason)
