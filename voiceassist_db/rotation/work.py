"""The work of a run between its first step and its result: passes, sweep, proof, each over all relations.

Owns the workers and what they share. Changes neither the key store nor the registry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from voiceassist_db.errors import SchemaNotMigratedError, VoiceAssistDBError
from voiceassist_db.execution import execute, see_all_rows
from voiceassist_db.keyring import Keyring
from voiceassist_db.models import EncryptedTable
from voiceassist_db.moments import Moment
from voiceassist_db.pgcrypto.codec import row_id
from voiceassist_db.rotation.batches import Batches, Tally, is_of_a_row
from voiceassist_db.rotation.horizon import Horizon
from voiceassist_db.rotation.lease import Lease
from voiceassist_db.rotation.relations import Relation, relations_of
from voiceassist_db.rotation.report import OnProgress, Pace, Progress
from voiceassist_db.rotation.schedule import Overlaps, Schedule, first_passes, turns
from voiceassist_db.rotation.statements import Key, Part, Statements
from voiceassist_db.rotation.throttle import Throttle
from voiceassist_db.rotation.transactions import persistently
from voiceassist_db.waits import holders

SWEEP_ROWS: Final = 1000
"""Rows that a sweep takes at once; an unfinished rotation that has no more than these left in a relation goes straight to it."""

SWEEP_ROUNDS_BEFORE_WAITING: Final = 3
SWEEP_LIMIT: Final = 10
"""Times the patience that a sweep lasts at most, though it makes progress: somebody may go on adding rows for ever."""

PROOF_ROUNDS: Final = 3
"""Times that relations of which rows were missed are read before the proof fails."""

PROOF_PAGES: Final = 512
LIMITED_PROOF_PAGES: Final = 16
"""The same of a run that has a limit: a few hundred rows, then it waits."""

NAME_EVERY_S: Final = 2.0
"""How often a wait of the sweep asks whom it waits for."""

POLL_S: Final = 0.1
BATCHES_PER_SECOND: Final = 20
"""Under a limit of rows per second, their rows are spread over at least so many batches, which others hardly feel."""

_WRITERS: Final = text(
    """
    SELECT l.virtualtransaction FROM pg_catalog.pg_locks l
    WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.relation OPERATOR(pg_catalog.=) CAST(:oid AS pg_catalog.oid)
      AND l.mode OPERATOR(pg_catalog.=) 'RowExclusiveLock' AND l.granted
      AND l.database OPERATOR(pg_catalog.=) (
          SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
      AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
    """
)


class Work:
    """The passes, the sweep and the proof of one run.

    Args:
        engine: An engine whose connections may receive keys.
        lease: The lease of the run.
        keyring: The two keys.
        tables: What is rotated.
        relations: Where the rows are.
        pace: How hard to work.
        tally: What the run counts.
        is_resumed: Whether an earlier run has done a part.
        stop: Set when the run shall end after the batches that are under way.
        on_progress: Called in the calling thread.
    """

    def __init__(
        self,
        engine: Engine,
        lease: Lease,
        keyring: Keyring,
        tables: Sequence[EncryptedTable],
        relations: Sequence[Relation],
        *,
        pace: Pace,
        tally: Tally,
        is_resumed: bool,
        stop: threading.Event,
        on_progress: OnProgress | None,
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._tables = tables
        self._keyring = keyring
        self._relations = relations
        self._pace = pace
        self._tally = tally
        self._is_resumed = is_resumed
        self._stop = stop
        self._failed = threading.Event()
        self._on_progress = on_progress
        self._statements = {each: Statements(each.table, keyring) for each in relations}
        self._batches = {each: self._batches_of(each) for each in relations}
        self._overlaps = Overlaps()
        self._named_at = 0.0
        self._names = ""
        self._waits_for: set[str] = set()
        self.throttle = Throttle(engine, pace, is_stopping=self.is_stopping, on_hold=self._held)
        self._horizon = Horizon(engine, patience_s=pace.patience_s, is_stopping=self.is_stopping, on_hold=self._held)

    def _batches_of(self, relation: Relation) -> Batches:
        statements = self._statements.get(relation) or Statements(relation.table, self._keyring)
        return Batches(
            self._engine,
            lease=self._lease,
            relation=relation,
            statements=statements,
            tally=self._tally,
            is_stopping=self.is_stopping,
        )

    def is_stopping(self) -> bool:
        """Say whether the run shall end."""
        return self._stop.is_set() or self._failed.is_set()

    @property
    def waits_for(self) -> list[str]:
        """Whom the sweep waited for in vain."""
        return sorted(self._waits_for)

    def _held(self, note: str) -> None:
        self._tally.note = note

    # --- passes --------------------------------------------------------------------------------------------------------

    def rotate(self) -> None:
        """Re-encrypt every relation, window by window, with all workers."""
        self.throttle.begin()
        counts = self._ask(lambda connection: {each: of.count(connection) for each, of in self._statements.items()})
        self._tally.total = sum(old for _, old in counts.values())
        for relation, (rows, old) in counts.items():
            if old == 0 or (self._is_resumed and old <= SWEEP_ROWS):
                continue
            pages = self._ask(relation.pages)
            size, _ = self._ask(relation.sizes)
            limit = self._pace.max_rows_per_second
            schedule = Schedule(
                pages,
                rows=rows,
                size=size,
                passes=first_passes(relation.fillfactor),
                target_batch_s=self._pace.target_batch_s,
                max_batch_rows=limit and limit / BATCHES_PER_SECOND / self._pace.workers,
                workers=self._pace.workers,
            )
            self._together("rotating", partial(self._rotate_groups, relation, schedule))
        self._held("")

    def _rotate_groups(self, relation: Relation, schedule: Schedule) -> Iterator[None]:
        batches = self._batches[relation]
        for group in schedule.groups():
            committed: dict[int, tuple[float, int]] = {}
            for part in batches.spread(group):
                is_held = False
                if part.first in committed:
                    moment, xid = committed[part.first]
                    self._overlaps.wait_for_earlier(moment, is_stopping=self.is_stopping)
                    is_held = self._horizon.wait_for(xid)
                    if self.is_stopping():
                        return
                started = time.monotonic()
                with self._overlaps.batch():
                    rows, hot_rows, whole = batches.rotate(part, nap_share=self.throttle.nap_share)
                committed[part.first] = time.monotonic(), self._tally.last_xid
                seconds = time.monotonic() - started
                if whole:
                    schedule.learn(part, rows=rows, hot_rows=hot_rows, seconds=seconds, is_held=is_held)
                else:
                    schedule.shrink()
                self.throttle.after(rows, seconds=seconds)
                yield

    # --- sweep ---------------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Re-encrypt what is left, row by row where need be, until a look at everything finds nothing.

        Returns:
            How many transactions of others are still open that may yet add rows under the older version.
        """
        self._lease.settle(is_stopping=self.is_stopping)
        return sum(self._sweep_relation(each) for each in self._relations)

    def _sweep_relation(self, relation: Relation) -> int:
        patient_until = time.monotonic() + self._pace.patience_s
        give_up = time.monotonic() + self._pace.patience_s * SWEEP_LIMIT
        batches = self._batches[relation]
        open_writers: set[str] | None = None
        rounds = 0
        while not self.is_stopping():
            # Asked before the look: whoever began to write after it is seen by the next one.
            writing = self._ask(lambda connection: writers(connection, relation))
            left = self._left_in(relation)
            keys = [key for _, key in left]
            done = 0
            for turn in turns(left, first_passes(relation.fillfactor)):
                if done:
                    self._horizon.wait_for(self._tally.last_xid)
                done += batches.rotate_given(turn)
            if keys and not done and rounds >= SWEEP_ROUNDS_BEFORE_WAITING:
                # One alone: who waits while it holds other rows may be in a deadlock, out of which the server may choose the
                # application.
                done = batches.rotate_given([keys[rounds % len(keys)]], waits=True)
            self._show("sweeping")
            if not keys:
                # Nothing to be seen; but a transaction that was writing before may have written under the older version.
                open_writers = writing if open_writers is None else open_writers & writing
                if not open_writers:
                    return 0
            else:
                open_writers = None
            rounds += 1
            now = time.monotonic()
            if done:
                # Before the next look, for what it sees done must stay done.
                self._lease.settle(is_stopping=self.is_stopping)
                patient_until = now + self._pace.patience_s
            if now > min(patient_until, give_up):
                break
            if not done:
                self._held(self._awaited(relation))
                time.sleep(POLL_S)
        self._held("")
        self._waits_for |= self._ask(lambda connection: set(map(str, holders(connection, relation.oid))))
        return len(open_writers or ())

    def _awaited(self, relation: Relation) -> str:
        """Say what the sweep waits for, and whom; asked rarely, as a wait is long."""
        if time.monotonic() > self._named_at + NAME_EVERY_S:
            self._named_at = time.monotonic()
            names = self._ask(lambda connection: [str(each) for each in holders(connection, relation.oid)])
            self._names = f": {'; '.join(names)}" if names else ""
        return f"waiting for rows or transactions of others in {relation.table.name}{self._names}"

    def _left_in(self, relation: Relation) -> list[tuple[int, Key]]:
        quarantined = {row for table, row in self._tally.quarantined if table == relation.declared_name}
        limit = SWEEP_ROWS + len(quarantined)
        rows = self._ask(lambda connection: self._statements[relation].old(connection, limit))
        return [(page, key) for page, key in rows if row_id(key) not in quarantined]

    # --- proof ---------------------------------------------------------------------------------------------------------

    def prove(self) -> bool:
        """Open every value under the new key inside the server; say whether all of them opened and are in their place.

        A row that was there when the proof began must have been read. Rows that others write in the meantime are read at the end,
        in one statement that counts them too. So a partition that is attached in the meantime, or rows that another one moves, are
        read in a further round.
        """
        proven = 0
        relations = self._relations_now()
        for _ in range(PROOF_ROUNDS):
            since = self._ask(Moment.now)
            read, wrong = self._prove_windows(relations, proven)
            proven += sum(read.values())
            if wrong or self.is_stopping():
                return False
            try:
                rows = [self._look_back(each, since) for each in self._tables]
            except VoiceAssistDBError as error:
                if not is_of_a_row(error):
                    raise
                return False
            if any(wrong for _, wrong in rows):
                return False
            unread = {oid for table, _ in rows for oid, (there, _) in table.items() if there > read.get(oid, 0)}
            if not unread:
                proven += sum(written for table, _ in rows for _, written in table.values())
                self._show("verifying", partial(int, proven))
                return not self.is_stopping()
            relations = [each for each in self._relations_now() if each.oid in unread]
        return False

    def _look_back(self, table: EncryptedTable, since: Moment) -> tuple[dict[int, tuple[int, int]], int]:
        statements = Statements(table, self._keyring)
        found: tuple[dict[int, tuple[int, int]], int] = self._ask(
            lambda connection: statements.look_back(connection, since)
        )
        return found

    def _relations_now(self) -> list[Relation]:
        return [part for table in self._tables for part in self._ask(partial(relations_of, table=table))]

    def _prove_windows(self, relations: Sequence[Relation], proven: int) -> tuple[dict[int, int], int]:
        """Open the values of relations, with all workers.

        Args:
            relations: The relations.
            proven: Rows that were read before, to show them.

        Returns:
            Rows read, by the relation's number in the catalogue; and how many of all cannot be trusted.
        """
        read: dict[int, int] = dict.fromkeys((each.oid for each in relations), 0)
        wrong = 0
        lock = threading.Lock()

        def prove_windows(relation: Relation, windows: Iterator[Part]) -> Iterator[None]:
            nonlocal wrong
            batches = self._batches_of(relation)
            while True:
                with lock:
                    window = next(windows, None)
                if window is None:
                    return
                started = time.perf_counter()
                try:
                    rows, failed = batches.prove(window)
                except SchemaNotMigratedError:
                    if any(each.oid == relation.oid for each in self._relations_now()):
                        raise
                    return  # the partition was dropped
                with lock:
                    read[relation.oid] += rows
                    wrong += failed
                self.throttle.keep_rate(rows, seconds=time.perf_counter() - started)
                yield

        for relation in relations:
            pages = self._ask(relation.pages)
            size = LIMITED_PROOF_PAGES if self._pace.max_rows_per_second else PROOF_PAGES
            windows = iter([Part(start, min(start + size, pages)) for start in range(0, pages, size)])
            work = partial(prove_windows, relation, windows)
            self._together("verifying", work, rows=lambda: proven + sum(read.values()))
        return read, wrong

    # --- workers -------------------------------------------------------------------------------------------------------

    def _together(self, phase: str, work: Callable[[], Iterator[None]], rows: Callable[[], int] | None = None) -> None:
        """Run ``work`` in every worker; it yields where it may stop. The first failure stops all, and is raised."""
        stepped = threading.Event()

        def run() -> None:
            try:
                for _ in work():
                    stepped.set()
                    if self.is_stopping():
                        return
            finally:
                stepped.set()

        with ThreadPoolExecutor(self._pace.workers, "voiceassist-db-rotation") as pool:
            running: set[Future[None]] = {pool.submit(run) for _ in range(self._pace.workers)}
            finished: set[Future[None]] = set()
            try:
                while running:
                    stepped.wait(POLL_S)
                    stepped.clear()
                    done, running = wait(running, timeout=0)
                    finished |= done
                    if any(future.exception() for future in done):
                        self._failed.set()
                    self._show(phase, rows)
            finally:
                if running:  # on_progress failed, or the process is interrupted
                    self._failed.set()
        for future in finished:
            future.result()

    def _show(self, phase: str, rows: Callable[[], int] | None = None) -> None:
        if self._on_progress is not None:
            done = rows() if rows else self._tally.rows
            self._on_progress(Progress(phase, done, max(self._tally.total, done), self._tally.note))

    def _ask(self, question: Callable[[Connection], Any]) -> Any:
        def ask(connection: Connection) -> Any:
            see_all_rows(connection)
            return question(connection)

        return persistently(self._engine, ask, what="a look at the tables", is_stopping=self.is_stopping)


def writers(connection: Connection, relation: Relation) -> set[str]:
    """Return the transactions of others that are writing to a relation now, or have in what is not committed yet."""
    rows = execute(connection, _WRITERS, {"oid": relation.oid}, table="pg_locks")
    return {row.virtualtransaction for row in rows}
