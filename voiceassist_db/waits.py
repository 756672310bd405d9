"""What a statement waits for, and who could end the wait: the process, its role, its application and since when.

Owns the look at locks, at prepared transactions and at missing standbys, and the watch that tells a command's user of it. It changes
nothing and ends nobody's transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Table, event, text

from voiceassist_db.errors import DatabaseError
from voiceassist_db.execution import execute, regclass, translated

WATCH_EVERY_S: Final = 1.0
SAY_AGAIN_S: Final = 60.0
"""How often a wait that goes on is told again."""

_NO_TRANSACTION: Final = "AUTOCOMMIT"

# Written in SQL as text, for the driver reads moments under DateStyle ISO only.
_SINCE: Final = """pg_catalog.to_char(pg_catalog.timezone('UTC', {moment}), 'YYYY-MM-DD HH24:MI:SS "UTC"')"""

# A prepared transaction has locks without a pid. One of them is that of its own number, by which its name is found.
_PREPARED: Final = f"""
    SELECT t.virtualtransaction, x.gid, CAST(x.owner AS pg_catalog.text) AS owner, {_SINCE.format(moment="x.prepared")} AS since
    FROM pg_catalog.pg_locks t
    JOIN pg_catalog.pg_prepared_xacts x ON x.transaction OPERATOR(pg_catalog.=) t.transactionid
    WHERE t.locktype OPERATOR(pg_catalog.=) 'transactionid' AND t.granted AND t.pid IS NULL
"""  # noqa: S608  # of constants

# What is locked: both rows of a wait have it in common.
_TAG: Final = "pg_catalog.concat_ws('/', {0}.locktype, {0}.database, {0}.relation, {0}.page, {0}.tuple, {0}.transactionid, {0}.classid, {0}.objid)"

_HOLDERS: Final = text(
    f"""
    WITH prepared AS ({_PREPARED})
    SELECT DISTINCT l.pid, coalesce(CAST(a.usename AS pg_catalog.text), p.owner) AS role, a.application_name,
        coalesce({_SINCE.format(moment="a.xact_start")}, p.since) AS since, p.gid
    FROM pg_catalog.pg_locks l
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
    LEFT JOIN prepared p ON l.pid IS NULL AND p.virtualtransaction OPERATOR(pg_catalog.=) l.virtualtransaction
    WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.granted
      AND l.relation OPERATOR(pg_catalog.=) CAST(:oid AS pg_catalog.oid)
      AND l.database OPERATOR(pg_catalog.=) (
          SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
      AND (CAST(:readers AS pg_catalog.bool) OR l.mode OPERATOR(pg_catalog.<>) 'AccessShareLock')
      AND (l.pid IS NULL OR l.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
    ORDER BY 4, 1
    """  # noqa: S608  # of constants
)

_WAITS: Final = text(
    f"""
    WITH prepared AS ({_PREPARED}), waiting AS (
        SELECT w.pid, w.wait_event, pg_catalog.pg_blocking_pids(w.pid) AS blocking
        FROM pg_catalog.pg_stat_activity w
        WHERE w.pid OPERATOR(pg_catalog.=) ANY (CAST(:pids AS pg_catalog.int4[]))
          AND (w.wait_event_type OPERATOR(pg_catalog.=) 'Lock' OR w.wait_event OPERATOR(pg_catalog.=) 'SyncRep')
    )
    SELECT w.wait_event, a.pid, CAST(a.usename AS pg_catalog.text) AS role, a.application_name,
        {_SINCE.format(moment="a.xact_start")} AS since, NULL AS gid
    FROM waiting w LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) ANY (w.blocking)
    WHERE w.wait_event OPERATOR(pg_catalog.=) 'SyncRep' OR a.pid IS NOT NULL AND NOT a.pid OPERATOR(pg_catalog.=) ANY (CAST(:pids AS pg_catalog.int4[]))
    UNION
    SELECT w.wait_event, NULL, p.owner, NULL, p.since, p.gid
    FROM waiting w
    JOIN pg_catalog.pg_locks l ON l.pid OPERATOR(pg_catalog.=) w.pid AND NOT l.granted
    JOIN pg_catalog.pg_locks h ON h.pid IS NULL AND h.granted AND {_TAG.format("h")} OPERATOR(pg_catalog.=) {_TAG.format("l")}
    JOIN prepared p ON p.virtualtransaction OPERATOR(pg_catalog.=) h.virtualtransaction
    WHERE 0 OPERATOR(pg_catalog.=) ANY (w.blocking)
    """  # noqa: S608  # of constants
)

_STANDBYS: Final = text(
    "SELECT pg_catalog.current_setting('synchronous_standby_names') AS names, "
    "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication) AS connected"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lock.

    Attributes:
        pid: The process of its session; None of a prepared transaction.
        role: Its role; None where this role may not see it.
        application: What its session calls itself; empty where it has no name.
        since: When its transaction began; None where this role may not see it.
        gid: The name of a prepared transaction; None of a session.
    """

    pid: int | None
    role: str | None
    application: str
    since: str | None
    gid: str | None = None

    @classmethod
    def of(cls, row: Row[Any]) -> Holder:
        """Return what a row of the queries above says."""
        return cls(row.pid, row.role, row.application_name or "", row.since, row.gid)

    def __str__(self) -> str:
        since = self.since or "a time that this role may not see (GRANT pg_read_all_stats)"
        if self.gid is not None:
            return f"the prepared transaction {self.gid!r} of {self.role}, since {since}: COMMIT PREPARED or ROLLBACK PREPARED ends it"
        if self.pid is None:
            return "a prepared transaction: see pg_prepared_xacts"
        return f"pid {self.pid} (role {self.role or 'unknown'}, application {self.application or 'without a name'}, since {since})"


def holders(connection: Connection, oid: int, *, readers: bool = False) -> list[Holder]:
    """Return who else has a lock of a relation, the oldest transaction first.

    Args:
        connection: A connection of any role.
        oid: The relation's number in the catalogue.
        readers: Whether transactions that only read it count, as they do where ACCESS EXCLUSIVE is wanted.
    """
    rows = execute(connection, _HOLDERS, {"oid": oid, "readers": readers}, table="pg_locks")
    return [Holder.of(row) for row in rows]


def named(connection: Connection, table: str, *, readers: bool = False) -> str:
    """Return who else has a lock of a table, as the end of a message; empty where nobody has.

    Args:
        connection: A connection of any role.
        table: The table's name as the text of a ``regclass``.
        readers: As for :func:`holders`.
    """
    oid = text("SELECT CAST(CAST(:name AS pg_catalog.regclass) AS pg_catalog.oid)::pg_catalog.int8")
    number = execute(connection, oid, {"name": table}, table=table).scalar_one()
    found = holders(connection, number, readers=readers)
    return f" Locked by: {'; '.join(map(str, found))}." if found else ""


def one_at_a_time(connection: Connection, table: Table) -> None:
    """Let transactions that do this with a table follow one another, until each ends.

    By a lock of the table, which only who may write to it can take. Any role could take an advisory lock, and keep it. Readers and
    other writers of the table are not held up.
    """
    lock = f"LOCK TABLE {regclass(connection, table)} IN SHARE UPDATE EXCLUSIVE MODE"
    execute(connection, text(lock), table=table.name)


OnWait = Callable[[str], None]


@contextmanager
def watching(engine: Engine, on_wait: OnWait) -> Iterator[None]:
    """Tell of each wait of an engine's statements for a lock or a standby, while the block runs.

    A block that is over within a second costs nothing. Behind a pooler that shares sessions nothing is seen.

    Args:
        engine: The engine; one that has not connected yet, or its first connections are not watched.
        on_wait: Called in a thread of its own, with one line.
    """
    watch = _Watch(engine, on_wait)
    event.listen(engine, "checkout", watch.on_checkout)
    thread = threading.Thread(target=watch.until_ended, name="voiceassist-db-waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.ended.set()
        thread.join()
        event.remove(engine, "checkout", watch.on_checkout)


class _Watch:
    """Asks every second whether one of an engine's sessions waits."""

    def __init__(self, engine: Engine, on_wait: OnWait) -> None:
        self.ended = threading.Event()
        self._engine = engine.execution_options(isolation_level=_NO_TRANSACTION)  # it must hold no snapshot of its own
        self._on_wait = on_wait
        self._pids: set[int] = set()
        self._told: dict[str, float] = {}

    def on_checkout(self, connection: Any, _record: Any, _proxy: Any) -> None:
        """Remember a session."""
        self._pids.add(connection.info.backend_pid)

    def until_ended(self) -> None:
        """Watch until the block is over."""
        while not self.ended.wait(WATCH_EVERY_S):
            try:
                found = self._look()
            except DatabaseError:
                continue  # what failed is told by the work itself, which uses the same server
            now = time.monotonic()
            for each in found:
                if now - self._told.get(each, -SAY_AGAIN_S) >= SAY_AGAIN_S:
                    self._told[each] = now
                    self._on_wait(each)

    def _look(self) -> list[str]:
        with translated(), self._engine.connect() as connection:
            rows = execute(connection, _WAITS, {"pids": list(self._pids)}, table="pg_stat_activity").all()
            standbys = execute(connection, _STANDBYS, table="pg_stat_replication").one() if rows else None
        found = [f"waiting for a lock of {Holder.of(row)}" for row in rows if row.wait_event != "SyncRep"]
        if standbys is not None and len(found) < len(rows):
            found.append(
                f"waiting for a synchronous standby: synchronous_standby_names is {standbys.names!r}, and {standbys.connected} "
                "standbys are connected. A commit is kept on this server, and waits until one of them has it. Start the standby, or "
                "change synchronous_standby_names and reload the configuration"
            )
        return found
