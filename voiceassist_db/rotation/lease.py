"""The right to rotate a database's keys: one process at a time, told by a row and not by a session, which poolers share.

Owns the lease's columns in ``key_rotations``: taking it, keeping it alive, and the fence. Every batch passes the fence in its
own transaction, and holds it until it commits; so a process that was silent for too long, and whose rotation another one took
over, commits nothing more.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, Self
from uuid import UUID, uuid4

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Text,
    Uuid,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    update,
)
from uuid_utils.compat import uuid7

from voiceassist_db.decision import Run
from voiceassist_db.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    LeaseLostError,
    RotationActiveError,
    TransactionConflictError,
)
from voiceassist_db.execution import execute, regclass, translated
from voiceassist_db.keyring import IS_OPEN
from voiceassist_db.models import KeyRotationRow, table_of
from voiceassist_db.prepared import Prepared
from voiceassist_db.rotation.transactions import LOCK_NOT_AVAILABLE, persistently, read_committed
from voiceassist_db.waits import named, one_at_a_time

logger = logging.getLogger(__name__)

LEASE_S: Final = 15
"""How long a process may be silent before another one may take its rotation over."""

HEARTBEAT_S: Final = 2.0
APPLICATION: Final = "voiceassist-db rotation"
"""What batches are called in ``pg_stat_activity``."""

TAKE_TIMEOUT_MS: Final = 4000
"""How long to wait for a batch that a process whose lease has ended still holds the fence with."""

_RUNS: Final = table_of(KeyRotationRow)
_UNTIL: Final = func.clock_timestamp() + text(f"interval '{LEASE_S} seconds'")

# jit: compiling takes as long as a batch. synchronous_commit: a batch that a crash undoes is done again, and the run ends with
# a synchronous commit before it says that it is done. idle_in_transaction_session_timeout: a process that is stopped in the
# midst of a batch gives up its locks, and the fence, by itself. application_name: how batches are told from the application's
# transactions, which have the same engine.
_SETTINGS: Final = {
    "application_name": APPLICATION,
    "row_security": "off",
    "synchronous_commit": "off",
    "jit": "off",
    "idle_in_transaction_session_timeout": f"{LEASE_S}s",
}

_COMMIT_HERE: Final = text("SELECT pg_catalog.set_config('synchronous_commit', 'local', true)")
"""So that a heartbeat does not wait for a standby that is missing: the lease would end, and with it a run that can go on."""

_LIMIT_SILENCE: Final = text(f"SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', '{LEASE_S}s', true)")
"""So that a process that stands still in the midst of a heartbeat does not keep the lease's row locked."""

# KEY SHARE: shared with other workers, unhindered by heartbeats, and in conflict with who takes the lease over.
_FENCE: Final = Prepared(
    select(
        _RUNS.c.holder == bindparam("holder", type_=Uuid),
        _RUNS.c.lease_until > func.clock_timestamp(),
        func.set_config(literal_column("'lock_timeout'"), bindparam("lock_timeout", type_=Text), true()),
        *(
            func.set_config(literal_column(f"'{name}'"), literal_column(f"'{value}'"), true())
            for name, value in _SETTINGS.items()
        ),
    )
    .where(_RUNS.c.id == bindparam("run", type_=Uuid))
    .with_for_update(read=True, key_share=True),
    table=_RUNS.name,
)

Journal = Callable[[], dict[str, Any]]
"""What to write down at each heartbeat: values of ``key_rotations`` by column."""


def commit_durably(connection: Connection) -> None:
    """Let this transaction's commit wait until it, and all that was committed before it, is on disk.

    For what a process goes on to rely upon: it may outlive a crash of the server, which undoes what was not on disk yet.
    """
    execute(connection, text("SET LOCAL synchronous_commit = on"), table=_RUNS.name)


def active_run(connection: Connection) -> Row[Any] | None:
    """Return the row of ``key_rotations`` whose lease is held now; None where nobody rotates."""
    held = select(_RUNS).where(_RUNS.c.lease_until > func.clock_timestamp())
    return execute(connection, held, table=_RUNS.name).first()


def close_superseded(engine: Engine, runs: frozenset[Run]) -> None:
    """Close runs that can never be continued; does nothing while any process has a lease."""
    if not runs:
        return
    with translated(), engine.begin() as connection:
        one_at_a_time(connection, _RUNS)
        if active_run(connection) is None:
            _supersede(connection, runs)


def _supersede(connection: Connection, runs: frozenset[Run]) -> None:
    values = {"state": "superseded", "holder": None, "lease_until": None}
    for run in runs:
        closed = update(_RUNS).where(
            _RUNS.c.kind == run.kind,
            _RUNS.c.from_version == run.from_version,
            _RUNS.c.to_version == run.to_version,
            IS_OPEN,
        )
        execute(connection, closed.values(values), table=_RUNS.name)


class Lease:
    """A lease that is held, and kept alive by a thread while the ``with`` block runs."""

    def __init__(self, engine: Engine, run: UUID, holder: UUID, *, rows_before: int) -> None:
        self.run = run
        self.rows_before = rows_before
        self._engine = engine
        self._holder = holder
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._journal: Journal = dict

    @classmethod
    def take(cls, engine: Engine, wanted: Run, supersedes: frozenset[Run] = frozenset()) -> Self:
        """Take the lease of a rotation, its row created where there is none, and close the runs that can never be continued.

        Raises:
            RotationActiveError: Another process holds a lease.
        """
        engine, holder = read_committed(engine), uuid4()
        try:
            with translated(), engine.begin() as connection:
                commit_durably(connection)
                execute(connection, _LIMIT_SILENCE, table=_RUNS.name)
                timeout = text("SELECT pg_catalog.set_config('lock_timeout', :timeout, true)")
                execute(connection, timeout, {"timeout": f"{TAKE_TIMEOUT_MS}ms"}, table=_RUNS.name)
                one_at_a_time(connection, _RUNS)
                if (active := active_run(connection)) and not _has_died_here(active.holder_name):
                    raise _active(active)
                _supersede(connection, supersedes)
                run, rows = _row_of(connection, wanted)
                # Conflicts with the fences of the process that held it before: its last batch is committed, or never.
                lock = select(_RUNS.c.id).where(_RUNS.c.id == run).with_for_update()
                execute(connection, lock, table=_RUNS.name)
                values = {
                    "state": "running",
                    "holder": holder,
                    "holder_name": f"{socket.gethostname()}:{os.getpid()}",
                    "heartbeat_at": func.clock_timestamp(),
                    "lease_until": _UNTIL,
                }
                execute(connection, update(_RUNS).where(_RUNS.c.id == run).values(values), table=_RUNS.name)
        except TransactionConflictError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:  # an administrator cancelled it, or a time limit of the role's
                raise
            with translated(), engine.begin() as connection:
                who = named(connection, regclass(connection, _RUNS))
            raise RotationActiveError(
                "another process begins or ends a rotation of this database right now: try again in a moment, and see "
                f"`voiceassist-db status`.{who}"
            ) from None
        return cls(engine, run, holder, rows_before=rows)

    def fence(self, connection: Connection, *, lock_timeout_ms: int = TAKE_TIMEOUT_MS) -> None:
        """Let this transaction commit only while the lease is held, and fit it for a batch.

        Args:
            connection: A connection in a transaction that has not done anything yet.
            lock_timeout_ms: How long the transaction may wait for a row.

        Raises:
            LeaseLostError: Another process has it.
            DatabaseUnavailableError: It has ended, and nobody took it: the next heartbeat renews it.
        """
        parameters = {"run": self.run, "holder": self._holder, "lock_timeout": f"{lock_timeout_ms}ms"}
        rows = _FENCE.rows(connection, parameters)
        if not rows or not rows[0][0]:
            raise _lost()
        if not rows[0][1]:
            raise DatabaseUnavailableError(
                "the rotation's lease has ended, for its heartbeat did not reach the database"
            )

    def keep(self, journal: Journal) -> None:
        """Begin the heartbeat, which writes down what ``journal`` returns."""
        self._journal = journal
        self._thread = threading.Thread(target=self._beat_until_ended, name="voiceassist-db-heartbeat", daemon=True)
        self._thread.start()

    def settle(self, *, is_stopping: Callable[[], bool]) -> None:
        """Put on disk all that was committed before, so that what is seen from now on cannot be undone by a crash.

        Args:
            is_stopping: Says whether the run shall end; then it is not tried again.

        Raises:
            LeaseLostError: Another process has the lease.
        """

        def beat(connection: Connection) -> None:
            commit_durably(connection)
            if not self._write(connection, self._beat()):
                raise _lost()

        persistently(self._engine, beat, what="the rotation's heartbeat", is_stopping=is_stopping)

    def release(self, *, finished: bool) -> None:
        """Write the result down and give the lease back; does nothing where another process has it.

        An unfinished run may well end because the database is away: then its lease ends by itself.
        """
        try:
            self._release(finished=finished)
        except DatabaseError:
            if finished:
                raise

    def _release(self, *, finished: bool) -> None:
        self._stop()
        values: dict[str, Any] = self._journal() | {
            "state": "finished" if finished else "interrupted",
            "finished_at": func.clock_timestamp() if finished else None,
            "heartbeat_at": func.clock_timestamp(),
            "holder": None,
            "lease_until": None,
        }

        def write(connection: Connection) -> None:
            commit_durably(connection)
            self._write(connection, values)

        persistently(self._engine, write, what="the rotation's result", is_stopping=lambda: not finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, connection: Connection, values: dict[str, Any]) -> int:
        execute(connection, _LIMIT_SILENCE, table=_RUNS.name)
        mine = update(_RUNS).where(_RUNS.c.id == self.run, _RUNS.c.holder == self._holder).values(values)
        return execute(connection, mine, table=_RUNS.name).rowcount

    def _beat(self) -> dict[str, Any]:
        return self._journal() | {"heartbeat_at": func.clock_timestamp(), "lease_until": _UNTIL}

    def _beat_until_ended(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                with translated(), self._engine.begin() as connection:
                    execute(connection, _COMMIT_HERE, table=_RUNS.name)
                    if not self._write(connection, self._beat()):
                        return  # another process has it, which the next fence finds out
            except (DatabaseUnavailableError, TransactionConflictError) as error:
                logger.warning("the rotation's heartbeat failed and is tried again: %s", error)


def _row_of(connection: Connection, wanted: Run) -> tuple[UUID, int]:
    """Return the row of a rotation and the rows it has done so far, or make one."""
    known = select(_RUNS.c.id, _RUNS.c.rows).where(
        _RUNS.c.kind == wanted.kind,
        _RUNS.c.from_version == wanted.from_version,
        _RUNS.c.to_version == wanted.to_version,
        IS_OPEN,
    )
    row = execute(connection, known, table=_RUNS.name).first()
    if row is not None:
        return row.id, row.rows
    run = uuid7()
    values = {
        "id": run,
        "kind": wanted.kind,
        "from_version": wanted.from_version,
        "to_version": wanted.to_version,
        "state": "running",
    }
    execute(connection, insert(_RUNS).values(values), table=_RUNS.name)
    return run, 0


def _has_died_here(holder_name: str) -> bool:
    """Say whether a holder was a process of this machine that is gone, so that its lease need not be waited for.

    Where machines share a name it may be wrong, and only inconvenient: the fence lets one of the two commit.
    """
    host, _, pid = holder_name.rpartition(":")
    if host != socket.gethostname() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _active(row: Row[Any]) -> RotationActiveError:
    return RotationActiveError(
        f"the rotation {row.from_version} → {row.to_version} is being run by {row.holder_name} (last heartbeat "
        f"{row.heartbeat_at:%Y-%m-%d %H:%M:%S %Z}): watch it with `voiceassist-db status`. If that process has died, this can be "
        f"started again {LEASE_S} s after its last heartbeat (on the same machine: at once)."
    )


def _lost() -> LeaseLostError:
    return LeaseLostError(
        "another process took this rotation over, because this one was silent for too long: this one stops, and the other "
        "one finishes. Watch it with `voiceassist-db status`."
    )
