"""Moments in the life of a database: what its clock says, and which rows were there.

Owns how a moment is read, and the condition that a row was there, which lets a walk over a table say that it missed none. The
condition is made of each row version's transaction id (``xmin``). Reads no value and knows no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Boolean, ColumnElement, Connection, Text, func, literal_column, select, text

from voiceassist_db.execution import execute

_NOW: Final = text(
    """
    SELECT CAST(CAST(pg_catalog.pg_snapshot_xmax(s.now) AS pg_catalog.text) AS pg_catalog.int8) AS first_later,
           ARRAY(SELECT CAST(CAST(x AS pg_catalog.text) AS pg_catalog.int8) FROM pg_catalog.pg_snapshot_xip(s.now) x) AS running
    FROM (SELECT pg_catalog.pg_current_snapshot() AS now) s
    """
)
_EPOCH: Final = 1 << 32
"""Transaction ids in rows have 32 bits, and follow each other in a circle."""

_XMIN: Final = "CAST(CAST(xmin AS pg_catalog.text) AS pg_catalog.int8)"
_FIRST_NORMAL_XID: Final = 3
"""Smaller ids mark rows that are older than every transaction (FirstNormalTransactionId in PostgreSQL's transam.h)."""


def moment_as_text(moment: ColumnElement[datetime]) -> ColumnElement[str]:
    """Return a moment as ``datetime.fromisoformat`` reads it. The driver reads moments under DateStyle ISO only."""
    in_utc = func.timezone(literal_column("'UTC'"), moment)
    return func.to_char(in_utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'"""), type_=Text)


def server_now(connection: Connection) -> datetime:
    """Return what the server's clock says. Ages are counted by it alone, because another machine's clock may be wrong."""
    now = select(moment_as_text(func.clock_timestamp()))
    return datetime.fromisoformat(execute(connection, now, table="clock_timestamp").scalar_one())


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment in the life of a database.

    Attributes:
        first_later: Id of the first transaction that had not begun, modulo 2**32.
        running: Ids of the transactions that were running, modulo 2**32; subtransactions are not among them.
    """

    first_later: int
    running: tuple[int, ...]

    @classmethod
    def now(cls, connection: Connection) -> Moment:
        """Return the moment of a transaction's next statement."""
        row = execute(connection, _NOW, table="pg_current_snapshot").one()
        return cls(int(row.first_later) % _EPOCH, tuple(int(each) % _EPOCH for each in row.running))

    def had_row(self) -> ColumnElement[bool]:
        """Return the condition that a row version of the only table of a statement was committed by then.

        It holds too for a row of a subtransaction that was running. It holds numbers only, so that it needs no parameter.
        """
        is_older = f"(({_XMIN} OPERATOR(pg_catalog.-) {self.first_later}) OPERATOR(pg_catalog.&) {_EPOCH - 1}) OPERATOR(pg_catalog.>=) {_EPOCH >> 1}"
        running = ", ".join(map(str, self.running))
        was_running = f"{_XMIN} OPERATOR(pg_catalog.=) ANY (CAST(ARRAY[{running}] AS pg_catalog.int8[]))"
        is_frozen = f"{_XMIN} OPERATOR(pg_catalog.<) {_FIRST_NORMAL_XID}"
        return literal_column(f"({is_frozen} OR ({is_older} AND NOT {was_running}))", Boolean)
