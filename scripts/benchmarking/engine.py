"""Our own rotation, as one of the ways to re-encrypt a table."""

from __future__ import annotations

import importlib.metadata
import time

from benchmarking import tables
from benchmarking.deployment import Deployment
from benchmarking.tables import Shape
from voiceassist_db.rotation import Pace, retire, rotate


class Engine:
    """The rotation. It goes on from where the last one ended: a run leaves nothing behind that the next one must undo.

    Args:
        deployment: The database; all its encrypted tables but this one are empty.
        shape: The table.
        rows: How many rows it has.
        workers: Connections that re-encrypt at the same time.

    Attributes:
        whole_seconds: Seconds of each run with everything: the count at the beginning, and the proof at the end.
    """

    note = ""

    def __init__(self, deployment: Deployment, shape: Shape, *, rows: int, workers: int = 1) -> None:
        self.name = f"voiceassist-db, {workers} worker{'s' if workers > 1 else ''}"
        self.version = importlib.metadata.version("voiceassist-db")
        self.table = shape.table
        self.rows = rows
        self.connections = workers
        self.whole_seconds: list[float] = []
        self._pace = Pace(workers=workers)
        self._deployment = deployment
        self._shape = shape

    def create(self) -> None:
        """Make the rows, in a table that exists."""
        tables.fill(self._deployment, self._shape, self.rows)

    def prove(self) -> None:
        """Do nothing more: a rotation proves by itself that every value opens under the new key."""

    def restore(self, rows: int) -> None:
        """Leave the table as it is: it has not grown, and its rows are under the key of the day."""

    def run(self) -> float:
        """Rotate to the end; retire the older key at once, which is not counted."""
        started = time.perf_counter()
        keys = self._deployment.database.keys
        report = rotate(self._deployment.engine, keys, pace=self._pace)
        self.whole_seconds.append(time.perf_counter() - started)
        assert report.done
        retire(self._deployment.engine, keys, grace_days=0)
        self._deployment.engine.dispose()
        return report.seconds
