"""One batch: a short transaction behind the lease's fence, tried again where that may help, halved where a row stops it.

Owns what becomes of every failure of a batch. Nothing here decides which rows come next.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert

from voiceassist_db.errors import (
    ConstraintError,
    DatabaseError,
    DecryptionError,
    DuplicateError,
    TransactionConflictError,
    VoiceAssistDBError,
)
from voiceassist_db.execution import execute
from voiceassist_db.models import KeyRotationFailureRow, table_of
from voiceassist_db.pgcrypto.codec import row_id
from voiceassist_db.prepared import Prepared
from voiceassist_db.rotation.lease import Lease, commit_durably
from voiceassist_db.rotation.relations import Relation
from voiceassist_db.rotation.schedule import SAMPLE_PAGES, spread
from voiceassist_db.rotation.statements import Key, Part, Statements
from voiceassist_db.rotation.transactions import AWAY, AWAY_OR_BUSY, persistently
from voiceassist_db.triggers import CHANGES_UPDATES

LOCK_TIMEOUT_MS: Final = 100
"""How long a batch waits for one row. Well below PostgreSQL's deadlock_timeout of 1 s, so that of a deadlock it is the rotation
that gives way, and not the application."""

SLOW_BATCH_S: Final = 0.7
"""A batch that takes longer could still meet an application's deadlock check in its wait for a row: the next one does not wait,
which costs about 4 %."""

SWEEP_LOCK_TIMEOUT_MS: Final = 2000

_FAILURES: Final = table_of(KeyRotationFailureRow)
_UPDATED: Final = Prepared(
    text(
        f"""
        SELECT pg_catalog.pg_stat_get_xact_tuples_updated(CAST(:oid AS pg_catalog.oid)) AS rows,
               pg_catalog.pg_stat_get_xact_tuples_hot_updated(CAST(:oid AS pg_catalog.oid)) AS hot_rows,
               CAST(CAST(pg_catalog.pg_current_xact_id() AS pg_catalog.text) AS pg_catalog.int8) AS xid,
               EXISTS (SELECT FROM pg_catalog.pg_trigger t
                       WHERE t.tgrelid OPERATOR(pg_catalog.=) CAST(:oid AS pg_catalog.oid) AND {CHANGES_UPDATES}) AS has_triggers
        """  # noqa: S608  # of constants
    ).columns(rows=BigInteger, hot_rows=BigInteger, xid=BigInteger, has_triggers=Boolean),
    table="pg_stat_xact_user_tables",
)
"""Of the counts, only their difference within a transaction means anything, and only where the server counts (``track_counts``)."""

_ROW_FAILURES: Final = ("22", "23", "39", "54")
"""Classes of SQLSTATE that speak of a row: data, constraint, external routine (pgcrypto), program limit."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Tally:
    """What all workers of a run have done together; safe for threads.

    Attributes:
        total: Rows that there were to re-encrypt.
        rows: Rows re-encrypted, as far as the server acknowledged them.
        hot_rows: How many of them stayed on their page, of those that were counted.
        counted_rows: How many were counted.
        last_xid: The newest committed transaction of those that re-encrypted rows; 0 if there is none.
        quarantined: The rows that were left as they are, by table and row id, and why.
        note: Who or what holds the run back.
    """

    total: int = 0
    rows: int = 0
    hot_rows: int = 0
    counted_rows: int = 0
    last_xid: int = 0
    quarantined: dict[tuple[str, str], str] = field(default_factory=dict)
    note: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, rows: int, hot_rows: int | None = None, *, xid: int = 0) -> None:
        """Count a batch that is committed, by the number of its transaction."""
        with self._lock:
            if rows:
                self.last_xid = max(self.last_xid, xid)
            self.rows += rows
            if hot_rows is not None:
                self.hot_rows += min(hot_rows, rows)
                self.counted_rows += rows

    def quarantine(self, table: str, row: str, reason: str) -> None:
        """Count a row that is left as it is."""
        with self._lock:
            self.quarantined[table, row] = reason

    def reasons(self) -> dict[str, int]:
        """Return why rows were left as they are, and how many for each reason."""
        with self._lock:
            return dict(Counter(self.quarantined.values()))


class Batches:
    """Runs the batches of one relation.

    Args:
        engine: An engine whose connections may receive keys.
        lease: The lease of the run.
        relation: Where the rows are.
        statements: Its statements.
        tally: What the run counts.
        is_stopping: Says whether the run shall end; then nothing is tried again.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lease: Lease,
        relation: Relation,
        statements: Statements,
        tally: Tally,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._relation = relation
        self._statements = statements
        self._tally = tally
        self._is_stopping = is_stopping
        self._is_slow = False
        self._is_guarded = False
        self._looks_again = False

    def spread(self, group: Sequence[Part]) -> list[Part]:
        """Return the parts of a group with the rows of each page spread evenly over the passes."""
        sample = Part(group[0].first, min(group[0].end, group[0].first + SAMPLE_PAGES))
        numbers = spread(self._read(partial(self._statements.numbers, part=sample)), group[0].passes)
        return [replace(part, numbers=numbers) for part in group]

    def rotate(self, part: Part, *, nap_share: float = 0.0) -> tuple[int, int | None, bool]:
        """Re-encrypt a part.

        Args:
            part: Which rows.
            nap_share: As for ``Statements.reencrypt``.

        Returns:
            Rows re-encrypted, how many of them stayed on their page (None: unknown), and whether all of it went as one batch.

        Raises:
            LeaseLostError: Another process has the lease.
            DatabaseError: It went on failing, and not because of a row.
        """
        statements = self._statements
        if self._looks_again:
            return self.rotate_given(self._read(partial(statements.old_of, part=part))), None, False
        # Waiting for a row means that others wait for all rows of the batch: what is held is left for the sweep.
        for skip_locked in (True,) if self._is_slow else (False, True):
            try:
                started = time.perf_counter()
                reencrypt = partial(statements.reencrypt, part=part, skip_locked=skip_locked, nap_share=nap_share)
                rows, hot = self._counted(reencrypt)
                self._is_slow = time.perf_counter() - started > SLOW_BATCH_S
            except TransactionConflictError:
                continue
            except VoiceAssistDBError as error:
                if not is_of_a_row(error):
                    raise
                break
            return rows, hot, True
        if part.pages > 1:
            one, other = (self.rotate(half) for half in part.halves())
            return one[0] + other[0], None, False
        keys = self._read(lambda connection: statements.old_of(connection, part))
        return self.rotate_given(keys), None, False

    def rotate_given(self, keys: Sequence[Key], *, waits: bool = False) -> int:
        """Re-encrypt rows by primary key, halving them until one that cannot be read stands alone and is put down.

        Args:
            keys: The rows.
            waits: Wait for rows that others hold, instead of leaving them.

        Returns:
            Rows re-encrypted.
        """
        if not keys or self._is_stopping():
            return 0
        try:
            of, looks_again = self._statements, self._looks_again
            reencrypt = of.reencrypt_looking_again if looks_again else of.reencrypt_given
            rows, _ = self._counted(
                partial(reencrypt, keys=keys, skip_locked=not waits),
                lock_timeout_ms=SWEEP_LOCK_TIMEOUT_MS if waits else LOCK_TIMEOUT_MS,
                looks_again=looks_again,
            )
        except TransactionConflictError:
            if len(keys) == 1:
                return 0
        except VoiceAssistDBError as error:
            if not is_of_a_row(error):
                raise
            if len(keys) == 1:
                self._quarantine(keys[0], error)
                return 0
        else:
            return rows
        middle = len(keys) // 2
        return self.rotate_given(keys[:middle], waits=waits) + self.rotate_given(keys[middle:], waits=waits)

    def prove(self, part: Part) -> tuple[int, int]:
        """Open every value of a window's rows under the current version.

        Returns:
            Rows read, and how many of them cannot be trusted.
        """
        statements = self._statements
        try:
            return self._read(lambda connection: statements.prove(connection, part))
        except VoiceAssistDBError as error:
            if not is_of_a_row(error):
                raise
        if part.pages > 1:
            one, other = (self.prove(half) for half in part.halves())
            return one[0] + other[0], one[1] + other[1]
        return self._prove_given(self._read(lambda connection: statements.current_of(connection, part)))

    def _prove_given(self, keys: Sequence[Key]) -> tuple[int, int]:
        if not keys:
            return 0, 0
        try:
            return self._read(lambda connection: self._statements.prove_given(connection, keys))
        except VoiceAssistDBError as error:
            if not is_of_a_row(error):
                raise
            if len(keys) == 1:
                return 1, 1
        middle = len(keys) // 2
        one, other = self._prove_given(keys[:middle]), self._prove_given(keys[middle:])
        return one[0] + other[0], one[1] + other[1]

    def _counted(
        self, work: Callable[..., int], *, lock_timeout_ms: int = LOCK_TIMEOUT_MS, looks_again: bool = False
    ) -> tuple[int, int | None]:
        """Run a batch that re-encrypts, count it, and return its rows and how many stayed on their page."""

        def batch(connection: Connection) -> tuple[int, int, int, int]:
            before = _UPDATED.rows(connection, {"oid": self._relation.oid})[0]
            self._is_guarded = self._is_guarded or before[3]
            rows = work(connection, is_guarded=self._is_guarded)
            after = _UPDATED.rows(connection, {"oid": self._relation.oid})[0]
            # After the UPDATE, whose lock keeps other transactions from adding a trigger.
            if after[3] and not self._is_guarded:
                self._is_guarded = True
                raise TransactionConflictError(
                    f"{self._relation.table.name} has triggers: the batch is done again, guarded"
                )
            updated = after[0] - before[0]
            # A trigger changed rows again, by a statement of its own.
            if updated > rows and not looks_again:
                self._looks_again = True
                raise TransactionConflictError(
                    f"{self._relation.table.name} has triggers: the batch is done again, with a look at its rows"
                )
            return rows, updated, after[1] - before[1], after[2]

        rows, updated, hot_rows, xid = self._run(batch, lock_timeout_ms, AWAY)
        hot = hot_rows if updated == rows else None
        self._tally.add(rows, hot, xid=xid)
        return rows, hot

    def _read(self, work: Callable[[Connection], Result]) -> Result:
        return self._run(work, SWEEP_LOCK_TIMEOUT_MS, AWAY_OR_BUSY)

    def _run(
        self, work: Callable[[Connection], Result], lock_timeout_ms: int, retried: tuple[type[DatabaseError], ...]
    ) -> Result:
        """Run one transaction behind the fence."""

        def fenced(connection: Connection) -> Result:
            self._lease.fence(connection, lock_timeout_ms=lock_timeout_ms)
            return work(connection)

        what = f"a batch of {self._relation.table.name}"
        return persistently(
            self._engine,
            fenced,
            what=what,
            retried=retried,
            oid=self._relation.oid,
            is_stopping=self._is_stopping,
        )

    def _quarantine(self, key: Key, error: VoiceAssistDBError) -> None:
        table, row = self._relation.declared_name, row_id(key)
        sqlstate = getattr(error, "sqlstate", None)
        self._read(lambda connection: put_down(connection, self._lease.run, table, row, sqlstate))
        self._tally.quarantine(table, row, reason_of(error, table))


def reason_of(error: VoiceAssistDBError, table: str) -> str:
    """Say why a row was left as it is: a table that refuses it is no damage of the row."""
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, ConstraintError):
        who = f"the constraint {error.constraint}" if error.constraint else "a trigger"
        return f"were refused by {who} of {table} (SQLSTATE {sqlstate}), which is to be changed or dropped"
    if isinstance(error, DuplicateError):
        return (
            f"of {table} have a value that another row has in a unique field (SQLSTATE 23505), which is to be corrected"
        )
    cause = "" if sqlstate is None else f" (SQLSTATE {sqlstate})"
    return f"of {table} could not be read{cause}, and are to be repaired or restored"


def put_down(connection: Connection, run: UUID, table: str, row: str, sqlstate: str | None) -> None:
    """Record a row that could not be read: where it is and how it failed, never what it holds. The caller commits."""
    commit_durably(connection)
    values = {"rotation": run, "table_name": table, "row_id": row, "sqlstate": sqlstate or "?????"}
    execute(connection, insert(_FAILURES).values(values).on_conflict_do_nothing(), table=_FAILURES.name)


def is_of_a_row(error: VoiceAssistDBError) -> bool:
    """Say whether a statement failed because of what a row holds, so that the others can be done without it."""
    if isinstance(error, DecryptionError | ConstraintError):
        return True
    sqlstate = error.sqlstate if isinstance(error, DatabaseError) else None
    return sqlstate is not None and sqlstate.startswith(_ROW_FAILURES)
