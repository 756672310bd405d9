"""How far the server can clean pages: a row version that is dead is removed once no transaction can see it any more.

Owns the look at the transactions that keep dead row versions, and the wait for them. It ends no transaction. With hot_standby_feedback
the transactions of standbys count, too: the process that sends WAL to a standby, or its replication slot, has the oldest of their numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, Engine, Row, text

from voiceassist_db.execution import execute
from voiceassist_db.prepared import Prepared
from voiceassist_db.rotation.lease import APPLICATION
from voiceassist_db.rotation.transactions import persistently

HOLDER_PATIENCE_S: Final = 10.0
"""How long the rotation waits for a transaction that keeps pages from being cleaned; then it continues, and tables grow."""

FIRST_PAUSE_S: Final = 0.001
MAX_PAUSE_S: Final = 0.2

_NO_TRANSACTION: Final = "AUTOCOMMIT"
"""A look needs one statement, between two batches of a few milliseconds."""

# A process that sends WAL to a standby has no database, and counts in each.
_HERE: Final = "(a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database() OR a.datname IS NULL)"

# VACUUM has a snapshot, too, but it keeps no dead row.
_KEEPS: Final = f"""
    a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() AND a.backend_xmin IS NOT NULL AND {_HERE}
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum v WHERE v.pid OPERATOR(pg_catalog.=) a.pid)
"""

# Transactions that write count in every database: each snapshot, those of the rotation as well, is as old as the oldest of them.
_REACHED: Final = Prepared(
    text(
        f"""
    SELECT least(
        CAST(CAST(pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS pg_catalog.text) AS pg_catalog.int8),
        (SELECT x.number OPERATOR(pg_catalog.+) pg_catalog.min(
                pg_catalog.age(x.id) OPERATOR(pg_catalog.-) pg_catalog.age(a.backend_xmin))
         FROM pg_catalog.pg_stat_activity a WHERE {_KEEPS}),
        (SELECT x.number OPERATOR(pg_catalog.+) pg_catalog.min(
                pg_catalog.age(x.id) OPERATOR(pg_catalog.-) pg_catalog.age(s.xmin))
         FROM pg_catalog.pg_replication_slots s WHERE s.xmin IS NOT NULL)) AS reached
    FROM (SELECT CAST(:xid AS pg_catalog.int8) AS number,
                 CAST(CAST(CAST(CAST(:xid AS pg_catalog.int8) AS pg_catalog.text) AS pg_catalog.xid8) AS pg_catalog.xid) AS id) x
    """  # noqa: S608  # of constants
    ).columns(reached=BigInteger),
    table="pg_stat_activity",
)

_HOLDER: Final = text(
    f"""
    SELECT 'session' AS kind, a.pid, a.usename, a.application_name AS name, a.state,
           extract(epoch FROM (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) a.xact_start))::int AS seconds,
           greatest(pg_catalog.age(a.backend_xmin), pg_catalog.age(a.backend_xid)) AS age
    FROM pg_catalog.pg_stat_activity a
    WHERE ({_KEEPS} OR a.backend_xid IS NOT NULL AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
      AND a.xact_start OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) interval '1 s')
      AND a.application_name OPERATOR(pg_catalog.<>) :own
    UNION ALL
    SELECT 'standby', a.pid, a.usename, a.application_name, NULL, NULL, pg_catalog.age(a.backend_xmin)
    FROM pg_catalog.pg_stat_activity a WHERE :standbys AND a.backend_xmin IS NOT NULL AND a.datname IS NULL
    UNION ALL
    SELECT 'slot', s.active_pid, NULL, s.slot_name, NULL, NULL, pg_catalog.age(s.xmin)
    FROM pg_catalog.pg_replication_slots s WHERE :standbys AND s.xmin IS NOT NULL
    ORDER BY 7 DESC LIMIT 1
    """  # noqa: S608  # of constants
)

TELL_AFTER_S: Final = 1.0
"""After how long a wait a standby is named: it tells its oldest transaction every few seconds only."""


class Horizon:
    """Lets a pass wait until the server can remove what the pass before left dead; safe for threads.

    Args:
        engine: Where to ask.
        patience_s: How long to wait at most, of :data:`HOLDER_PATIENCE_S`.
        is_stopping: Says whether the run shall end; then nothing is waited for.
        on_hold: Called with whom the run waits for, and with an empty text when it continues.
    """

    def __init__(
        self, engine: Engine, *, patience_s: float, is_stopping: Callable[[], bool], on_hold: Callable[[str], None]
    ) -> None:
        self._engine = engine.execution_options(isolation_level=_NO_TRANSACTION)
        self._patience_s = min(patience_s, HOLDER_PATIENCE_S)
        self._is_stopping = is_stopping
        self._on_hold = on_hold
        self._began = time.monotonic()
        self._waited_s = 0.0
        self._reached = 0
        self._given_up_at = 0
        self._is_told = False

    def wait_for(self, xid: int) -> bool:
        """Wait until no transaction can see what one left dead that has been committed.

        It waits no longer than the patience at once, and in all no longer than that and the time that the run has worked: nobody can
        stop a rotation by one transaction after another. Where it waited in vain, it waits again only after something has changed.

        Args:
            xid: The number of the committed transaction.

        Returns:
            Whether a transaction still can. A role that may not see others' snapshots sees only those of transactions that write.
        """
        if xid < self._reached:
            return False
        started, pause_s = time.monotonic(), FIRST_PAUSE_S
        until = started + min(self._patience_s, self._patience_s + started - self._began - 2 * self._waited_s)
        try:
            while (reached := self._ask(xid)) <= xid:
                if self._is_stopping() or reached <= self._given_up_at:
                    return True
                if time.monotonic() > until:
                    self._given_up_at = reached
                    return True
                self._tell(standbys=time.monotonic() - started > TELL_AFTER_S)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            self._waited_s += time.monotonic() - started
        self._reached = max(self._reached, reached)
        if self._is_told:
            self._is_told = False
            self._on_hold("")
        return False

    def _ask(self, xid: int) -> int:
        """Return the number of the oldest transaction that can still be seen or is still open."""

        def ask(connection: Connection) -> int:
            return int(_REACHED.rows(connection, {"xid": xid})[0][0])

        return persistently(self._engine, ask, what="a look at old snapshots", is_stopping=self._is_stopping)

    def _tell(self, *, standbys: bool) -> None:
        """Say whom it waits for, unless that has only begun.

        Args:
            standbys: Whether that may be a standby.
        """

        def ask(connection: Connection) -> Row[Any] | None:
            given = {"own": APPLICATION, "standbys": standbys}
            return execute(connection, _HOLDER, given, table="pg_stat_activity").first()

        holder = persistently(self._engine, ask, what="a look at old snapshots", is_stopping=self._is_stopping)
        if holder is not None:
            self._is_told = True
            self._on_hold(f"{_keeper_of(holder)}: pages cannot be cleaned, tables grow")


def _keeper_of(holder: Row[Any]) -> str:
    if holder.kind == "session":
        who = f"pid {holder.pid} ({holder.usename}, {holder.name or 'no name'}, {holder.state})"
        return f"{who} has a transaction open for {holder.seconds} s"
    of = f"the standby {holder.name or 'without a name'} (pid {holder.pid})"
    if holder.kind == "slot":
        of = f"the standby of the replication slot {holder.name}"
    return f"{of} keeps dead rows for its own transactions by hot_standby_feedback"
