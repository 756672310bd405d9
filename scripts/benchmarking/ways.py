"""Ways to re-encrypt a table from one key to another, each measured alike from outside.

Owns what is measured of a run: its rate, and what it left of the table. Knows no way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Protocol

from benchmarking.deployment import Deployment

STATISTICS_TIMEOUT_S: Final = 3.0
"""How long to wait for the counts of a session that has ended; a row that is written in one piece is counted at once."""

_MEASURED: Final = """
    SELECT pg_relation_size('{table}'), pg_indexes_size('{table}'), coalesce(n_tup_upd, 0), coalesce(n_tup_hot_upd, 0)
    FROM pg_stat_user_tables WHERE relid = '{table}'::regclass
"""


class Way(Protocol):
    """One way to re-encrypt a table with the columns ``id`` and ``created_at``.

    Attributes:
        name: What the report calls it.
        version: Version of what does the work.
        note: What a reader must know to judge its figures; may be empty.
        table: The table.
        rows: How many rows it has.
        connections: How many work on it at the same time.
    """

    name: str
    version: str
    note: str
    table: str
    rows: int
    connections: int

    def create(self) -> None:
        """Create the table with its rows under the old key."""

    def run(self) -> float:
        """Re-encrypt all rows, and return the seconds that it took; connections of its own are closed afterwards."""

    def prove(self) -> None:
        """Read the values under the new key alone.

        Raises:
            AssertionError: One is not what it was before: the way does not do its job.
        """

    def restore(self, rows: int) -> None:
        """Bring back the first rows of the table as they were when it was created, to be re-encrypted again.

        With none, nothing is left for an autovacuum, whose write-ahead log would be counted as that of the next way.
        """


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did.

    Attributes:
        rows_per_second: Its rate.
        table_growth: Size of the table afterwards over before.
        index_growth: The same of its indexes.
        hot_ratio: Share of row versions that stayed on their page (HOT).
        wal_bytes_per_row: Bytes of write-ahead log for each row.
    """

    rows_per_second: float
    table_growth: float
    index_growth: float
    hot_ratio: float
    wal_bytes_per_row: float


def measured(deployment: Deployment, way: Way) -> Run:
    """Restore a way's table, let it settle, run it, and return what it did."""
    way.restore(way.rows)
    deployment.settle(way.table)
    before, wal = _state(deployment, way.table), deployment.wal()
    seconds = way.run()
    wal = deployment.wal() - wal
    after = _state(deployment, way.table)
    give_up = time.monotonic() + STATISTICS_TIMEOUT_S
    while after[2] - before[2] < way.rows and time.monotonic() < give_up:
        time.sleep(0.05)
        after = _state(deployment, way.table)
    updated, hot = after[2] - before[2], after[3] - before[3]
    return Run(
        rows_per_second=way.rows / seconds,
        table_growth=after[0] / before[0],
        index_growth=after[1] / before[1],
        hot_ratio=hot / updated if updated else 0.0,
        wal_bytes_per_row=wal / way.rows,
    )


def _state(deployment: Deployment, table: str) -> tuple[int, int, int, int]:
    deployment.raw.execute("SELECT pg_stat_force_next_flush()")
    table_bytes, index_bytes, updated, hot = deployment.one(_MEASURED.format(table=table))
    return int(table_bytes), int(index_bytes), int(updated), int(hot)


class Copied:
    """The part of a way that keeps its first rows in a second table, to begin each run with them.

    Args:
        deployment: The database.
        table: The way's table.
    """

    connections = 1

    def __init__(self, deployment: Deployment, table: str) -> None:
        self._raw = deployment.raw
        self._table = table

    def keep(self) -> None:
        """Keep the rows as they are now."""
        self._raw.execute(f"CREATE TABLE {self._table}_kept AS SELECT * FROM {self._table} ORDER BY id")
        self._raw.execute(f"VACUUM ANALYZE {self._table}_kept")

    def restore(self, rows: int) -> None:
        """Put the first of them back."""
        self._raw.execute(f"TRUNCATE {self._table}")
        self._raw.execute(f"INSERT INTO {self._table} SELECT * FROM {self._table}_kept ORDER BY id LIMIT {rows}")
