"""What a rotation waits for between two batches: the rate asked for, replicas that lag, WAL that a slot retains.

Owns the looks at the server's activity. Fails closed: a lag that cannot be read is a lag, never none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, text

from voiceassist_db.errors import DatabaseError, RotationError
from voiceassist_db.execution import execute, translated
from voiceassist_db.rotation.report import Pace
from voiceassist_db.rotation.statements import NAP_S

PROBE_EVERY_S: Final = 1.0
NEARLY: Final = 0.75
"""Which part of the time that its rows may take a batch takes. The rest is slack, so that a loaded machine meets the rate, too."""

CATCH_UP_S: Final = 0.1
"""How much time that a batch has lost the next ones may make up for, by waiting less: so the rate is met, and no second exceeds it
by more than this part."""

MAX_SLOT_BYTES: Final = 16 << 30
"""WAL that a replication slot may retain, 16 GiB, before the rotation pauses: it would go on filling the server's disk."""

_SLOTS: Final = text(
    """
    SELECT s.slot_name, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn) AS bytes
    FROM pg_catalog.pg_replication_slots s WHERE s.restart_lsn IS NOT NULL ORDER BY 2 DESC LIMIT 1
    """
)
_REPLICAS: Final = text(
    """
    SELECT CASE WHEN r.application_name OPERATOR(pg_catalog.<>) '' THEN r.application_name
                ELSE pg_catalog.format('pid %s', r.pid) END AS name, r.state,
           CASE WHEN r.replay_lsn OPERATOR(pg_catalog.>=) now.lsn THEN 0
                ELSE extract(epoch FROM r.replay_lag)::float END AS lag_s,
           (r.replay_lsn OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::bigint AS replayed,
           (now.lsn OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::bigint AS written
    FROM pg_catalog.pg_stat_replication r, pg_catalog.pg_current_wal_lsn() now (lsn)
    """
)


def require_visible_replicas(connection: Connection, pace: Pace) -> None:
    """Refuse a lag limit that could not be kept.

    Raises:
        RotationError: No replica is connected, or this role may not see their lag.
    """
    if pace.max_replica_lag_s is None:
        return
    replicas = execute(connection, _REPLICAS, table="pg_stat_replication").all()
    if not replicas:
        raise RotationError("a limit of replica lag was given, but no replica is connected to this server")
    if any(each.state is None for each in replicas):
        raise RotationError("this role may not see the lag of replicas: GRANT pg_read_all_stats to it")


class Throttle:
    """Keeps all workers of a run to its pace.

    Args:
        engine: Where to ask.
        pace: What was asked for.
        is_stopping: Says whether the run shall end; then nothing is waited for.
        on_hold: Called with the reason while the run is held back, and with an empty text when it goes on.
    """

    def __init__(
        self, engine: Engine, pace: Pace, *, is_stopping: Callable[[], bool], on_hold: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._pace = pace
        self._is_stopping = is_stopping
        self._on_hold = on_hold
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self._nap_share = 0.0
        self._probed_at = 0.0
        self._reason = ""
        self._written: list[tuple[float, int]] = []
        self._seen: set[str] = set()

    @property
    def nap_share(self) -> float:
        """After how large a share of its rows the next batch shall nap.

        So a batch goes on slowly for as long as its rows may take, instead of running at full speed and waiting then: on a
        machine of two processors, its bursts were what the slowest one in a hundred of an application's statements waited for.
        """
        return self._nap_share

    def begin(self) -> None:
        """Look which replicas there are before the first row is touched: one that is lost from now on is missed."""
        with self._lock:
            self._reason = self._probe()
            self._probed_at = time.monotonic()

    def after(self, rows: int, *, seconds: float) -> None:
        """Wait until the next batch may begin.

        Args:
            rows: Rows of the batch that has just ended.
            seconds: How long it took.
        """
        self.keep_rate(rows, seconds=seconds)
        is_held = False
        while not self._is_stopping() and (reason := self._held_by_replication()):
            is_held = True
            self._on_hold(reason)
            time.sleep(PROBE_EVERY_S / 2)
        if is_held:
            self._on_hold("")

    def keep_rate(self, rows: int, *, seconds: float) -> None:
        """Wait for the rate alone, as what only reads must: no replica lags for it. Takes what :meth:`after` takes."""
        if self._pace.max_rows_per_second is None:
            return
        with self._lock:
            # From its beginning: the time that the batch itself took is not to be waited for once more.
            began = time.monotonic() - seconds
            self._free_at = max(self._free_at, began - CATCH_UP_S) + rows / self._pace.max_rows_per_second
            free_at = self._free_at
            if rows:
                # Half of what the last batch was too fast or too slow by.
                wanted_s = NEARLY * self._pace.workers / self._pace.max_rows_per_second
                self._nap_share = min(1.0, max(0.0, self._nap_share + (wanted_s - seconds / rows) / NAP_S / 2))
        while not self._is_stopping() and (left_s := free_at - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.1))

    def _held_by_replication(self) -> str:
        with self._lock:
            if time.monotonic() - self._probed_at < PROBE_EVERY_S:
                return self._reason
            self._reason = self._probe()
            self._probed_at = time.monotonic()
            return self._reason

    def _probe(self) -> str:
        try:
            with translated(), self._engine.begin() as connection:
                slot = execute(connection, _SLOTS, table="pg_replication_slots").first()
                if slot is not None and slot.bytes > MAX_SLOT_BYTES:
                    return f"paused: replication slot {slot.slot_name} retains {slot.bytes / (1 << 30):.0f} GiB of WAL"
                if (limit_s := self._pace.max_replica_lag_s) is None:
                    return ""
                replicas = execute(connection, _REPLICAS, table="pg_stat_replication").all()
        except DatabaseError as error:
            if self._pace.max_replica_lag_s is None:
                return ""  # some servers have no such view; nobody asked for a lag that it would have told
            return f"paused: replication cannot be watched ({error.sqlstate or type(error).__name__})"
        return self._lagging(replicas, limit_s)

    def _lagging(self, replicas: Sequence[Row[Any]], limit_s: float) -> str:
        if not replicas:
            return "paused: no replica is connected, so that its lag is unknown"
        names = {replica.name for replica in replicas}
        self._seen |= names
        if lost := self._seen - names:
            return f"paused: replica {', '.join(sorted(lost))} is no longer connected"
        now = time.monotonic()
        # What all have replayed tells nothing more.
        self._written = [(at, lsn) for at, lsn in self._written if any(lsn > (each.replayed or 0) for each in replicas)]
        self._written.append((now, replicas[0].written))
        for replica in replicas:
            if replica.state != "streaming":
                return f"paused: replica {replica.name} is not streaming ({replica.state or 'unknown'})"
            # The server measures a lag by the replica's replies: of one that has fallen silent, it goes on telling the last, or
            # none. So, too: for how long it has had WAL that the replica has not replayed, as far as it was looked at.
            unreplayed_s = next((now - at for at, lsn in self._written if lsn > (replica.replayed or 0)), 0.0)
            lag_s = max(replica.lag_s or 0.0, unreplayed_s)
            if replica.lag_s is None and lag_s <= limit_s:
                return f"paused: the lag of replica {replica.name} is unknown"
            if lag_s > limit_s:
                return f"paused: replica {replica.name} is {lag_s:.1f} s behind"
        return ""
